"""A chat as token ids: the special tokens that its template writes are special, those in a content are text.

Before the template runs, special tokens in the contents get stand-ins, so that those in what comes of it are the
template's own. These get names that nobody can guess, under which alone a tokeniser of its own knows them; then the
stand-ins become again what they stood for. So a text is cut exactly as the model's tokeniser cuts it.
"""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerFast

from ..sandbox.templates import renderer
from .tokenizer_state import State, built

MOST_SPECIAL = 20_000
_PRIVATE_USE = range(0xF0000, 0x10FFFE)
_READS = r"""\(\s*['"]{0}['"]|['"]{0}['"]\s+in\b"""
"""How a template looks for a token in a content, as in `content.split('</think>')`."""


class ChatTemplate:
    """A tokeniser's chat template. Thread-safe.

    Special are the tokens that are marked so, and those that stand in the template. One of the latter that the template
    looks for in a content, such as `</think>`, stays a token in the turns of the assistant, whose own markup it is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, state: State) -> None:
        """state: the tokeniser's description, as in tokenizer.json."""
        template = tokenizer.chat_template
        self._template = tokenizer
        self._source: str = template if isinstance(template, str) else "\n".join(template.values())
        if isinstance(template, str):
            renderer(template).warm()
        added = state["added_tokens"]
        special = [token for token in added if self._is_special(token)]
        if len(special) > MOST_SPECIAL:
            raise ValueError(f"its tokeniser has {len(special)} special tokens, and a chat is searched for each")
        key = secrets.token_hex(8)
        self._names = {
            token["content"]: f"<{key}.{token['id']}>"
            for token in sorted(special, key=lambda token: len(token["content"]), reverse=True)
        }
        self._read = frozenset(
            token["content"]
            for token in special
            if not token["special"] and re.search(_READS.format(re.escape(token["content"])), self._source)
        )
        self._beginnings = tuple({name[:end] for name in self._names for end in range(1, len(name))})
        self._endings = tuple({name[start:] for name in self._names for start in range(1, len(name))})
        renamed = [token | {"content": self._names.get(token["content"], token["content"])} for token in added]
        self._tokenizer = built({**state, "added_tokens": renamed})
        ids = (self._tokenizer.token_to_id(token["content"]) for token in renamed)
        self._ids = dict(zip(ids, (token["id"] for token in added), strict=True))

    def _is_special(self, token: Mapping[str, Any]) -> bool:
        return not token["content"].isspace() and (token["special"] or token["content"] in self._source)

    def role(self, role: str) -> str:
        """The template's own word for a role. Raises ValueError where it has none.

        A developer is a system elsewhere. Who knows no tools may still write whatever role there is.
        """
        if re.search(f"['\"]{role}['\"]", self._source) or role not in ("developer", "tool"):
            return role
        if role == "developer":
            return "system"
        with suppress(Exception):  # a template is a program of the model's author
            if role in self.text([{"role": role, "content": ""}]):
                return role
        raise ValueError(f"it has no turns of the role {role!r}")

    def text(self, turns: Sequence[Mapping[str, str]], continue_final: bool = False) -> str:
        """What the template makes of {"role", "content"} turns, for `encode`: up to where the answer begins, or with
        continue_final to the end of the last content.

        Raises whatever transformers does, and RenderFailed: the template is the model's own code, which runs elsewhere.
        """
        stand_ins = _StandIns(turn["content"] for turn in turns)
        shown = [{**turn, "content": self._hidden(turn, stand_ins)} for turn in turns]
        text = str(
            self._template.apply_chat_template(
                shown, add_generation_prompt=not continue_final, continue_final_message=continue_final, tokenize=False
            )
        )
        for token, name in self._names.items():
            text = text.replace(token, name)
        return stand_ins.removed(text)

    def encode(self, text: str) -> list[int]:
        """The ids of what `text` gave."""
        ids = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return [self._ids.get(token, token) for token in ids]

    def _hidden(self, turn: Mapping[str, str], stand_ins: "_StandIns") -> str:
        """A turn's content in which no special token stands, begins or ends."""
        content, kept = turn["content"], self._read if turn["role"] == "assistant" else frozenset()
        for token in self._names:
            if token in content and token not in kept:
                content = content.replace(token, stand_ins[token[0]] + token[1:])
        body = content.strip()
        if body.endswith(self._beginnings):
            end = len(content.rstrip()) - 1
            content = content[:end] + stand_ins[content[end]] + content[end + 1 :]
        if body.startswith(self._endings):
            start = len(content) - len(content.lstrip())
            content = content[:start] + stand_ins[content[start]] + content[start + 1 :]
        return content


class _StandIns(dict[str, str]):
    """Characters, each behind the one that it stands for. No text among `texts` has any of them."""

    def __init__(self, texts: Iterator[str]) -> None:
        taken = set(chain.from_iterable(texts))
        self._free = (character for character in map(chr, _PRIVATE_USE) if character not in taken)

    def __missing__(self, character: str) -> str:
        self[character] = stand_in = next(self._free)
        return stand_in

    def removed(self, text: str) -> str:
        """A text with what they stand for."""
        return text.translate({ord(stand_in): character for character, stand_in in self.items()})
