"""The static encoder: a tokeniser and a table of token vectors, of which a text gets the mean.

Owns the way from token ids through sentence-transformers' StaticEmbedding; model2vec's models are of this kind too.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from ..catalogue import ModelSpec, Quantization
from ..errors import CannotQuantize
from .base import Tokens
from .modules import static_embedding
from .sentence_encoder import SentenceEncoder, check_facts
from .tokenise import TextTokenizer

MAX_TOKENS = 1_000_000
"""Of a text where neither the entry nor the tokeniser says: as many as the longest text has characters."""


class StaticEncoder(SentenceEncoder):
    """An Encoder over a StaticEmbedding and what follows it. A text without any token gets zeros."""

    packed = True

    def __init__(
        self,
        spec: ModelSpec,
        digest: str,
        source: SentenceTransformer,
        device: torch.device,
        quantization: Quantization | None = None,
    ) -> None:
        """Raises ModelUnavailable, CannotQuantize."""
        if quantization is not None:
            raise CannotQuantize(quantization, "a table of token vectors has no linear layers")
        check_facts(spec, source)
        table = static_embedding(source)
        limit = (table.tokenizer.truncation or {}).get("max_length", MAX_TOKENS)
        tokenizer = TextTokenizer(table.tokenizer, min(limit, spec.max_tokens or limit), special=False)
        super().__init__(spec, digest, source, device, table.embedding.weight.dtype, None, tokenizer)

    def _read(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        ids = torch.tensor([i for tokens in batch for i in tokens.ids], dtype=torch.long)
        starts = torch.tensor(list(accumulate(map(len, batch[:-1]), initial=0)))
        features = self._first({"input_ids": ids.to(self.device), "offsets": starts.to(self.device)})
        return {"sentence_embedding": features["sentence_embedding"].float()}
