"""What the files beside an ONNX graph say of its model: tokeniser, limits, prompts, pooling.

Reads the conventions of transformers and sentence-transformers. Knows nothing of the graph.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable
from .onnx_pooling import POOLINGS, Pooling

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POSITIONS_LOST = dict.fromkeys(("camembert", "data2vec-text", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"), 2)
"""What architectures count their positions from, behind that of the padding."""
LONGEST_BELIEVED = 1_000_000  # tokenisers without a maximum length state an astronomical one


class OnnxFolder:
    """The facts of one folder, which the entry's own win over."""

    def __init__(self, spec: ModelSpec, folder: Path) -> None:
        """Raises ModelUnavailable where the tokeniser cannot be read."""
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
        """The most tokens of a text. Raises ModelUnavailable where nothing states it."""
        tokenizer = self._limit("tokenizer_config.json", "model_max_length")
        sentences = self._limit("sentence_bert_config.json", "max_seq_length")
        positions = self._positions()
        # An entry may go past what the authors cut at, but not past the positions; where no count of those is stated,
        # the tokeniser's limit is the only word on it.
        own = self._spec.max_tokens
        stated = (tokenizer, sentences, positions) if own is None else (own, positions or tokenizer)
        believed = [limit for limit in stated if limit is not None]
        if not believed:
            raise self._unavailable("it states no maximum length; give `max_tokens` in its entry")
        return min(believed)

    @property
    def truncate_dim(self) -> int | None:
        """To which length its vectors are cut, where the folder says so. Raises ModelUnavailable where that is none."""
        return self._limit("config_sentence_transformers.json", "truncate_dim")

    @property
    def pad_id(self) -> int:
        """The id that fills up short texts; some graphs know by it what is padded."""
        if self.tokenizer.padding is not None:
            return int(self.tokenizer.padding["pad_id"])
        token = self._tokenizer_config.get("pad_token")
        name = token.get("content") if isinstance(token, dict) else token
        found = self.tokenizer.token_to_id(name) if isinstance(name, str) else self._config.get("pad_token_id")
        return found if isinstance(found, int) else 0

    def pooling(self) -> Pooling:
        """How hidden states are pooled: as the entry says, else the folder, else by their mean.

        Raises ModelUnavailable where that is not done here.
        """
        folder = next((path for kind, path in self._modules() if kind == "Pooling"), "1_Pooling")
        config = self._json(f"{folder}/config.json")
        mode = self._spec.pooling or _mode(config)
        if mode not in POOLINGS:
            raise self._unavailable(f"its pooling {mode!r} is none of {', '.join(POOLINGS)}; correct `pooling`")
        return Pooling(mode, bool(config.get("include_prompt", True)))

    def require_complete(self) -> None:
        """Raises ModelUnavailable where a module would have to follow that is not run here."""
        undone = [kind for kind, _ in self._modules()[1:] if kind not in ("Pooling", "Normalize")]
        if undone:
            reason = f"a module {undone[0]} comes behind its graph, and is not run outside of one"
            raise self._unavailable(f"{reason}; export all of it, with an output sentence_embedding")

    def _positions(self) -> int | None:
        """The tokens of the longest text that its positions are enough for; None where it states none."""
        positions = self._limit("config.json", "max_position_embeddings")
        return positions and max(1, positions - POSITIONS_LOST.get(str(self._config.get("model_type")), 0))

    def _limit(self, file: str, field: str) -> int | None:
        """A length that a file states. Raises ModelUnavailable where it is none."""
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
        except Exception as error:  # which is all that the Rust library raises
            raise self._unavailable(f"its tokenizer.json cannot be read ({error}); use another copy") from error

    def _json(self, name: str) -> dict[str, Any]:
        found = self._read(name)
        if found is not None and not isinstance(found, dict):
            raise self._unavailable(f"its {name} is not a JSON object; use another copy")
        return found or {}

    def _read(self, name: str) -> Any:
        """What a JSON file holds; None where there is none."""
        path = self._folder / name
        try:
            return json.loads(path.read_text("utf-8")) if path.is_file() else None
        except (OSError, ValueError, RecursionError) as error:
            raise self._unavailable(f"its {name} is not JSON; use another copy") from error

    def _unavailable(self, reason: str) -> ModelUnavailable:
        return ModelUnavailable(self._spec.id, f"{reason}")


def _mode(config: dict[str, Any]) -> str:
    """The mode of a pooling module, from the compact form of its configuration or that with a boolean a mode."""
    modes = config.get("pooling_mode") or [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)] or "mean"
    return " + ".join(map(str, modes)) if isinstance(modes, list) else str(modes)
