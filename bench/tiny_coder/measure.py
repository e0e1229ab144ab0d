"""How well a causal language model predicts texts: bits per byte, in reading order; and how new the texts are to it."""

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .tokens import Ids, encode


@torch.inference_mode()
def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], window: int | None = None
) -> float:
    """The cost of all bytes of the texts, each begun after the end-of-text token.

    window: the most tokens seen at a time; the model's whole context if not given. It moves by half of itself, so that
    past its first place each token is predicted from at least half a window.
    """
    model.eval()  # type: ignore[no-untyped-call]
    window = window or model.config.max_position_embeddings
    nats = sum(_nats(model, [tokenizer.bos_token_id, *ids], window) for ids in encode(tokenizer, texts))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def _nats(model: LlamaForCausalLM, ids: Ids, window: int) -> float:
    half = window // 2
    total = 0.0
    for start in range(0, max(1, len(ids) - 1 - window + half), half):
        chunk = torch.tensor(ids[start : start + window + 1])
        known = window - half if start else 0
        logits = model(input_ids=chunk[None, :-1], use_cache=False).logits[0, known:]
        total += float(cross_entropy(logits.float(), chunk[known + 1 :], reduction="sum"))
    return total


def repeated(texts: Sequence[str], trained: Sequence[str], characters: int = 80) -> float:
    """The share of the texts' passages of so many characters that stand in a training text, too."""
    passages = [text[i : i + characters] for text in texts for i in range(0, len(text) - characters, characters)]
    known = "\0".join(trained)
    return sum(passage in known for passage in passages) / max(1, len(passages))
