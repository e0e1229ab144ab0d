"""Which texts of a codebase belong together, and which are nearly the same."""

import random
from dataclasses import replace
from typing import Any

import pytest

from models.training.clones import clone_groups
from models.training.pairs import MOST_OF_ONE, links_of, words
from models.training.records import Pair, Symbol


def symbol(name: str, **fields: Any) -> Symbol:
    """A function of a file of its own, of which the code says nothing that another's does."""
    body = fields.pop("body", f"def {name}(value):\n    return compute_{name}(value, mode='{name}')")
    given = {"qualified": name, "kind": "function", "language": "python", "file": f"{name}.py", "line": 1}
    docstring = fields.get("docstring", "")
    code = body.replace("\n", f'\n    """{docstring}"""\n', 1) if docstring else body
    return Symbol(name.rpartition(".")[2], **{**given, "code": code, "body": body, **fields})


def calling(name: str, *called: str, **fields: Any) -> Symbol:
    sites = {other: f"total = {name}_sum + {other}(first, second)" for other in called}
    return symbol(name, calls=tuple(called), call_sites=sites, **fields)


def pairs_of(*symbols: Symbol) -> list[Pair]:
    return [link.pair for link in links_of(symbols)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parseHTTPHeader", ["parse", "http", "header"]),
        ("sha256_of(the_file)", ["sha", "256", "of", "the", "file"]),
        ("Prüft große Dateien", ["prüft", "große", "dateien"]),
        ("HTTPを解析する", ["http", "を", "解", "析", "す", "る"]),
        ("+-*/ __", []),
    ],
)
def test_words_are_those_of_prose_and_of_identifiers(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_a_docstring_belongs_to_its_code_without_it() -> None:
    documented = symbol("load", docstring="Read the settings from a file.")
    (pair,) = pairs_of(documented)
    assert pair == Pair(documented.docstring, documented.body, "docstring", "python", "load.py")
    assert documented.docstring not in pair.positive


@pytest.mark.parametrize("docstring", ["", "Load.", "Load settings.", "Load the settings", "...", "TODO fix"])
def test_a_docstring_that_says_no_more_than_the_name_is_left_out(docstring: str) -> None:
    assert pairs_of(symbol("load_settings", docstring=docstring)) == []


def test_a_docstring_without_spaces_says_something_too() -> None:
    assert [pair.kind for pair in pairs_of(symbol("load_settings", docstring="設定をファイルから読み込む"))] == [
        "docstring"
    ]


def test_a_statement_belongs_to_what_it_calls() -> None:
    target, caller = symbol("parse_header"), calling("serve", "parse_header", "print")
    (pair,) = pairs_of(target, caller)
    assert pair == Pair(caller.call_sites["parse_header"], target.code, "call", "python", "parse_header.py")


def test_a_name_that_may_mean_two_things_means_none() -> None:
    one, other = symbol("parse_header"), symbol("parse_header", qualified="Old.parse_header", file="old.py")
    assert [pair for pair in pairs_of(one, other, calling("serve", "parse_header")) if pair.kind == "call"] == []


def test_a_method_with_the_name_of_many_is_not_what_is_called() -> None:
    assert pairs_of(symbol("Door.close", kind="method"), calling("serve", "close")) == []


@pytest.mark.parametrize(("language", "found"), [("tsx", 1), ("javascript", 1), ("python", 0)])
def test_languages_that_call_each_other_are_told(language: str, found: int) -> None:
    assert (
        len(pairs_of(symbol("parseHeader", language="typescript"), calling("a", "parseHeader", language=language)))
        == found
    )


def test_who_calls_itself_is_no_pair() -> None:
    assert pairs_of(calling("walk_tree", "walk_tree")) == []


def test_a_popular_helper_does_not_fill_the_data() -> None:
    callers = [calling(f"caller{number}", "parse_header") for number in range(20)]
    assert len(pairs_of(symbol("parse_header"), *callers)) == MOST_OF_ONE


def test_a_test_belongs_to_what_it_is_named_after() -> None:
    test = calling("test_parse_header_of_a_reply", "make_reply", "parse_header", "parse", is_test=True)
    (pair,) = pairs_of(symbol("make_reply"), symbol("parse_header"), symbol("parse"), test)
    assert (pair.kind, pair.anchor, pair.file) == ("test", test.code, "parse_header.py")


def test_a_test_that_is_named_after_nothing_belongs_to_all_it_calls_if_that_is_one() -> None:
    helper, other = symbol("make_reply"), symbol("parse_header")
    assert [pair.file for pair in pairs_of(helper, calling("test_it", "make_reply", is_test=True))] == ["make_reply.py"]
    assert pairs_of(helper, other, calling("test_it", "make_reply", "parse_header", is_test=True)) == []


def test_what_tests_call_each_other_for_is_nothing_to_learn() -> None:
    assert pairs_of(symbol("make_reply", is_test=True), calling("test_it", "make_reply", is_test=True)) == []


def test_a_name_in_two_files_or_languages_is_a_pair() -> None:
    one = symbol("parse_header", file="a.py", body="def parse_header(line):\n    return line.split(':', 1)")
    other = symbol("parseHeader", file="a.go", language="go", body="func parseHeader(l string) string {\n\tcut(l)\n}")
    (pair,) = pairs_of(one, other)
    assert (pair.kind, pair.anchor, pair.positive, pair.language) == ("symbol", one.code, other.code, "go")


def test_a_copy_in_another_file_is_no_pair() -> None:
    one = symbol("parse_header", file="a.py")
    assert pairs_of(one, replace(one, file="b.py", code=one.code.replace("    ", "\t"))) == []


@pytest.mark.parametrize(("files", "found"), [("abcd", 3), ("abcde", 0)])
def test_a_name_that_is_everywhere_says_nothing(files: str, found: int) -> None:
    runs = [
        symbol("run_main", file=file, body=f"def run_main(x):\n    return start_{file}(x, {file})") for file in files
    ]
    assert len(pairs_of(*runs)) == found


def test_neighbours_in_a_file_are_no_pair() -> None:
    assert pairs_of(symbol("open_door", file="a.py"), symbol("close_door", file="a.py", line=4)) == []


def test_no_pair_is_there_twice_and_the_order_is_the_symbols() -> None:
    symbols = [symbol(f"f{number}", docstring=f"Say what number {number} means.") for number in range(9)]
    assert [pair.anchor for pair in pairs_of(*symbols, *symbols)] == [each.docstring for each in symbols]


# Clones


def _text(rng: random.Random, length: int = 80) -> list[str]:
    return [f"name{rng.randrange(100_000)}" for _ in range(length)]


def test_layout_does_not_make_a_difference_and_few_words_hardly() -> None:
    text = " ".join(f"x{number} = f(y{number});" for number in range(40))
    changed = text.replace("y7", "z7")
    assert clone_groups([text, text.replace(" ", "\n  "), "another one", changed]) == [0, 0, 2, 0]


@pytest.mark.parametrize("changed", [0, 1, 9, 16])
def test_another_word_makes_another_sentence_wherever_it_stands(changed: int) -> None:
    said = "Open every door of the values that somebody gave and say how many there were before".split(" ")
    other = [*said[:changed], "mend", *said[changed + 1 :]]
    assert clone_groups([" ".join(said), " ".join(other)]) == [0, 1]


def test_short_texts_are_clones_where_their_words_are_the_same() -> None:
    assert clone_groups(["case 1", "case 2", "case  1", "", " "]) == [0, 1, 0, 3, 3]


@pytest.mark.parametrize("shared", [0.4, 0.7])
def test_what_is_alike_in_part_is_no_clone(shared: float) -> None:
    """By 40 tries: each hash function must order the runs in a way of its own."""
    rng = random.Random(3)
    for _ in range(40):
        one = _text(rng)
        other = one[: int(len(one) * shared)] + _text(rng, int(len(one) * (1 - shared)))
        assert clone_groups([" ".join(one), " ".join(other)]) == [0, 1]


def test_clones_are_found_among_many() -> None:
    rng = random.Random(5)
    texts = [_text(rng) for _ in range(300)]
    copies = [[*text[:40], "changed", *text[41:]] for text in texts]
    assert clone_groups([" ".join(text) for text in texts + copies]) == [*range(300), *range(300)]


def test_a_text_that_is_huge_or_no_text_at_all_is_taken() -> None:
    huge = " ".join(map(str, range(200_000)))
    assert clone_groups([huge, huge + " end", "\ud800 half", "\0"]) == [0, 0, 2, 3]
