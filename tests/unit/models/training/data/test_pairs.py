"""Which texts of a codebase belong together."""

from dataclasses import replace
from typing import Any

import pytest

from models.training.data.pairs import MAX_PER_POSITIVE, pair_sources, words
from models.training.data.records import Pair, SourceFile, Symbol
from models.training.data.symbols import symbols_of


def symbol(name: str, **fields: Any) -> Symbol:
    """A function of a file of its own, of which the code says nothing that another's does."""
    body = fields.pop("body", f"def {name}(value):\n    return compute_{name}(value, mode='{name}')")
    given = {"qualified_name": name, "kind": "function", "language": "python", "file": f"{name}.py", "line": 1}
    docstring = fields.get("docstring", "")
    code = body.replace("\n", f'\n    """{docstring}"""\n', 1) if docstring else body
    return Symbol(name.rpartition(".")[2], **{**given, "code": code, "body": body, **fields})


def calling(name: str, *called: str, **fields: Any) -> Symbol:
    sites = {other: f"total = {name}_sum + {other}(first, second)" for other in called}
    return symbol(name, calls=tuple(called), call_sites=sites, **fields)


def pairs_of(*symbols: Symbol) -> list[Pair]:
    return [source.pair for source in pair_sources(symbols)]


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


def test_ambiguous_names_are_ignored() -> None:
    one, other = symbol("parse_header"), symbol("parse_header", qualified_name="Old.parse_header", file="old.py")
    assert [pair for pair in pairs_of(one, other, calling("serve", "parse_header")) if pair.kind == "call"] == []


def test_methods_with_common_names_are_no_call_targets() -> None:
    assert pairs_of(symbol("Door.close", kind="method"), calling("serve", "close")) == []


@pytest.mark.parametrize(("language", "found"), [("tsx", 1), ("javascript", 1), ("python", 0)])
def test_only_related_languages_call_each_other(language: str, found: int) -> None:
    assert (
        len(pairs_of(symbol("parseHeader", language="typescript"), calling("a", "parseHeader", language=language)))
        == found
    )


def test_recursion_is_no_pair() -> None:
    assert pairs_of(calling("walk_tree", "walk_tree")) == []


def test_a_popular_helper_does_not_dominate_the_data() -> None:
    callers = [calling(f"caller{number}", "parse_header") for number in range(20)]
    assert len(pairs_of(symbol("parse_header"), *callers)) == MAX_PER_POSITIVE


def test_a_test_belongs_to_what_it_is_named_after() -> None:
    test = calling("test_parse_header_of_a_reply", "make_reply", "parse_header", "parse", is_test=True)
    (pair,) = pairs_of(symbol("make_reply"), symbol("parse_header"), symbol("parse"), test)
    assert (pair.kind, pair.anchor, pair.file) == ("test", test.code, "parse_header.py")


def test_a_test_that_is_named_after_nothing_belongs_to_all_it_calls_if_that_is_one() -> None:
    helper, other = symbol("make_reply"), symbol("parse_header")
    assert [pair.file for pair in pairs_of(helper, calling("test_it", "make_reply", is_test=True))] == ["make_reply.py"]
    assert pairs_of(helper, other, calling("test_it", "make_reply", "parse_header", is_test=True)) == []


def test_calls_between_tests_are_no_pairs() -> None:
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


def test_pairs_are_distinct_and_in_the_order_of_symbols() -> None:
    symbols = [symbol(f"f{number}", docstring=f"Say what number {number} means.") for number in range(9)]
    assert [pair.anchor for pair in pairs_of(*symbols, *symbols)] == [each.docstring for each in symbols]


# Of source code


def of_source(**sources: str) -> list[Pair]:
    """The pairs of files of these names, such as `a_py`."""
    languages = {"py": "python", "go": "go", "js": "javascript", "rb": "ruby", "java": "java"}
    found: list[Symbol] = []
    for name, text in sources.items():
        stem, _, suffix = name.rpartition("_")
        found += symbols_of(SourceFile(f"{stem}.{suffix}", languages[suffix], text))
    return pairs_of(*found)


SENTENCE = "Split what a browser sent into its fields."
DOCUMENTED = {
    "a_py": "class Form:\n    def fields(self, sent):\n        '''SENTENCE'''\n        return sent.split(self.mark)\n",
    "b_py": "# SENTENCE\ndef fields(sent):\n    r'''\n    SENTENCE\n    '''\n    return str(sent).split(mark)\n",
    "c_py": "async def fields(sent, mark, most): 'SENTENCE'; return sent.split(mark, most)\n",
    "d_go": "package p\n// SENTENCE\nfunc Fields(sent string) {\n\tparts := Split(sent, mark, most)\n}\n",
    "e_js": "/**\n * SENTENCE\n */\nfunction fields(sent, mark) {\n  return sent.split(mark).map(trim)\n}\n",
    "f_rb": "# SENTENCE\ndef fields(sent, mark)\n  sent.split(mark).map(&:strip).compact\nend\n",
    "g_java": "class A {\n  /** SENTENCE */\n  String[] fields(String sent) {\n    return sent.split(MARK);\n  }\n}\n",
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_positives_do_not_contain_their_docstring(name: str) -> None:
    pairs = of_source(**{name: DOCUMENTED[name].replace("SENTENCE", SENTENCE)})
    (pair,) = (pair for pair in pairs if pair.kind == "docstring")
    assert pair.anchor == SENTENCE
    assert SENTENCE not in pair.positive
    assert "split" in pair.positive.lower()


PARSE = """
def parse_header(line, strict=False):
    name, _, value = line.partition(":")
    if strict and not value:
        raise ValueError(line)
    return name.strip().lower(), value.strip()
"""
DOCSTRING = f'    """{SENTENCE} {SENTENCE.upper()}"""\n    name,'


@pytest.mark.parametrize(
    "copy", [PARSE, PARSE.replace("    ", "\t"), PARSE.replace("    name,", DOCSTRING)], ids=["all", "tabs", "words"]
)
def test_a_function_that_was_copied_is_no_pair(copy: str) -> None:
    assert [pair.kind for pair in of_source(a_py=PARSE, b_py=copy)] == ["docstring"] * copy.count("SPLIT")


def test_a_copy_does_not_separate_two_that_differ() -> None:
    other = "def parse_header(line):\n    return dict([SPLIT.match(line).groups()])"
    pairs = of_source(a_py=PARSE, b_py=PARSE, c_py=other)
    assert [(pair.kind, pair.anchor, pair.positive) for pair in pairs] == [("symbol", PARSE.strip(), other)]


def test_a_call_of_a_copied_name_is_ambiguous() -> None:
    caller = "def serve(line, log):\n    log.write(line)\n    return answer(parse_header(line, strict=log.strict))\n"
    assert [pair.kind for pair in of_source(a_py=PARSE, b_py=caller)] == ["call"]
    assert of_source(a_py=PARSE, copy_py=PARSE, b_py=caller) == []


def test_a_test_belongs_to_what_it_tests_in_another_file() -> None:
    test = "def test_parse_header_without_a_value(log):\n    assert parse_header(log.first()) == ('a', '')"
    (pair,) = of_source(a_py=PARSE, test_a_py=test)
    assert (pair.kind, pair.anchor, pair.positive, pair.file) == ("test", test, PARSE.strip(), "a.py")
