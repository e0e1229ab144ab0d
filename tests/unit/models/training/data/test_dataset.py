"""Pairs in two parts, and the files that they are written to and read from."""

import hashlib
import json
import tempfile
import tracemalloc
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.training.data.dataset import (
    MAX_GIVEN_BYTES,
    MAX_LINE_BYTES,
    MAX_NEGATIVES,
    MAX_TEXT_CHARS,
    Dataset,
    archive_dataset,
    read_given,
    read_pairs,
)
from models.training.data.dataset import write_dataset as write
from models.training.data.near_duplicates import duplicate_groups
from models.training.data.negatives import with_negatives
from models.training.data.pairs import PairSource
from models.training.data.records import Pair
from models.training.data.split import MAX_HELD_OUT, MIN_TRAINING_PAIRS, split, without_duplicates
from models.training.errors import MalformedPair, NoPairs
from models.training.run import RunFolder


def source(number: int, file: str, anchor_file: str = "", **fields: Any) -> PairSource:
    """A pair whose texts share no word with another's."""
    anchor = f"say{number} what{number} this{number} does{number}"
    positive = f"def do{number}(one{number}): return two{number} + three{number}"
    pair = Pair(anchor, positive, "docstring", "python", file)
    given = {"name": f"do{number}", "anchor_file": anchor_file or file, "anchor_name": f"do{number}", **fields}
    return PairSource(pair, **given)


def files(*sizes: int) -> list[PairSource]:
    """So many pairs in each of the files."""
    spread = [f"file{number}.py" for number, size in enumerate(sizes) for _ in range(size)]
    return [source(number, file) for number, file in enumerate(spread)]


def split_parts(sources: list[PairSource], seed: int = 0) -> tuple[list[PairSource], list[PairSource]]:
    done = split(sources, seed).sources
    return tuple([each for each in done if each.pair.split == part] for part in ("train", "held_out"))  # type: ignore[return-value]


# The two parts


def test_a_tenth_of_the_files_is_held_out() -> None:
    training, held = split_parts(files(*[6] * 200))
    assert len(training) + len(held) == 1200
    assert 60 <= len(held) <= 200
    assert {each.pair.file for each in training}.isdisjoint(each.pair.file for each in held)


def test_more_files_are_held_out_if_that_is_too_little() -> None:
    for seed in range(20):
        assert len(split_parts(files(*[20] * 50), seed)[1]) >= 50


def test_a_new_file_moves_no_other() -> None:
    before = {each.pair.file for each in split_parts(files(*[3] * 200))[1]}
    after = {each.pair.file for each in split_parts([*files(*[3] * 200), source(9999, "new.py")])[1]}
    assert after - {"new.py"} == before


@given(st.lists(st.integers(1, 9), min_size=8, max_size=40), st.integers(1, 9), st.integers(0, 9))
@settings(max_examples=50)
def test_a_new_file_moves_others_in_one_direction_only(sizes: list[int], size: int, seed: int) -> None:
    """Where few files are held out, one more or one less may be enough; never do two change places."""
    sources = files(*sizes)
    added = [source(9000 + number, "new.py") for number in range(size)]
    try:
        parts = [split([*sources, *extra], seed) for extra in ([], added)]
    except NoPairs:
        return
    if all(each.by_file for each in parts) and 2 * max(*sizes, size) <= len(sources):
        before, after = (
            {e.pair.file for e in part.sources if e.pair.split == "held_out"} - {"new.py"} for part in parts
        )
        assert before <= after or after <= before


def test_another_seed_holds_out_other_files() -> None:
    one, other = (split_parts(files(*[3] * 200), seed)[1] for seed in (0, 1))
    assert {each.pair.file for each in one} != {each.pair.file for each in other}


def test_the_number_of_held_out_pairs_is_bounded() -> None:
    assert len(split_parts(files(*[400] * 50))[1]) == MAX_HELD_OUT


def test_one_file_alone_is_split_by_symbol() -> None:
    parts = split(files(100), 0)
    assert not parts.by_file
    assert sum(each.pair.split == "held_out" for each in parts.sources) in range(5, 31)


@pytest.mark.parametrize("seed", range(8))
def test_a_file_with_most_of_the_pairs_is_not_held_out(seed: int) -> None:
    training, held = split_parts(files(100, 30), seed)
    assert (len(training), len(held)) == (100, 30)


@pytest.mark.parametrize("seed", range(8))
def test_files_with_anchors_only_do_not_matter(seed: int) -> None:
    tests = [source(1000 + number, "file0.py", "test_file0.py") for number in range(5)]
    training, held = split_parts([*files(100), *tests], seed)
    assert len(training) >= MIN_TRAINING_PAIRS
    assert held


def test_a_pair_across_both_parts_is_dropped() -> None:
    across = [source(5000 + number, f"file{number}.py", f"file{number + 1}.py") for number in range(199)]
    training, held = split_parts([*files(*[3] * 200), *across])
    secret = {each.pair.file for each in held}
    assert all(not {each.pair.file, each.anchor_file} & secret for each in training)
    assert all({each.pair.file, each.anchor_file} <= secret for each in held)
    assert len(training) + len(held) < 799


@pytest.mark.parametrize("sources", [[], files(1), files(10, 5), files(*[1] * 16), [source(1, "a.py")] * 100])
def test_too_little_is_refused_with_the_figures(sources: list[PairSource]) -> None:
    with pytest.raises(NoPairs, match=r"\d+ pairs to train on and \d+ held out"):
        split(without_duplicates(sources), 0)


def test_sixteen_and_one_are_enough() -> None:
    training, held = split_parts(files(*[1] * 18), seed=1)
    assert len(training) >= MIN_TRAINING_PAIRS
    assert held


# Few texts, each in versions that are clones of each other, so that what is held out often stands elsewhere too.
TEXTS = st.builds(
    lambda number, end: " ".join(f"{word}{number}" for word in "abcdefghijklmnopqrstuvwxyz" * 2) + end,
    st.integers(0, 40),
    st.sampled_from(["", " ", " end", "\n"]),
)
LINKS = st.builds(
    lambda anchor, positive, body, file, anchor_file, name: PairSource(
        Pair(anchor, positive, "call", "python", f"{file}.py"), name, f"{anchor_file}.py", f"{name}x", (body,)
    ),
    TEXTS,
    TEXTS,
    TEXTS,
    st.integers(0, 12),
    st.integers(0, 12),
    st.sampled_from("abcdefghij"),
)


@given(st.lists(LINKS, max_size=60), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_nothing_leaks(sources: list[PairSource], seed: int) -> None:
    try:
        parts = split([*without_duplicates(sources), *files(*[4] * 9)], seed)
    except NoPairs:
        return
    training = with_negatives([each for each in parts.sources if each.pair.split == "train"], 2, seed)
    held = [each for each in parts.sources if each.pair.split == "held_out"]
    shown = [text for each in training for text in (*each.texts, *each.pair.negatives)]
    secret = [text for each in held for text in each.texts]
    groups = duplicate_groups([*shown, *secret])
    assert set(groups[: len(shown)]).isdisjoint(groups[len(shown) :])
    stands = [{(each.pair.file, each.anchor_file) for each in part} for part in (training, held)]
    if parts.by_file:
        assert {file for both in stands[0] for file in both}.isdisjoint(file for both in stands[1] for file in both)
    assert not any(each.pair.negatives for each in held)


def test_a_copy_of_held_out_code_with_another_docstring_is_dropped() -> None:
    sources = files(*[3] * 200)
    secret = next(each for each in split_parts(sources)[1])
    open_file = split_parts(sources)[0][0].pair.file
    copy = source(7777, open_file, bodies=(secret.pair.positive,))
    assert copy.pair not in [each.pair for each in split([*sources, copy], 0).sources]


def test_near_duplicate_pairs_are_kept_once_and_no_positive_of_themselves() -> None:
    one = source(1, "a.py")
    again = PairSource(Pair(one.pair.anchor + " ", one.pair.positive.replace(" ", "  "), "docstring", "python", "b.py"))
    itself = PairSource(Pair("def f(x): return x", "def f(x):\n    return x", "symbol", "python", "c.py"))
    assert without_duplicates([one, again, itself]) == [one]


# Files


def dataset(count: int = 3) -> Dataset:
    pairs = [Pair(f"é anchor {n}", f'code "{n}"\n\u2028', "docstring", "python", "a.py", ("no",)) for n in range(count)]
    return Dataset.of(pairs, source="here", digest="digest", seed=7, skipped={"binary": 2})


def test_pairs_survive_writing_and_reading(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    manifest = write(run, dataset())
    assert read_pairs(run.data) == dataset().pairs
    assert (manifest.pairs, manifest.held_out, manifest.kinds) == (3, 0, {"docstring": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "manifest.json"]


ANY_TEXT = st.text(st.characters(codec="utf-8"))
PAIRS = st.builds(
    Pair, ANY_TEXT, ANY_TEXT, st.sampled_from(["docstring", "call", "test", "symbol"]), ANY_TEXT, ANY_TEXT
).flatmap(
    lambda pair: st.builds(
        replace,
        st.just(pair),
        negatives=st.lists(ANY_TEXT, max_size=3).map(tuple),
        split=st.sampled_from(["train", "held_out"]),
    )
)
ODD = ["\u2028\u2029", "\x85\x0b\x0c\x1c", "\r\n\r", "\0", "\ufeff", "👩‍👩‍👧 e\u0301", '"\\"\\u0041"', "\U0010ffff"]


@given(st.lists(PAIRS, max_size=5))
@example([Pair(odd, odd, "call", odd, odd, (odd, odd)) for odd in ODD])
def test_any_characters_survive_writing_and_reading(pairs: list[Pair]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        manifest = write(run, Dataset.of(pairs, source="here", digest="digest", seed=7))
        assert read_pairs(run.data) == pairs
        content = run.data.read_bytes()
    assert manifest.sha256 == hashlib.sha256(content).hexdigest()
    assert content.count(b"\n") == len(pairs)
    assert manifest.pairs + manifest.held_out == sum(manifest.kinds.values()) == len(pairs)


def test_a_lone_surrogate_does_not_affect_the_rest_of_the_file(tmp_path: Path) -> None:
    """None comes from a file that is UTF-8; whatever brings one, the file of pairs can be read."""
    odd = Pair("a \ud83d b", "\udcff", "call", "python", "caf\udce9.py", ("\udfff",))
    pairs = [replace(odd, split=part) for part in ("train", "held_out")] + dataset().pairs
    write(run := RunFolder(tmp_path), Dataset.of(pairs, source="here", digest="digest", seed=7))
    assert read_pairs(run.data)[0] == Pair("a ? b", "?", "call", "python", "caf?.py", ("?",))
    assert read_pairs(run.data)[2:] == dataset().pairs
    sources = [source(number, f"caf\udce9{number}\ud800.py") for number in range(40)]
    assert split(sources, 0).by_file


@pytest.mark.parametrize("line", ["[]", "{", '{"anchor": "a"}', '{"anchor": 1, "positive": "b", "kind": "call"}'])
def test_a_malformed_file_of_pairs_is_refused_with_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(dataset(1).lines() + line.encode())
    with pytest.raises(MalformedPair, match="line 2"):
        read_pairs(tmp_path / "data.jsonl")


def test_the_data_of_a_day_is_archived_once_and_never_replaced(tmp_path: Path) -> None:
    day, folder = date(2026, 3, 1), tmp_path / "a" / "b"
    filed = [archive_dataset(folder, day, dataset(n).lines(), dataset(n).manifest) for n in (3, 4, 3, 4, 5)]
    names = ["day-2026-03-01.jsonl", "day-2026-03-01.2.jsonl", "day-2026-03-01.3.jsonl"]
    assert [path.name for path in filed] == [names[0], names[1], names[0], names[1], names[2]]
    assert len(list(folder.iterdir())) == 6
    assert json.loads((folder / "day-2026-03-01.2.manifest.json").read_text())["pairs"] == 4


def test_archived_data_is_not_written_again(tmp_path: Path) -> None:
    made = dataset()
    filed = archive_dataset(tmp_path, date(2026, 3, 1), made.lines(), made.manifest)
    before = filed.stat()
    assert archive_dataset(tmp_path, date(2026, 3, 1), made.lines(), made.manifest) == filed
    assert (filed.stat().st_ino, filed.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["day-2026-03-01.jsonl", "day-2026-03-01.manifest.json"]
    next_day = archive_dataset(tmp_path, date(2026, 3, 2), made.lines(), made.manifest)
    assert next_day.name == "day-2026-03-02.jsonl"


def given_lines(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "given.jsonl"
    made = [{"anchor": f"question{n} of{n}", "positive": f"answer{n} to{n}"} for n in range(60)]
    path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in (*made, *lines)))
    return path


def test_given_pairs_are_split_by_anchor_and_there_once(tmp_path: Path) -> None:
    path = given_lines(tmp_path, *({"anchor": f"question{n} of{n}", "positive": f"answer{n} to{n}"} for n in range(9)))
    done = read_given(path, 3)
    assert done.lines() == read_given(path, 3).lines() != read_given(path, 4).lines()
    assert len(done.pairs) == 60
    assert {pair.split for pair in done.pairs} == {"train", "held_out"}
    assert done.manifest.kinds == {"given": 60}


def test_the_negatives_of_all_lines_with_a_pair_count(tmp_path: Path) -> None:
    again = {"anchor": "question0 of0", "positive": "answer0 to0"}
    extra = [{**again, "negatives": ["b", "c"]}, {**again, "negative": "a"}, {**again, "negative": "b"}]
    found = [pair.negatives for pair in read_given(given_lines(tmp_path, *extra), 0).pairs if pair.negatives]
    assert found == [("b", "c", "a")]


def test_held_out_texts_are_no_negatives_in_training(tmp_path: Path) -> None:
    plain = read_given(given_lines(tmp_path), 0)
    secret = next(pair.positive for pair in plain.pairs if pair.split == "held_out")
    anchor = next(pair for pair in plain.pairs if pair.split == "train")
    line = {"anchor": anchor.anchor, "positive": anchor.positive, "negatives": [secret, "none of these"]}
    found = [pair.negatives for pair in read_given(given_lines(tmp_path, line), 0).pairs if pair.negatives]
    assert found == [("none of these",)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ('"text"', "it is no object"),
        ({"anchor": "a"}, "`positive` is missing"),
        ({"anchor": "a", "positive": None}, "`positive` is missing"),
        ({"anchor": 5, "positive": "b"}, "`anchor` is no text"),
        ({"anchor": " \n", "positive": "b"}, "`anchor` is blank"),
        ({"anchor": "a", "positive": "b" * (MAX_TEXT_CHARS + 1)}, "longer than"),
        ({"anchor": "a\0", "positive": "b"}, "NUL"),
        ({"anchor": "a", "positive": "\ud800"}, "half of a character"),
        ({"anchor": "a", "positive": "b", "label": 1}, "unknown field 'label'"),
        ({"anchor": "a", "positive": "b", "k" * 100_000: 1}, r"unknown field 'k{80}'; the fields are"),
        ({"anchor": "a", "positive": "b", "negatives": "c"}, "`negatives` is a list"),
        ({"anchor": "a", "positive": "b", "negatives": None}, "`negatives` is a list"),
        ({"anchor": "a", "positive": "b", "negatives": ["c", "\t"]}, r"`negatives\[1\]` is blank"),
        ({"anchor": "a", "positive": "b", "negative": ["c"]}, "`negative` is no text"),
        ({"anchor": "a", "positive": "b", "negative": ""}, "`negative` is blank"),
        ('{"anchor": "a", "positive": "b"} {"anchor": "c"}', "it is no JSON"),
        ('{"anchor": ' + "9" * 5000 + "}", "it is no JSON"),
        ('{"anchor": "a", "positive": ' + '{"a":' * 100_000, "it is no JSON"),
        ({"anchor": "a", "positive": "b", "negatives": ["c", 4]}, r"`negatives\[1\]` is no text"),
        ({"anchor": "a", "positive": "b", "negatives": ["c"] * (MAX_NEGATIVES + 1)}, "at most 16"),
        ({"anchor": "a", "positive": "b", "negatives": [], "negative": "c"}, "`negatives` is a list"),
        ({"anchor": "a", "positive": "b", "negative": "b"}, "its positive is among its negatives"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: object, reason: str) -> None:
    with pytest.raises(MalformedPair, match=f"line 61 is no training pair: .*{reason}"):
        read_given(given_lines(tmp_path, line), 0)


def test_a_huge_line_is_named_and_not_read_to_its_end(tmp_path: Path) -> None:
    path = given_lines(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"anchor": "')
        file.truncate(path.stat().st_size + 10 * MAX_LINE_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(
            MalformedPair, match=f"line 61 is no training pair: it is longer than {MAX_LINE_BYTES} bytes"
        ):
            read_given(path, 0)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()


def test_too_large_a_file_is_refused_unread(tmp_path: Path) -> None:
    with given_lines(tmp_path).open("ab") as file:
        file.truncate(MAX_GIVEN_BYTES + 1)
    with pytest.raises(NoPairs, match=f"longer than {MAX_GIVEN_BYTES} bytes"):
        read_given(tmp_path / "given.jsonl", 0)


def test_empty_lines_byte_order_marks_and_line_ends_are_accepted(tmp_path: Path) -> None:
    path = given_lines(tmp_path)
    plain = read_given(path, 0)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n \t\r\n\n") + b"\n\n")
    assert read_given(path, 0).lines() == plain.lines()


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 200)), min_size=60, max_size=200), st.integers(0, 3))
@settings(max_examples=30)
def test_no_given_anchor_is_in_both_parts(drawn: list[tuple[int, int]], seed: int) -> None:
    lines = [{"anchor": f"ask{a} of{a}", "positive": f"say{p} to{p}"} for a, p in drawn]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "given.jsonl")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        try:
            pairs = read_given(path, seed).pairs
        except NoPairs:
            return
    assert len({(pair.anchor, pair.positive) for pair in pairs}) == len(pairs)
    for text in ("anchor", "positive"):
        sides = [{getattr(pair, text) for pair in pairs if pair.split == part} for part in ("train", "held_out")]
        assert sides[0].isdisjoint(sides[1])


def test_lines_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = given_lines(tmp_path)
    path.write_bytes(path.read_bytes() + b'\n\n{"anchor": "\xff"}')
    with pytest.raises(MalformedPair, match="line 63"):
        read_given(path, 0)


@pytest.mark.parametrize("content", ["", "\n \n", '{"anchor": "a", "positive": "b"}\n' * 50])
def test_too_few_given_pairs_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "given.jsonl").write_text(content)
    with pytest.raises(NoPairs):
        read_given(tmp_path / "given.jsonl", 0)
