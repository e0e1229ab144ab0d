"""Facts from the files beside an ONNX graph: tokeniser, limits, prompts, pooling.

Follows the conventions of transformers and sentence-transformers.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable
from .base import Tokens, Vectors
from .onnx_session import Array

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POSITIONS_LOST = dict.fromkeys(("camembert", "data2vec-text", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"), 2)
"""First position of a text, in architectures that count positions behind that of the padding."""
LONGEST_BELIEVED = 1_000_000  # tokenisers without a maximum length state an astronomical one


def _weighted_mean(hidden: Vectors, first: int) -> Vectors:
    weights = np.arange(first + 1, first + len(hidden) + 1, dtype=np.float32)
    mean: Vectors = np.einsum("t,td->d", weights, hidden) / weights.sum()
    return mean


POOLINGS: dict[str, Callable[[Vectors, int], Vectors]] = {
    "mean": lambda hidden, first: hidden.mean(axis=0),
    "cls": lambda hidden, first: hidden[0],
    "lasttoken": lambda hidden, first: hidden[-1],
    "max": lambda hidden, first: hidden.max(axis=0),
    "mean_sqrt_len_tokens": lambda hidden, first: hidden.sum(axis=0) / np.float32(len(hidden) ** 0.5),
    "weightedmean": _weighted_mean,
}
"""From a text's hidden states (T, D) float32, the first at position `first`, to its vector (D,)."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How hidden states become a vector. include_prompt: whether the prompt's tokens count."""

    mode: str = "mean"
    include_prompt: bool = True

    def __call__(self, hidden: Array, batch: Sequence[Tokens]) -> Vectors:
        """hidden (B, T, D) of any float -> (B, D) float32. A text without tokens that count gets zeros."""
        vectors = np.zeros((len(batch), hidden.shape[2]), dtype=np.float32)
        pool = POOLINGS[self.mode]
        for row, states, tokens in zip(vectors, hidden, batch, strict=True):
            first = 0 if self.include_prompt else tokens.prompt_tokens
            if first < len(tokens):
                row[:] = pool(states[first : len(tokens)].astype(np.float32, copy=False), first)
        return vectors


class OnnxFolder:
    """The facts of one folder, overridden by the entry."""

    def __init__(self, spec: ModelSpec, folder: Path) -> None:
        """Raises ModelUnavailable."""
        self._spec, self._folder = spec, folder
        self._tokenizer_config = self._json("tokenizer_config.json")
        self._config = self._json("config.json")
        sentences = self._json("config_sentence_transformers.json")
        self.prompts: dict[str, str] = self._prompts(sentences.get("prompts") or {}) | spec.prompts
        self.default_prompt: str | None = spec.default_prompt or sentences.get("default_prompt_name")
        if self.default_prompt not in (None, *self.prompts):
            known = ", ".join(self.prompts) or "none"
            raise self._unavailable(f"it has no prompt {self.default_prompt!r}, only {known}; correct `default_prompt`")
        modalities = self._json("sentence_bert_config.json").get("modality_config")
        if isinstance(modalities, dict) and "message" in modalities:
            reason = "by its modality_config texts go through a chat template, which is for torch models"
            raise self._unavailable(f"{reason}; serve its torch form")
        self.tokenizer = self._tokenizer()

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens. Raises ModelUnavailable if nothing states it."""
        tokenizer = self._limit("tokenizer_config.json", "model_max_length")
        sentences = self._limit("sentence_bert_config.json", "max_seq_length")
        positions = self._positions()
        # An entry may exceed the authors' limits but not the positions, for which the tokeniser's limit stands in if
        # they are not stated.
        own = self._spec.max_tokens
        stated = (tokenizer, sentences, positions) if own is None else (own, positions or tokenizer)
        believed = [limit for limit in stated if limit is not None]
        if not believed:
            raise self._unavailable("it states no maximum length; give `max_tokens` in its entry")
        return min(believed)

    @property
    def truncate_dim(self) -> int | None:
        """Length to which vectors are cut, if stated. Raises ModelUnavailable if it is not a length."""
        return self._limit("config_sentence_transformers.json", "truncate_dim")

    @property
    def pad_id(self) -> int:
        """The id of padding; some graphs recognise padding by it."""
        if self.tokenizer.padding is not None:
            return int(self.tokenizer.padding["pad_id"])
        token = self._tokenizer_config.get("pad_token")
        name = token.get("content") if isinstance(token, dict) else token
        found = self.tokenizer.token_to_id(name) if isinstance(name, str) else self._config.get("pad_token_id")
        return found if isinstance(found, int) else 0

    def pooling(self) -> Pooling:
        """The pooling that the entry states, else the folder's, else the mean.

        Raises ModelUnavailable if it is not supported.
        """
        folder = next((path for kind, path in self._modules() if kind == "Pooling"), "1_Pooling")
        config = self._json(f"{folder}/config.json")
        mode = self._spec.pooling or _mode(config)
        if mode not in POOLINGS:
            raise self._unavailable(f"its pooling {mode!r} is none of {', '.join(POOLINGS)}; correct `pooling`")
        return Pooling(mode, bool(config.get("include_prompt", True)))

    def require_complete(self) -> None:
        """Raises ModelUnavailable if other modules have to follow the graph and its pooling."""
        undone = [kind for kind, _ in self._modules()[1:] if kind not in ("Pooling", "Normalize")]
        if undone:
            reason = f"a module {undone[0]} comes behind its graph, and is not run outside of one"
            raise self._unavailable(f"{reason}; export all of it, with an output sentence_embedding")

    def _positions(self) -> int | None:
        """Longest text by its number of positions; None if not stated."""
        positions = self._limit("config.json", "max_position_embeddings")
        return positions and max(1, positions - POSITIONS_LOST.get(str(self._config.get("model_type")), 0))

    def _limit(self, file: str, field: str) -> int | None:
        """A length from a file, if stated. Raises ModelUnavailable if it is not a length."""
        found = self._json(file).get(field)
        if found is None or (isinstance(found, int | float) and found >= LONGEST_BELIEVED):
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not found >= 1:
            raise self._unavailable(f"its {file} has {field} {found!r}, which is no length; correct it there")
        return int(found)

    def _prompts(self, found: Any) -> dict[str, str]:
        if not isinstance(found, dict) or not all(isinstance(text, str | None) for text in found.values()):
            reason = "the `prompts` of its config_sentence_transformers.json are no names with texts"
            raise self._unavailable(f"{reason}; correct them there")
        return {name: text or "" for name, text in found.items()}

    def _modules(self) -> list[tuple[str, str]]:
        """Class and folder of each module that sentence-transformers would run."""
        try:
            modules = self._read("modules.json") or []
            return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
        except (KeyError, TypeError) as error:
            raise self._unavailable("its modules.json is not a list of modules; use another copy") from error

    def _tokenizer(self) -> Tokenizer:
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise self._unavailable(f"there is no tokenizer.json in {self._folder}; save its fast tokeniser there")
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises nothing more specific
            raise self._unavailable(f"its tokenizer.json cannot be read ({error}); use another copy") from error

    def _json(self, name: str) -> dict[str, Any]:
        found = self._read(name)
        if found is not None and not isinstance(found, dict):
            raise self._unavailable(f"its {name} is not a JSON object; use another copy")
        return found or {}

    def _read(self, name: str) -> Any:
        """The content of a JSON file; None if there is none."""
        path = self._folder / name
        try:
            return json.loads(path.read_text("utf-8")) if path.is_file() else None
        except (OSError, ValueError, RecursionError) as error:
            raise self._unavailable(f"its {name} is not JSON; use another copy") from error

    def _unavailable(self, reason: str) -> ModelUnavailable:
        return ModelUnavailable(self._spec.id, reason)


def _mode(config: dict[str, Any]) -> str:
    """The mode of a pooling module, from either form of its configuration: a name, or a boolean per mode."""
    modes = config.get("pooling_mode") or [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)] or "mean"
    return " + ".join(map(str, modes)) if isinstance(modes, list) else str(modes)
