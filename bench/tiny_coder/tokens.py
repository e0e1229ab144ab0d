"""From text to token ids: the vocabulary, fill-in-the-middle, and an epoch of training as one long stream of ids."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .sources import Source

Ids: TypeAlias = list[int]

VOCABULARY = 4096
END, PREFIX, MIDDLE, SUFFIX = SPECIAL = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>")
"""As StarCoder names them."""
WORDS = r"[^\s\p{L}\p{N}_]?[\p{L}_]+| [\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s*\n *|\s+"
"""What no token crosses: a name and a sign before it, digits, signs, a line's end with the next one's indentation."""
PIECE_CHARACTERS = (200, 4000)
"""The shortest and the longest piece of a file that is rearranged to fill in its middle."""


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
    """The ids of each text, in which special tokens stand for themselves; none is added."""
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [e.ids for e in encoded]


def stream(
    tokenizer: PreTrainedTokenizerFast, sources: Sequence[Source], seed: str, fim_rate: float
) -> NDArray[np.uint16]:
    """One pass over the files in a new order, each ended by `<|endoftext|>`.

    seed: names the pass; the same one gives the same ids. fim_rate: the share of files cut to pieces to be filled in.
    -> (tokens,) ids.
    """
    rng = random.Random(seed)
    texts: list[str] = []
    for source in rng.sample(list(sources), len(sources)):
        pieces = rearranged(source.text, rng) if rng.random() < fim_rate else [source.text]
        texts += [piece + END for piece in pieces]
    return np.concatenate([np.array(ids, np.uint16) for ids in encode(tokenizer, texts)])


def rearranged(text: str, rng: random.Random) -> Iterator[str]:
    """Cut a text into pieces at any character; each piece with its middle moved to its end, and the parts marked."""
    start = 0
    while start < len(text):
        piece = text[start : start + rng.randint(*PIECE_CHARACTERS)]
        first, second = sorted(rng.randint(0, len(piece)) for _ in range(2))
        yield PREFIX + piece[:first] + SUFFIX + piece[second:] + MIDDLE + piece[first:second]
        start += len(piece)
