"""Chat templates, which are programs of a model's author: none runs in this process, and none without end."""

import os
from importlib import resources
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from models.generation.errors import InvalidRequest
from models.generation.prompt import Prompts
from models.generation.tokenizer import GenerationTokenizer
from models.generation.types import Chat, Message
from models.sandbox.templates import RenderFailed, renderer

FOLDER = Path(str(resources.files("models.bundled.tiny_coder")))
ORDINARY = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HELLO = Chat((Message("user", "hello"),))


def prompts(template: str) -> Prompts:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.chat_template = template
    return Prompts(GenerationTokenizer(tokenizer), frozenset(), 4096)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (LOOP, "took longer than"),
        ("{{ 'a' * 3000000000 }}", "more memory than it may"),
        ("{{ 'a' * 1000000 }}", "makes 1000000 characters"),
        (
            "{% set a = namespace(x=['a']) %}{% for i in range(60) %}{% set a.x = a.x + a.x %}{% endfor %}",
            "more memory",
        ),
        ("{{ '" + "a" * 1_000_001 + "' }}", "longer than"),
    ],
)
def test_a_template_that_takes_too_much_is_refused_and_others_go_on(template: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        prompts(template)(HELLO)
    assert prompts(ORDINARY)(HELLO).ids


def test_transformers_renders_in_another_process() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    with pytest.raises(RenderFailed, match="took longer"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], chat_template=LOOP)


def test_a_killed_process_is_replaced() -> None:
    one = renderer(ORDINARY + "{# of its own #}")
    messages = [{"role": "user", "content": "é\ud800"}]
    expected = one.render(messages=messages)
    assert one._child is not None
    os.kill(one._child.process.pid, 9)
    one._child.process.wait()
    with pytest.raises(RenderFailed, match="its process ended"):
        one.render(messages=messages)
    assert one.render(messages=messages) == expected


def test_the_process_renders_what_transformers_would() -> None:
    template = ORDINARY + "{% generation %}{{ fields | tojson }}{% endgeneration %}{{ none_such is defined }}"
    fields = {"messages": [{"role": "user", "content": 'a "b" <c>\n\U000f0000'}], "fields": {"x": [1, 2.5, None, True]}}
    here = chat_template_utils._cached_compile_jinja_template(template).render(**fields)
    assert renderer(template).render(**fields) == here
