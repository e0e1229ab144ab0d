"""The worker with a model that costs nothing: everything but the mathematics, on $NATS_URL.

All that it takes the worker to answer a request is measured this way, from the bus to the batcher and back.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from models.encoders.base import Encoder, Text, TextOptions, Tokens, Vectors
from models.errors import TextTooLong
from models.tokenized_text import TokenizedText, Vocabulary
from service.app import serve
from service.settings import read_settings

from .responders import DIMENSIONS


class FreeEncoder(Encoder):
    """An encoder whose vectors (B, 384) are all the same."""

    model = "minilm"
    version = "000000000000-fp32"
    dimensions = DIMENSIONS
    max_tokens = 256
    dtype = "fp32"
    quantization = None
    weight_bytes = 0
    device = "cpu"
    packed = True
    normalizes = True
    prompts: Mapping[str, str] = {}
    tasks: Mapping[str, int] = {}
    matryoshka: Sequence[int] = ()
    notes = ()

    def tokenize(self, texts: Sequence[Text], options: TextOptions) -> list[Tokens | TextTooLong]:
        """The same few ids for any text."""
        return [_TOKENS for _ in texts]

    @property
    def vocabulary(self) -> Vocabulary:
        """A word for each of them."""
        return Vocabulary(Tokenizer(WordLevel({str(token): token for token in _TOKENS.ids}, unk_token="0")))

    def tokenized(self, text: str, options: TextOptions, special: bool = True, offsets: bool = True) -> TokenizedText:
        """The same few ids."""
        return TokenizedText(_TOKENS.ids)

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        """Ones (B, 384) float32."""
        return np.ones((len(batch), DIMENSIONS), dtype=np.float32)

    def close(self) -> None:
        """There are no weights to let go of."""


_TOKENS = Tokens(ids=list(range(16)))


if __name__ == "__main__":
    sys.exit(asyncio.run(serve(read_settings(), loaded=[FreeEncoder()])))
