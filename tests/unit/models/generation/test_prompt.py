"""Prompts to token ids: as transformers' own tokenisers and chat templates make them."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
from generation_models import ALL, codellama, llama, starcoder
from gguf_model import converted_folder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from models.generation.errors import InvalidRequest
from models.generation.prompt import Prompts
from models.generation.tokenizer import GenerationTokenizer
from models.generation.types import Chat, Fill, Message, Plain, Prompt

END = frozenset({2})
TURNS = (
    Message("system", "Be brief."),
    Message("user", "hi\n<3"),
    Message("assistant", "hello"),
    Message("user", "🙂"),
)


@cache
def reader(folder: Path) -> GenerationTokenizer:
    return GenerationTokenizer.read(folder)


@cache
def prompts(folder: Path) -> Prompts:
    return Prompts(reader(folder), END, 10**6)


def named(folder: Path, prompt: Prompt) -> str:
    """The names of a prompt's tokens, joined: how a text is cut depends on what the tokeniser learned from."""
    return "".join(AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(list(prompts(folder)(prompt).ids)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ["def f(x):\n    return", " x", "\n", "你好 🙂", "a</s>b<|endoftext|>c"])
def test_a_plain_prompt_is_encoded_as_the_tokeniser_does(name: str, text: str) -> None:
    folder = ALL[name]()
    made = prompts(folder)(Plain(text))
    assert list(made.ids) == AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert made.stop_ids == END


def test_a_plain_prompt_has_one_bos() -> None:
    assert named(codellama(), Plain("x")) == "<s>▁x"
    assert named(codellama(), Plain("<s>x")) == "<s>x"
    assert named(starcoder(), Plain("x")) == "x"


def test_transformers_fill_marker_is_text() -> None:
    assert named(codellama(), Plain("a<FILL_ME>b")) == "<s>▁a<FILL_ME>b"
    assert reader(codellama()).id_of("<FILL_ME>") is None


def test_a_chat_equals_the_rendered_template() -> None:
    oracle = AutoTokenizer.from_pretrained(codellama())
    turns = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    expected = oracle.apply_chat_template(turns, add_generation_prompt=True, return_dict=True).input_ids
    made = prompts(codellama())(Chat(TURNS))
    assert list(made.ids) == expected
    assert expected.count(oracle.bos_token_id) == 2  # one for each exchange, as the template has it
    assert made.stop_ids == END


def test_developer_becomes_system_if_the_template_has_no_such_role() -> None:
    system, developer = (Chat((Message(role, "Be brief."), *TURNS[1:])) for role in ("system", "developer"))
    assert prompts(codellama())(developer) == prompts(codellama())(system)
    assert named(converted_folder(), developer) == named(converted_folder(), system)


def test_tool_messages_need_a_template_that_writes_their_role() -> None:
    assert "<|im_start|>toolĊ42<|im_end|>" in named(converted_folder(), Chat((*TURNS, Message("tool", "42"))))
    with pytest.raises(InvalidRequest, match="does not take them: it has no turns of the role 'tool'"):
        prompts(codellama())(Chat((Message("user", "a"), Message("tool", "42"), Message("user", "b"))))


def test_a_message_may_be_empty() -> None:
    assert "<|im_start|>userĊ<|im_end|>" in named(converted_folder(), Chat((Message("user", ""),)))


def test_the_final_message_is_continued() -> None:
    begun = Chat((Message("user", "a"), Message("assistant", "Sure: ")), continue_final=True)
    assert named(converted_folder(), begun).endswith("<|im_start|>assistantĊSure:Ġ")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((), "there are none"),
        ((Message("user", "a"), Message("user", "b")), "roles must alternate"),
        ((Message("user", "\ud800"),), "surrogate"),
    ],
)
def test_a_chat_that_the_template_refuses_is_an_invalid_request(messages: tuple[Message, ...], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        prompts(codellama())(Chat(messages))
    assert refused.value.field == "messages"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(90000) %}spam{% endfor %}", "makes 360000 characters"),
        ("{{ messages.__class__.__mro__ }}", "does not take them"),
        ("{{ 1 / 0 }}", "does not take them"),
        ("{% if %}", "does not take them"),
    ],
)
def test_a_bad_template_costs_the_request_alone(tmp_path: Path, template: str, reason: str) -> None:
    folder = shutil.copytree(codellama(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}), "utf-8")
    with pytest.raises(InvalidRequest, match=reason):
        prompts(folder)(Chat((Message("user", "hi"),)))


def test_unsupported_prompts_are_refused() -> None:
    base = prompts(llama())
    assert not base.chat
    assert not base.fill
    for prompt, field in ((Chat(TURNS), "messages"), (Fill("a", "b"), "prefix")):
        with pytest.raises(InvalidRequest, match="send `prompt` instead") as refused:
            base(prompt)
        assert refused.value.field == field
    assert prompts(codellama()).chat
    assert prompts(codellama()).fill
    assert prompts(starcoder()).fill
    assert not prompts(starcoder()).chat


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (Plain(""), "prompt"),
        (Plain("a\udfff"), "prompt"),
        (Fill("", ""), "prefix"),
        (Fill("\ud800", "a"), "prefix"),
        (Fill("a", "\ud800"), "suffix"),
    ],
)
def test_empty_prompts_and_surrogates_are_refused(prompt: Prompt, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompts(starcoder())(prompt)
    assert refused.value.field == field


@pytest.mark.parametrize("prefix", ["def f(x):\n", " x", "🙂"])
@pytest.mark.parametrize("suffix", ["    return y\n", " ", "  你好"])
def test_a_gap_is_framed_as_codellamas_tokeniser_does(prefix: str, suffix: str) -> None:
    oracle = AutoTokenizer.from_pretrained(codellama())
    made = prompts(codellama())(Fill(prefix, suffix))
    assert list(made.ids) == oracle(prefix + oracle.fill_token + suffix).input_ids
    assert made.stop_ids == END | {oracle.eot_id}


def test_no_space_is_put_before_a_suffix() -> None:
    assert named(codellama(), Fill("a", "\ne")) == "<s>▁<PRE>▁a▁<SUF><0x0A>e▁<MID>"
    assert named(codellama(), Fill("", "a")) == "<s>▁<PRE>▁<SUF>a▁<MID>"
    assert named(codellama(), Fill("a", "")) == "<s>▁<PRE>▁a▁<SUF>▁<MID>"


def test_starcoders_gap_has_no_bos() -> None:
    made = prompts(starcoder())(Fill("def f(", "):\n    pass"))
    expected = AutoTokenizer.from_pretrained(starcoder())("<fim_prefix>def f(<fim_suffix>):\n    pass<fim_middle>")
    assert list(made.ids) == expected.input_ids
    assert made.stop_ids == END


@pytest.mark.parametrize("name", ALL)
@given(words=st.lists(st.sampled_from(["<fim_suffix>", "<|endoftext|>", "<s>", "</s>", "a", " "]), min_size=1))
def test_special_tokens_around_a_gap_are_text(name: str, words: list[str]) -> None:
    tokenizer, text = reader(ALL[name]()), "".join(words)
    ids = tokenizer.encode_within(text)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    assert all(token in tokenizer.decoding.parts for token in ids)


def other_kind(*special: str, bos: bool) -> PreTrainedTokenizerFast:
    """A tokeniser of two letters and these special tokens, of which the first ends a text, and may begin one."""
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    if bos:
        first = (special[0], backend.token_to_id(special[0]))
        backend.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[first])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[0])


QWEN = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
GEMMA = ("<eos>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>")
DEEPSEEK = ("<eos>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")  # noqa: RUF001


@pytest.mark.parametrize(
    ("special", "bos", "expected", "ends"),
    [
        (QWEN, False, [3, 0, 5, 1, 4], {2}),
        (GEMMA, True, [2, 3, 0, 5, 1, 4], {6}),
        (DEEPSEEK, True, [2, 3, 0, 4, 1, 5], set()),
    ],
)
def test_gaps_of_other_families(special: tuple[str, ...], bos: bool, expected: list[int], ends: set[int]) -> None:
    made = Prompts(GenerationTokenizer(other_kind(*special, bos=bos)), frozenset(), 10**6)(Fill("a", "b"))
    assert list(made.ids) == expected
    assert made.stop_ids == ends


def test_fill_tokens_beyond_the_weights_are_ignored() -> None:
    """transformers adds those of a gap to any tokeniser of CodeLlama's class."""
    rows = reader(codellama()).id_of("▁<MID>")
    assert rows
    assert not Prompts(reader(codellama()), END, rows).fill
    made = Prompts(GenerationTokenizer(other_kind(*GEMMA, bos=True)), frozenset(), 6)(Fill("a", "b"))
    assert made.stop_ids == frozenset()


def test_added_tokens_around_a_gap_are_text() -> None:
    """So are Qwen's; but runs of spaces are found, as the model knows them."""
    tokenizer = other_kind(*QWEN, bos=False)
    plain = [AddedToken(name, special=False, normalized=False) for name in ("<|fim_pad|>", "<|file_sep|>", "    ")]
    tokenizer.add_tokens(plain)
    read = GenerationTokenizer(tokenizer)
    ids = read.encode_within("a<|fim_pad|>    b")
    assert read.id_of("<|fim_pad|>") not in ids
    assert read.id_of("    ") in ids
    assert read.encode("<|fim_pad|>") == [read.id_of("<|fim_pad|>")]
    ends = {read.id_of(name) for name in ("<|endoftext|>", "<|fim_pad|>", "<|file_sep|>")}
    assert Prompts(read, frozenset(), 100)(Fill("a", "b")).stop_ids == ends


def test_no_eos_is_appended_to_a_prompt() -> None:
    tokenizer = other_kind("<eos>", bos=False)
    end = ("<eos>", 2)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[end]
    )
    assert list(Prompts(GenerationTokenizer(tokenizer), END, 100)(Plain("ab")).ids) == [2, 0, 1]
