"""A gap with files of its repository before it, against ids built by hand in each family's published form."""

from collections.abc import Callable
from functools import cache

import pytest
from generation_models import codellama
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bench.generation_tokenizers import byte_level_bpe
from models.catalogue import load_catalogue
from models.generation.fill import LEAST_CUT
from models.generation.prompt import Prompts
from models.generation.tokenizer import GenerationTokenizer
from models.generation.types import ContextFile, Fill
from models.weights.hub import locate

STARCODER = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
QWEN = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
FILES = (
    ContextFile("src/far.py", "import os\n\n\ndef far(path):\n    return os.stat(path)"),
    ContextFile("near.rs", "fn near() -> i32 {\n    42\n}\n"),
)
OWN = {"path": "src/own.py", "repository": "me/project"}
GAP = Fill("    def f(x):\n        return ", "\n\nprint(f(1))\n", FILES, **OWN)


@cache
def family(*tokens: str) -> Tokenizer:
    """A small tokenizer over bytes with these special tokens."""
    state = byte_level_bpe().to_str()
    for token in STARCODER:  # the tokenizer has these
        state = state.replace(token, tokens[STARCODER.index(token)])
    tokenizer = Tokenizer.from_str(state)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    return tokenizer


def prompts(tokenizer: Tokenizer, **options: str) -> Prompts:
    read = GenerationTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    return Prompts(read, frozenset(), tokenizer.get_vocab_size(), **options)


STARCODER_2 = family(*STARCODER, "<repo_name>", "<file_sep>")
STARCODER_1 = family(*STARCODER, "<reponame>", "<filename>")
QWEN_CODER = family(*QWEN)
FAR, NEAR = FILES
FORMS = {
    "starcoder2": (
        STARCODER_2,
        f"<repo_name>me/project<file_sep>src/far.py\n{FAR.text}<file_sep>near.rs\n{NEAR.text}<file_sep><fim_prefix>"
        f"src/own.py\n{GAP.prefix}<fim_suffix>{GAP.suffix}<fim_middle>",
    ),
    "starcoder": (
        STARCODER_1,
        f"<reponame>me/project<filename>src/far.py\n{FAR.text}<filename>near.rs\n{NEAR.text}<fim_prefix><filename>"
        f"src/own.py\n{GAP.prefix}<fim_suffix>{GAP.suffix}<fim_middle>",
    ),
    "qwen": (
        QWEN_CODER,
        f"<|repo_name|>me/project\n<|file_sep|>src/far.py\n{FAR.text}\n<|file_sep|>near.rs\n{NEAR.text}\n<|file_sep|>"
        f"src/own.py\n<|fim_prefix|>{GAP.prefix}<|fim_suffix|>{GAP.suffix}<|fim_middle|>",
    ),
    "plain": (
        family(*STARCODER),
        f"<fim_prefix># src/far.py\n{FAR.text}\n\n// near.rs\n{NEAR.text}\n# src/own.py\n{GAP.prefix}"
        f"<fim_suffix>{GAP.suffix}<fim_middle>",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_repository_is_laid_out_as_the_family_was_trained(name: str) -> None:
    tokenizer, expected = FORMS[name]
    assert list(prompts(tokenizer)(GAP).ids) == tokenizer.encode(expected, add_special_tokens=False).ids


def test_codellama_reads_comments_and_text() -> None:
    oracle = AutoTokenizer.from_pretrained(codellama())
    read = GenerationTokenizer.read(codellama())
    made = Prompts(read, frozenset(), 10**6)(GAP)
    _, expected = FORMS["plain"]
    before, after = expected.removeprefix("<fim_prefix>").split("<fim_suffix>")
    names = oracle.convert_ids_to_tokens
    written = "".join(names(list(made.ids))).replace("▁<PRE>", "\0").replace("▁<SUF>", "\0").replace("▁<MID>", "\0")
    _, prefix, suffix, rest = written.replace("<0x0A>", "\n").replace("▁", " ").split("\0")
    assert (prefix, suffix, rest) == (f" {before}", after.removesuffix("<fim_middle>"), "")
    plain = oracle.backend_tokenizer.encode(before, add_special_tokens=False).ids  # with the space in front
    start = list(made.ids).index(oracle.convert_tokens_to_ids("▁<PRE>")) + 1
    assert list(made.ids)[start : start + len(plain)] == plain


def test_tiny_coder_reads_comments_and_text() -> None:
    folder = locate(load_catalogue().get("tiny_coder"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made = Prompts(GenerationTokenizer.read(folder), frozenset(), 4096)(GAP)
    assert list(made.ids) == tokenizer.encode(FORMS["plain"][1]).ids


@pytest.mark.parametrize(
    ("name", "fill", "expected"),
    [
        ("starcoder2", Fill("a", "b", FILES[1:]), "<file_sep>near.rs\n{0}<file_sep><fim_prefix>a"),
        ("starcoder2", Fill("a", "b", path="p"), "<file_sep><fim_prefix>p\na"),
        ("starcoder2", Fill("a", "b", repository="r"), "<repo_name>r<file_sep><fim_prefix>a"),
        ("starcoder2", Fill("a", "b"), "<fim_prefix>a"),
        ("starcoder", Fill("a", "b", FILES[1:]), "<filename>near.rs\n{0}<fim_prefix>a"),
        ("starcoder", Fill("a", "b", path="p"), "<fim_prefix><filename>p\na"),
        ("qwen", Fill("a", "b", FILES[1:]), "<|file_sep|>near.rs\n{0}\n<|file_sep|><|fim_prefix|>a"),
        ("qwen", Fill("a", "b", path="p"), "<|file_sep|>p\n<|fim_prefix|>a"),
        ("plain", Fill("a", "b", FILES[1:]), "<fim_prefix>// near.rs\n{0}\na"),
        ("plain", Fill("a", "b", repository="r"), "<fim_prefix>a"),
    ],
)
def test_what_is_not_known_is_left_out(name: str, fill: Fill, expected: str) -> None:
    tokenizer, _ = FORMS[name]
    bar = "|" if name == "qwen" else ""
    text = f"{expected.format(NEAR.text)}<{bar}fim_suffix{bar}>b<{bar}fim_middle{bar}>"
    assert list(prompts(tokenizer)(fill).ids) == tokenizer.encode(text).ids


@pytest.mark.parametrize("name", FORMS)
def test_the_least_near_files_are_cut_first(name: str) -> None:
    tokenizer, _ = FORMS[name]
    fill = Fill("a", "b", [ContextFile(f"f{n}.py", f"x{n} = 1\n" * 40) for n in range(4)])
    made = prompts(tokenizer)
    whole = list(made(fill).ids)
    for room in range(20, len(whole) + 2):
        ids = list(made(fill, room).ids)
        assert len(ids) <= room
        assert room - len(ids) < LEAST_CUT or len(ids) == len(whole)
        near = len(made(Fill("a", "b", fill.context[-1:])).ids)
        if room >= near:  # the nearest file is whole
            assert tokenizer.decode(ids, skip_special_tokens=False).count("x3 = 1\n") == 40
    assert list(made(fill, 0).ids) == list(made(Fill("a", "b", [ContextFile("p", "t")]), 0).ids)  # all is left out


@pytest.mark.parametrize("name", FORMS)
def test_special_tokens_in_texts_and_names_are_text(name: str) -> None:
    tokenizer, _ = FORMS[name]
    special = "".join(token.content for token in tokenizer.get_added_tokens_decoder().values())
    clean = Fill("a", "b", [ContextFile("p", "t")], "own", "repo")
    foul = Fill(special, special, [ContextFile(special, special)], special, special)
    count: Callable[[Fill], list[int]] = lambda fill: [  # noqa: E731
        token for token in prompts(tokenizer)(fill).ids if token in tokenizer.get_added_tokens_decoder()
    ]
    assert count(foul) == count(clean)


def test_the_tokens_of_the_layout_end_the_middle() -> None:
    ids = {STARCODER_2.token_to_id(name) for name in ("<repo_name>", "<file_sep>")}
    assert prompts(STARCODER_2)(Fill("a", "b")).stop_ids == ids
    assert prompts(family(*STARCODER))(Fill("a", "b")).stop_ids == frozenset()


def test_an_entry_may_state_the_layout() -> None:
    both = family(*STARCODER, "<repo_name>", "<file_sep>", "<reponame>", "<filename>")
    for name in ("starcoder", "starcoder2"):
        expected = both.encode(FORMS[name][1]).ids
        assert list(prompts(both, layout=name)(GAP).ids) == expected
    assert list(prompts(both, layout="plain")(GAP).ids) == both.encode(FORMS["plain"][1]).ids
    with pytest.raises(ValueError, match=r"has no <\|repo_name\|> and <\|file_sep\|>"):
        prompts(both, layout="qwen")
