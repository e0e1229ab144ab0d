"""Hard negatives: what they are chosen by, and what is never one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from fake_encoder import FakeEncoder, word_id
from hypothesis import given, settings
from hypothesis import strategies as st

from models.encoders.base import TextOptions, Tokens
from models.errors import OutOfDeviceMemory, TextTooLong
from models.training.data.near_duplicates import duplicate_groups
from models.training.data.negatives import with_negatives
from models.training.data.pairs import PairSource
from models.training.data.records import Pair
from models.training.data.split import split

TEXTS = st.lists(
    st.sampled_from(["load", "save", "the", "a", "file", "tree", "row", "print", "sum", "(", ")", "="]),
    min_size=1,
    max_size=8,
).map(" ".join)
NAMES = st.sampled_from(["", "load_row", "load_tree", "save_row", "save_tree", "Row.load", "sum_rows"])

DOORS = [
    ("open", "Open the front door with a key", "def open(self): self.door.turn(self.key)"),
    ("close", "Close the front door and lock it", "def close(self): self.door.lock(self.key)"),
    ("paint", "Paint the front door in a colour", "def paint(self): self.door.brush(self.colour)"),
    ("weigh", "Weigh apples on the kitchen scale", "def weigh(apples): return sum(scale(one) for one in apples)"),
    ("sell", "Sell apples at the market price", "def sell(apples): return price(apples) * len(apples)"),
]


def doors() -> list[PairSource]:
    return [PairSource(Pair(anchor, code, "docstring", "python", "a.py"), f"D.{name}") for name, anchor, code in DOORS]


def chosen(sources: list[PairSource], encoder: FakeEncoder | None = None, count: int = 2) -> list[tuple[str, ...]]:
    return [each.pair.negatives for each in with_negatives(sources, count, 0, encoder)]


def test_negatives_share_words_with_the_anchor_and_score_below_the_positive() -> None:
    given = chosen(doors())
    assert all(len(each) == 2 for each in given)
    assert DOORS[4][2] in given[3]
    assert all(code not in negatives for (_, _, code), negatives in zip(DOORS, given, strict=True))


def test_a_candidate_as_near_as_the_positive_is_excluded() -> None:
    rival = PairSource(Pair("Something quite different here", "front door key", "docstring", "python", "b.py"), "rival")
    assert rival.pair.positive not in chosen([*doors(), rival], count=1)[0]


def test_a_negative_is_neither_the_same_symbol_nor_the_one_around_the_anchor() -> None:
    whole = PairSource(
        Pair("say it all again", DOORS[0][2] + " # key turns door front", "call", "python", "b.py"), "D.open"
    )
    outer = PairSource(
        Pair("say it once more", "run(front, door, key, with, a)", "call", "python", "c.py"), "Outer.run"
    )
    first = PairSource(doors()[0].pair, "D.open", "c.py", "Outer.run")
    found = chosen([first, *doors()[1:], whole, outer], count=8)[0]
    assert found
    assert not {whole.pair.positive, outer.pair.positive, first.pair.positive} & set(found)


def test_a_negative_is_neither_a_near_duplicate_nor_another_positive() -> None:
    clone = PairSource(
        Pair("some other words", DOORS[0][2].replace(" ", "  "), "docstring", "python", "b.py"), "copied"
    )
    second = PairSource(
        Pair(DOORS[0][1], "def unlatch(door): return door.pull()", "docstring", "python", "c.py"), "unlatch"
    )
    found = chosen([*doors(), clone, second], count=8)
    assert not {clone.pair.positive, second.pair.positive} & set(found[0])
    assert not {DOORS[0][2], clone.pair.positive} & set(found[-1])


def test_without_near_candidates_a_random_one_of_the_language_is_used() -> None:
    names = ["".join(letters) for letters in product("abcd", repeat=3)]
    python = [PairSource(Pair(f"say{name}", f"def do{name}(): pass", "call", "python"), name) for name in names]
    go = [PairSource(Pair(f"tell{name}", f"func go{name}() {{}}", "call", "go"), name + "go") for name in names]
    sources = python + go
    given = with_negatives(sources, 1, 0)
    assert all(each.pair.negatives[0].startswith("func") == (each.pair.language == "go") for each in given)
    assert chosen(sources, count=1) == [each.pair.negatives for each in given]
    assert [each.pair.negatives for each in with_negatives(sources, 1, 1)] != chosen(sources, count=1)


def test_held_out_pairs_get_no_negatives_and_are_none() -> None:
    sources = [replace(numbered(n), anchor_file=f"{n % 50}.py") for n in range(400)]
    parts = split(sources, 0).sources
    secret = {each.pair.positive for each in parts if each.pair.split == "held_out"}
    given = with_negatives(parts, 2, 0)
    assert all(not each.pair.negatives for each in given if each.pair.split == "held_out")
    assert all(secret.isdisjoint(each.pair.negatives) for each in given)
    assert secret


def test_an_encoder_finds_negatives_by_vectors() -> None:
    encoder = FakeEncoder()
    assert chosen(doors(), encoder) == chosen(doors(), FakeEncoder())
    assert encoder.batches


def test_texts_without_words_or_with_nan_vectors_do_no_harm() -> None:
    odd = [
        PairSource(Pair("+ - *", "( ) { }", "docstring", "c", "a.c"), "+"),
        PairSource(Pair("nan", "nan 1", "call", "c", "b.c")),
    ]
    assert chosen(odd, FakeEncoder(), 0) == [(), ()]
    assert all(len(each) <= 2 for each in chosen([*doors(), *odd], FakeEncoder()))


def test_memory_errors_are_raised() -> None:
    with pytest.raises(OutOfDeviceMemory):
        chosen(doors(), FakeEncoder(memory_tokens=1))


# Whatever the pairs are


@given(st.lists(st.tuples(TEXTS, TEXTS, NAMES, NAMES, st.booleans()), max_size=30), st.integers(0, 8), st.booleans())
@settings(max_examples=60)
def test_no_negative_could_be_right(drawn: list[tuple[str, str, str, str, bool]], count: int, by_meaning: bool) -> None:
    sources = [
        PairSource(Pair(anchor, code, "call", "python", split="held_out" if held else "train"), name, "a.py", where)
        for anchor, code, name, where, held in drawn
    ]
    given = with_negatives(sources, count, 0, FakeEncoder() if by_meaning else None)
    assert [replace(each, pair=replace(each.pair, negatives=())) for each in given] == sources
    training = [each for each in given if each.pair.split == "train"]
    assert all(not each.pair.negatives for each in given if each not in training)
    groups = grouped(sources)
    names = {each.pair.positive: each.name for each in reversed(training)}
    for each in training:
        found = [groups[text] for text in each.pair.negatives]
        assert len(found) == len(set(found)) <= count
        alike = [other for other in training if groups[other.pair.anchor] == groups[each.pair.anchor]]
        assert set(found).isdisjoint(groups[text] for other in alike for text in other.texts)
        named = {names[text] for text in each.pair.negatives} - {""}
        assert named.isdisjoint({each.name, each.anchor_name})


def grouped(sources: list[PairSource]) -> dict[str, int]:
    texts = list(dict.fromkeys(text for each in sources for text in each.texts))
    return dict(zip(texts, duplicate_groups(texts), strict=True))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_each_pair_gets_the_requested_number(count: int) -> None:
    sources = [numbered(number) for number in range(60)]
    for encoder in (None, FakeEncoder()):
        assert [len(set(negatives)) for negatives in chosen(sources, encoder, count)] == [count] * 60


def test_few_documents_give_fewer_negatives() -> None:
    assert chosen([numbered(1)], count=8) == [()]
    assert chosen([numbered(1), numbered(2)], count=8) == [(numbered(2).pair.positive,), (numbered(1).pair.positive,)]


def numbered(number: int) -> PairSource:
    pair = Pair(f"say what {number} does", f"def do{number}(x): return x.do({number})", "docstring", "python")
    return PairSource(pair, f"do{number}")


def test_given_negatives_are_kept() -> None:
    sources = [numbered(number) for number in range(20)]
    sources[3] = replace(sources[3], pair=replace(sources[3].pair, negatives=("given with it",)))
    found = chosen(sources, count=8)
    assert found[3] == ("given with it",)
    assert all(sources[3].pair.positive not in negatives for negatives in found)


def test_a_copy_with_another_docstring_is_a_near_duplicate() -> None:
    """Its text is another, its code is not."""
    body = """def load_rows(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    for row in rows:
        row.pop(None, None)
    return rows"""
    copied = body.replace("load_rows", "read_table")
    words = "Every row becomes a mapping from the names of the columns to the values that stand in that row."
    code = copied.replace("\n", f'\n    """{words} {words.upper()}"""\n', 1)
    assert duplicate_groups([body, copied, code]) == [0, 0, 2]
    copy = PairSource(Pair("rows = read_table(path)", code, "call", "python"), "read_table", bodies=(copied,))
    own = PairSource(Pair("Give the rows of a file with a header", body, "docstring", "python"), "load_rows")
    found = chosen([own, copy, *doors()], count=8)
    assert len(found[0]) == len(found[1]) == len(DOORS)


# What the model takes for near


class Synonyms(FakeEncoder):
    """For which these words are the same, whatever they share in writing."""

    def tokenize(self, texts: Sequence[str], options: TextOptions) -> list[Tokens | TextTooLong]:
        meant = {"wagon": "car", "vehicle": "car", "fix": "mend", "repair": "mend", "cure": "mend"}
        said = [" ".join(meant.get(word, word) for word in text.split()) for text in texts]
        return super().tokenize(said, options)


def described(*texts: tuple[str, str]) -> list[PairSource]:
    return [PairSource(Pair(anchor, code, "docstring", "python"), f"of {anchor}") for anchor, code in texts]


REST = (("unlike one", "sell apples dearly"), ("unlike two", "a tree grows"), ("unlike three", "some rows of it"))


def test_similar_meaning_ranks_first_without_shared_words() -> None:
    sources = described(("mend a car", "mend a car query:"), ("unlike four", "repair wagon today"), *REST)
    assert chosen(sources, Synonyms(), 1)[0] == ("repair wagon today",)
    assert chosen(sources, None, 1)[0] == ("a tree grows",)


def test_candidates_as_similar_as_the_positive_are_excluded() -> None:
    rival = ("unlike five", "fix a vehicle query:")
    sources = described(("mend a car", "cure a wagon query:"), rival, ("unlike four", "repair wagon today"), *REST)
    assert chosen(sources, Synonyms(), 1)[0] == ("repair wagon today",)


def test_anchors_and_documents_get_their_prompts() -> None:
    encoder = FakeEncoder()
    chosen([numbered(number) for number in range(6)], encoder)
    queries = word_id("query:")
    assert queries in encoder.seen
    assert sum(map(len, encoder.batches)) == 12
