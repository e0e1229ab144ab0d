"""The training text, Python's standard library, as token ids: files, vocabulary, fill-in-the-middle, epochs."""

import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

Ids: TypeAlias = list[int]

LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data", "html/entities.py", "site-packages"}
)
"""Tests, copies of other modules, tables, generated text, and packages that are not part of Python."""
HELD_OUT_PERCENT = 3
VOCABULARY = 4096
END, PREFIX, MIDDLE, SUFFIX = SPECIAL = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>")
"""As StarCoder names them."""
WORDS = r"[^\s\p{L}\p{N}_]?[\p{L}_]+| [\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s*\n *|\s+"
"""Tokens do not cross these: a name with a sign before it, digits, signs, a line's end with the next indentation."""
PIECE_CHARACTERS = (200, 4000)
"""The shortest and the longest piece of a file for fill-in-the-middle."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file. path: below the library's folder, with slashes."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept for evaluation. Depends on the path only, so that no run trains on it."""
        return int(sha256(self.path.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def read_sources(root: Path | None = None) -> list[Source]:
    """Read the library's modules in the order of their paths, each text once, and no file that is not UTF-8.

    root: the library's folder; this interpreter's own if not given.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    found: dict[str, Source] = {}
    folders = [folder for folder in root.iterdir() if folder.name not in LEFT_OUT]
    for file in sorted(chain(root.glob("*.py"), *(folder.rglob("*.py") for folder in folders))):
        path = file.relative_to(root).as_posix()
        if _is_wanted(path) and (text := _decoded(file.read_bytes())):
            found.setdefault(text, Source(path, text))
    return list(found.values())


def split(sources: Iterable[Source]) -> tuple[Sequence[Source], Sequence[Source]]:
    """The training and the held-out files."""
    everything = list(sources)
    return [s for s in everything if not s.held_out], [s for s in everything if s.held_out]


def _is_wanted(path: str) -> bool:
    built = path.startswith(("_sysconfigdata", "config-"))
    return not built and path not in LEFT_OUT and LEFT_OUT.isdisjoint(path.split("/"))


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return ""


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE vocabulary, the special tokens first. vocabulary: tokens in all, at least 260."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        additional_special_tokens=[PREFIX, MIDDLE, SUFFIX],
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Ids]:
    """The ids of each text. Special tokens in it are recognised; none is added."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [e.ids for e in encoded]


def stream(
    tokenizer: PreTrainedTokenizerFast, sources: Sequence[Source], seed: str, fim_rate: float
) -> NDArray[np.uint16]:
    """One pass over the files in a new order, each ended by `<|endoftext|>`.

    seed: determines the order. fim_rate: the share of files rearranged for fill-in-the-middle.
    -> (tokens,) ids.
    """
    rng = random.Random(seed)
    texts: list[str] = []
    for source in rng.sample(list(sources), len(sources)):
        pieces = rearranged(source.text, rng) if rng.random() < fim_rate else [source.text]
        texts += [piece + END for piece in pieces]
    return np.concatenate([np.array(ids, np.uint16) for ids in encode(tokenizer, texts)])


def rearranged(text: str, rng: random.Random) -> Iterator[str]:
    """Cut a text into pieces at random; in each, mark the parts and move the middle to the end."""
    start = 0
    while start < len(text):
        piece = text[start : start + rng.randint(*PIECE_CHARACTERS)]
        first, second = sorted(rng.randint(0, len(piece)) for _ in range(2))
        yield PREFIX + piece[:first] + SUFFIX + piece[second:] + MIDDLE + piece[first:second]
        start += len(piece)
