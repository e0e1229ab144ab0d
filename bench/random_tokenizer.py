"""A small tokeniser of Qwen2's kind, and its files, for model repositories with random weights. Knows no model."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_WORDS = """
def return import from class self for while if else elif try except finally with yield lambda raise not in is None
True False print range len list dict set tuple str int float open read write close append items keys values sorted
function const let var new this async await public private static void include struct enum match fn mut impl
SELECT FROM WHERE GROUP BY ORDER JOIN ON INSERT INTO UPDATE DELETE the of a and to how do I read file line by over
"""


def small_tokenizer() -> Tokenizer:
    """A byte-level BPE of Qwen2's kind with a few hundred merges, learned from words of code."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_WORDS.splitlines(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write it as Qwen2's repositories hold theirs, `add_eos_token` included, which transformers 5 ignores."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIALS
    }
    end = SPECIALS[0]
    tokenizer_config = {
        "add_prefix_space": False,
        "add_eos_token": True,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIALS[1:]),
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": end,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_json(
        folder / "special_tokens_map.json",
        {"additional_special_tokens": list(SPECIALS[1:]), "eos_token": end, "pad_token": end},
    )


def write_json(file: Path, value: Any) -> None:
    """As the files of a repository are written."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
