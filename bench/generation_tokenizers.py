"""Small tokenisers of CodeLlama's and StarCoder's kinds, and their files, for generators with random weights.

Owns the two layouts. Knows no model.
"""

import inspect
import json
import textwrap
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .random_tokenizer import write_json

LLAMA_SPECIALS = ("<unk>", "<s>", "</s>")
CODELLAMA_FILL = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
STARCODER_SPECIALS = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")

CHAT_TEMPLATE = (
    "{% set turns = messages %}{% set system = '' %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set turns = messages[1:] %}{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% endif %}"
    "{% for turn in turns %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('the roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{% set content = (system if loop.first else '') + turn['content'] %}"
    "{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
"""In the form that CodeLlama's instructed models learned."""


@cache
def sentencepiece_bpe(merges: int = 256) -> Tokenizer:
    """A BPE as CodeLlama's file describes it: spaces as `▁`, one before the text, bytes for what it does not know."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=merges + 128, limit_alphabet=128, show_progress=False)
    trained.train_from_iterator(_sources(), trainer)
    learned = json.loads(trained.to_str())["model"]
    # As SentencePiece orders them: the specials, the bytes, what was merged, single characters.
    pieces = sorted(learned["vocab"], key=lambda piece: (len(piece) == 1, learned["vocab"][piece]))
    names = [*LLAMA_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {name: place for place, name in enumerate(names)}
    pairs = [(left, right) for left, right in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_specials(tokenizer, LLAMA_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@cache
def byte_level_bpe(merges: int = 256) -> Tokenizer:
    """A BPE over bytes as StarCoder's file describes it: the special tokens first, every digit alone."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(STARCODER_SPECIALS) + 256 + merges,
        special_tokens=list(STARCODER_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sources(), trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def write_sentencepiece_bpe(folder: Path, *, fill: bool = True, chat: bool = True) -> int:
    """Write it as CodeLlama's repositories hold theirs -> its number of tokens.

    fill: with the tokens that fill in the middle, as a CodeLlamaTokenizer; else as a LlamaTokenizer. chat: with a
    template.
    """
    tokenizer = Tokenizer.from_str(sentencepiece_bpe().to_str())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config: dict[str, Any] = {**names, "tokenizer_class": "LlamaTokenizer"}
    if fill:
        _add_specials(tokenizer, CODELLAMA_FILL)
        prefix, suffix, middle, end = CODELLAMA_FILL
        config |= {
            "additional_special_tokens": list(CODELLAMA_FILL),
            "eot_token": end,
            "fill_token": "<FILL_ME>",
            "middle_token": middle,
            "prefix_token": prefix,
            "suffix_first": False,
            "suffix_token": suffix,
            "tokenizer_class": "CodeLlamaTokenizer",
        }
    if chat:
        config["chat_template"] = CHAT_TEMPLATE
    extra: dict[str, Any] = {
        "legacy": None,
        "pad_token": None,
        "sp_model_kwargs": {},
        "use_default_system_prompt": False,
    }
    _write(folder, tokenizer, config | extra)
    return tokenizer.get_vocab_size()


def write_byte_level_bpe(folder: Path) -> int:
    """Write it as StarCoder's repositories hold theirs -> its number of tokens."""
    tokenizer = byte_level_bpe()
    end = STARCODER_SPECIALS[0]
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": list(STARCODER_SPECIALS),
        "bos_token": end,
        "eos_token": end,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": end,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    tokenizer.model.save(str(folder))
    _write(folder, tokenizer, config)
    return tokenizer.get_vocab_size()


def _write(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(place): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for place, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    common = {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False, "model_max_length": 10**30}
    write_json(folder / "tokenizer_config.json", config | common)
    special = ("additional_special_tokens", "bos_token", "eos_token", "unk_token")
    write_json(folder / "special_tokens_map.json", {name: config[name] for name in special if name in config})


def _add_specials(tokenizer: Tokenizer, names: tuple[str, ...]) -> None:
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def _sources() -> list[str]:
    """A little code to learn from: two modules of the standard library."""
    return [line for module in (textwrap, tokenize) for line in inspect.getsource(module).splitlines()]
