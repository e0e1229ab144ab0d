"""Token ids of a gap to fill in: the text around it, before it files of its repository, as the model was trained."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, TypeAlias

from ..catalogue import RepositoryLayout
from .errors import InvalidRequest
from .tokenizer import GenerationTokenizer
from .types import ContextFile, Fill, PromptTokens

LEAST_CUT = 32
"""A file of which fewer tokens fit is left out instead of cut."""
TOKEN_CHARS = 128
"""More characters than any tokenizer has in a token on average: what is behind so many is cut off in any case."""
Ids: TypeAlias = list[int]


@dataclass(frozen=True, slots=True)
class FillForm:
    """Tokens before the prefix, the suffix and the middle. ends: those that end the middle, where the model has them.
    lead: text put before a prefix that is not empty."""

    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...] = ()
    lead: str = ""


_QWEN_ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>")
"""Qwen's and Gemma's, which use the same form."""
_FORMS = (
    FillForm("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",), lead=" "),  # CodeLlama
    FillForm("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, tiny_coder
    FillForm("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", _QWEN_ENDS),
    FillForm("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek  # noqa: RUF001
)


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """How a model with tokens for it was shown a repository. repository, file: those before a name and before a path.

    after: what follows a repository's name and a file's text. own: where the path of the file with the gap is, with
    its token: before the prefix; in it; or split, the token before it and the path in it.
    """

    repository: str
    file: str
    own: Literal["before", "in", "split"]
    after: str = ""


_LAYOUTS: Mapping[RepositoryLayout, TokenLayout] = {
    # <repo_name>name<file_sep>path\ntext<file_sep><fim_prefix>path\nprefix…: section 5.1 of StarCoder 2's paper
    "starcoder2": TokenLayout("<repo_name>", "<file_sep>", "split"),
    # <|repo_name|>name\n<|file_sep|>path\ntext\n<|file_sep|>path\n<|fim_prefix|>prefix…: Qwen2.5-Coder's examples
    "qwen": TokenLayout("<|repo_name|>", "<|file_sep|>", "before", after="\n"),
    # <reponame>name<filename>path\ntext<fim_prefix><filename>path\nprefix…: StarCoder's documents begin so, and its
    # gaps were made inside them
    "starcoder": TokenLayout("<reponame>", "<filename>", "in"),
}
_COMMENTS = {
    "//": "c cc cpp cs cxx dart go groovy h hpp java js jsx kt kts m mjs php proto rs scala scss sol swift ts tsx zig",
    "--": "adb ads elm hs lua sql vhd vhdl",
    "%": "erl hrl m4 pl tex",
    ";": "asm clj cljs el lisp lsp scm",
}
_COMMENT_OF = {f".{suffix}": mark for mark, suffixes in _COMMENTS.items() for suffix in suffixes.split()}


class FillTokenizer:
    """Makes the ids of gaps for a model. rows: of its weights. layout: as its entry states; None: by its tokens.

    All texts are read as parts of a longer one, without special tokens in them. Raises ValueError, with a clause, if
    the tokeniser lacks a token of the stated layout.
    """

    def __init__(self, tokenizer: GenerationTokenizer, rows: int, layout: RepositoryLayout | None = None) -> None:
        self._tokenizer = tokenizer
        self._rows = rows
        self._form = next((form for form in _FORMS if self._has(form.prefix, form.suffix, form.middle)), None)
        by_tokens = (known for known in _LAYOUTS.values() if self._has(known.repository, known.file))
        self._layout = next(by_tokens, None) if layout is None else _LAYOUTS.get(layout)
        if self._layout and not self._has(self._layout.repository, self._layout.file):
            raise ValueError(f"its tokeniser has no {self._layout.repository} and {self._layout.file}")

    @property
    def supported(self) -> bool:
        """Whether the model has tokens to fill in the middle."""
        return self._form is not None

    def __call__(self, fill: Fill, room: int) -> PromptTokens:
        """The ids, with as much of the context as makes at most `room`, and those that end the middle.

        A space goes before a CodeLlama prefix and none before its suffix, as in CodeLlama's own code; transformers 5
        puts one before both. Raises InvalidRequest.
        """
        if self._form is None:
            raise InvalidRequest("prefix", "this model has no tokens to fill in the middle; send `prompt` instead")
        if not fill.prefix and not fill.suffix:
            raise InvalidRequest("prefix", "there is nothing before or behind the gap; send some text")
        form, fixed = self._form, self._tokenizer.prefix_ids
        repository, opening, text = self._own(form, fill)
        ids = self._within(text and form.lead + text)
        tail = [*self._ids((form.suffix,)), *self._within(fill.suffix), *self._ids((form.middle,))]
        taken = len(fixed) + len(repository) + len(opening) + len(ids) + len(tail)
        files = self._context(fill.context, room - taken, form.lead)
        context = [token for file in files for token in file]
        if context and form.lead:
            ids = self._within(text)  # it goes before the context
        parts = (opening, context) if self._layout is None else (context, opening)
        return PromptTokens([*fixed, *repository, *parts[0], *parts[1], *ids, *tail], self._ends(form), len(files))

    def _own(self, form: FillForm, fill: Fill) -> tuple[Ids, Ids, str]:
        """The ids of the repository's name, those that open the prefix, and its text."""
        layout, token = self._layout, self._ids((form.prefix,))
        if layout is None:
            return [], token, _heading(fill.path) + fill.prefix
        name = fill.repository
        repository = [] if name is None else [*self._ids((layout.repository,)), *self._within(name + layout.after)]
        path = "" if fill.path is None else f"{fill.path}\n"
        if not (path or fill.context or repository):
            return [], token, fill.prefix
        file = self._ids((layout.file,))
        match layout.own:
            case "before":
                return repository, [*file, *self._within(path), *token], fill.prefix
            case "split":
                return repository, [*file, *token], path + fill.prefix
            case "in":
                return repository, [*token, *(file if path else [])], path + fill.prefix

    def _context(self, files: Sequence[ContextFile], room: int, lead: str) -> list[Ids]:
        """The files that make at most `room` tokens, the last ones first; the first of these may be cut."""
        kept: list[tuple[ContextFile, int, Ids]] = []
        for file in reversed(files):
            if not (ids := self._file(file, room)):
                break
            kept.append((file, room, ids))
            room -= len(ids)
        if kept and lead:
            file, room, _ = kept.pop()
            kept.append((file, room, self._file(file, room, lead)))
        return [ids for _, _, ids in reversed(kept)]

    def _file(self, file: ContextFile, room: int, lead: str = "") -> Ids:
        """A file of the context in at most `room` tokens, its end cut off if need be; empty if too little fits."""
        layout = self._layout
        head: Ids = []
        if room <= 0:
            return head
        if layout is None:
            text, end = f"{lead}{_heading(file.path)}{file.text}", "\n" * (2 - file.text.endswith("\n"))
        else:
            head, text, end = self._ids((layout.file,)), f"{file.path}\n{file.text}", layout.after
        ids = [*head, *self._within(text[: room * TOKEN_CHARS] + end)]
        if len(ids) <= room:
            return ids
        closing = self._within(end)
        return [*ids[: room - len(closing)], *closing] if room >= LEAST_CUT else []

    def _ends(self, form: FillForm) -> frozenset[int]:
        layout = self._layout
        return frozenset(self._ids((*form.ends, *((layout.repository, layout.file) if layout else ()))))

    def _within(self, text: str) -> Ids:
        return self._tokenizer.encode_within(text)

    def _has(self, *tokens: str) -> bool:
        return len(self._ids(tokens)) == len(tokens)

    def _ids(self, tokens: Iterable[str]) -> Ids:
        """The ids that the model has weights for: transformers adds CodeLlama's to every tokeniser of that class."""
        ids = map(self._tokenizer.id_of, tokens)
        return [token for token in ids if token is not None and token < self._rows]


def _heading(path: str | None) -> str:
    """A line of comment with a path, in the language that its suffix tells; without one, `#` marks it."""
    return "" if path is None else f"{_COMMENT_OF.get(PurePosixPath(path).suffix.lower(), '#')} {path}\n"
