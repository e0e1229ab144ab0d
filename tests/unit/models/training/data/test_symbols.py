"""Source files of each language split into symbols."""

import ast
import inspect
from textwrap import dedent

import pytest
from code_samples import NAMES, SOURCES
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.data import definitions, symbols, trees
from models.training.data.languages import GRAMMARS, language_of
from models.training.data.records import SourceFile, Symbol
from models.training.data.symbols import symbols_of


def read(text: str, language: str = "python", path: str = "pile/stack") -> dict[str, Symbol]:
    found = symbols_of(SourceFile(path, language, dedent(text).strip() + "\n"))
    return {symbol.qualified_name: symbol for symbol in found}


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_symbols_of_each_language(language: str) -> None:
    symbols = read(SOURCES[language], language)
    add, stack, push, test = NAMES[language]
    assert not any("twice" in name for name in symbols)  # what is inside a function is part of it

    assert symbols[add].docstring.split("\n")[0].endswith("two numbers.")
    assert symbols[add].docstring.startswith(("Add two", "add adds two"))
    assert "numbers" in symbols[add].code
    assert "numbers" not in symbols[add].body
    assert {"twice", "join" if language == "python" else "max"} <= set(symbols[add].calls)

    assert symbols[stack].kind == "class"
    assert "pile of things" in symbols[stack].docstring
    assert "pile of things" in symbols[stack].code
    assert "pile of things" not in symbols[stack].body
    assert "append" not in symbols[stack].code  # methods are there without what they do
    assert not symbols[stack].calls

    assert symbols[push].docstring.lower().removeprefix("push ").startswith("put")
    assert "one more" not in symbols[push].body
    assert "append" in symbols[push].calls
    assert "append" in symbols[push].call_sites["append"]
    assert symbols[push].kind == ("function" if language == "c" else "method")

    assert [name for name, symbol in symbols.items() if symbol.is_test] == ([test] if test else [])
    for symbol in symbols.values():
        assert symbol.code.split("\n")[0] == symbol.code.split("\n")[0].strip()
        assert tuple(symbol.call_sites) == symbol.calls
        assert symbol.line >= 1


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_a_body_is_equivalent_code(language: str) -> None:
    for symbol in read(SOURCES[language], language).values():
        if symbol.kind == "function" and not symbol.is_test:
            (again,) = read(symbol.body, language).values()
            assert (again.name, again.calls, again.docstring) == (symbol.name, symbol.calls, "")


def test_python_code_and_body() -> None:
    symbols = read(SOURCES["python"])
    assert symbols["add"].docstring == "Add two numbers.\n\nBoth are whole."
    assert symbols["add"].line == 4
    assert symbols["add"].body.startswith("@cached\nasync def add(a: int, b: int) -> int:\n    def twice(x):\n")
    assert symbols["Stack.push"].code == ('def push(self, item):\n    """Put one more on it."""\n    self.append(item)')
    assert symbols["Stack"].body == (
        "class Stack(list):\n    limit: int = 3\n\n    def push(self, item):\n        ...\n\n"
        "    class Full(Exception):\n        ..."
    )
    assert symbols["Stack.Full"].body == "class Full(Exception):\n    pass"
    assert symbols["test_add"].call_sites["add"] == ("def test_add():\n    first = 1\n    assert add(first, 2) == 3")


def test_the_clauses_of_an_elixir_function_are_one() -> None:
    add = read(SOURCES["elixir"], "elixir")["Pile.Stack.add"]
    assert add.body.startswith("@spec add(integer, integer) :: integer\ndef add(a, b) when a > 0 do")
    assert add.body.endswith("def add(_, b), do: b")


def test_markup_licences_and_pragmas_are_no_docstring() -> None:
    assert read(SOURCES["java"], "java")["Stack"].docstring == "A pile of things, see Pile."
    c = read(SOURCES["c"], "c")["add"]
    assert (c.docstring, c.code[:9]) == ("Add two numbers.", "/* Add tw")
    assert read("// Copyright 2020 Somebody\n// Adds.\nint f() { return 1; }", "c")["f"].docstring == ""
    assert read(SOURCES["ruby"], "ruby")["Pile.Stack.add"].docstring == "Add two numbers."
    assert read(SOURCES["go"], "go")["add"].docstring == "add adds two numbers."
    assert read("// TODO: do it better\n// go(a);\nfunc a() {}", "go")["a"].docstring == ""
    assert read("int a; // the first\nint f() { return 1; }", "c")["f"].docstring == ""
    assert read("/** One.\n *\n *   indented\n * two */\nfunction a() {}", "javascript")["a"].docstring == (
        "One.\n\n  indented\ntwo"
    )


def test_a_method_of_a_class_in_a_class_has_both_names() -> None:
    symbols = read("class A:\n    class B:\n        def c(self): pass\n    if True:\n        def d(self): pass")
    assert list(symbols) == ["A", "A.B", "A.B.c", "A.d"]
    assert "def c" not in symbols["A"].code


def test_named_function_expressions_of_javascript() -> None:
    symbols = read(
        """
        exports.first = function () { return a(); };
        const tools = { second: () => b(), third() { return c(); } };
        class Kept { fourth = () => d(); }
        (function () { function fifth() { e(); } })();
        """,
        "javascript",
    )
    assert {name: symbol.calls for name, symbol in symbols.items() if symbol.kind != "class"} == {
        "first": ("a",),
        "second": ("b",),
        "third": ("c",),
        "Kept.fourth": ("d",),
        "fifth": ("e",),
    }


def test_a_call_site_is_the_statement_with_a_line_or_two_before_it_and_never_the_docstring() -> None:
    text = """
        def f():
            \"\"\"What it does.\"\"\"
            go(1)
            first = 1
            second = 2
            again = [
                stop(first),
            ]
            go(2)
    """
    f = read(text)["f"]
    assert f.calls == ("go", "stop")
    assert f.call_sites["go"] == "go(1)"
    assert f.call_sites["stop"] == "first = 1\nsecond = 2\nagain = [\n    stop(first),\n]"
    long = read("def f():\n    go(\n" + "".join(f"        {n},\n" for n in range(500)) + "    )")["f"]
    assert long.call_sites["go"].count("\n") < 12


@pytest.mark.parametrize(
    ("path", "is_test"),
    [
        ("test_stack.py", True),
        ("pile/stack_test.py", True),
        ("tests/helper.py", True),
        ("conftest.py", True),
        ("pile/stack_test.go", True),
        ("src/stack.test.ts", True),
        ("src/stack.spec.jsx", True),
        ("src/__tests__/stack.js", True),
        ("StackTest.java", True),
        ("spec/stack_spec.rb", True),
        ("stack_test.exs", True),
        ("pile/stack.py", False),
        ("contest.py", False),
        ("pile/latest.go", False),
        ("Testable.kt", False),
        ("pile/attest.js", False),
        ("GREATEST.java", False),
    ],
)
def test_tests_are_detected_by_file(path: str, is_test: bool) -> None:
    assert symbols_of(SourceFile(path, "python", "def helper():\n    return 1\n"))[0].is_test is is_test


def test_tests_are_detected_in_any_file() -> None:
    symbols = read(
        "class Client:\n    def test_connection(self): pass\nclass ClientTest(TestCase):\n    def test_it(self): pass"
    )
    assert [name for name, symbol in symbols.items() if symbol.is_test] == ["ClientTest.test_it"]


@pytest.mark.parametrize("language", sorted(GRAMMARS))
@pytest.mark.parametrize(
    ("before", "after"), [(")]} = = (\n", "((( ???"), ("x = (\n", ""), ("@\n", "\n}}}\n"), (") (\n", "{{\n"), ("", '"')]
)
def test_broken_syntax_loses_only_the_broken_part(language: str, before: str, after: str) -> None:
    text = before + "\n" + dedent(SOURCES[language]).strip() + "\n\n" + after
    _, stack, push, _ = NAMES[language]
    assert {stack, push} <= {symbol.qualified_name for symbol in symbols_of(SourceFile("a", language, text))}


def test_unparsable_files_become_blocks() -> None:
    blocks = symbols_of(SourceFile("a.py", "python", ")(\n" * 30))
    assert [block.kind for block in blocks] == ["block"]
    assert symbols_of(SourceFile("a.py", "python", "LIMIT = 3\n")) == []
    assert symbols_of(SourceFile("a.py", "python", "")) == []


def test_blocks_are_of_whole_paragraphs() -> None:
    paragraph = "echo one\necho two\necho three\n\n"
    text = paragraph * 40 + "# Say it\n# often.\nsay() {\n  echo\n}\n\n" + "echo\n" * 200
    blocks = symbols_of(SourceFile("a.sh", "shell", text))
    assert max(block.code.count("\n") + 1 for block in blocks) == 60
    assert min(block.code.count("\n") + 1 for block in blocks[:8]) >= 10
    assert "".join(text.split()) == "".join("".join(block.code for block in blocks).split())
    (documented,) = [block for block in blocks if block.docstring]
    assert documented.docstring == "Say it\noften."
    assert documented.body.startswith("say() {")
    assert documented.code.startswith("# Say it")
    assert [text.split("\n")[block.line - 1] for block in blocks] == [block.code.split("\n")[0] for block in blocks]


def test_a_block_may_begin_with_a_comment_of_several_lines() -> None:
    (block,) = symbols_of(SourceFile("A.kt", "kotlin", "    /**\n     * Adds.\n     */\n    fun add() = 1\n"))
    assert (block.docstring, block.body) == ("Adds.", "fun add() = 1")


def test_our_own_code_without_its_docstrings_is_still_python() -> None:
    for module in (symbols, definitions):
        text = inspect.getsource(module)
        found = symbols_of(SourceFile("a.py", "python", text))
        expected = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert {symbol.name for symbol in found} == expected
        for symbol in found:
            (statement,) = ast.parse(symbol.body).body
            assert ast.get_docstring(statement) is None  # type: ignore[arg-type]
            assert ast.unparse(ast.parse(symbol.code)).startswith(ast.unparse(statement).split("\n")[0])


@pytest.mark.parametrize("language", [*sorted(GRAMMARS), "kotlin", ""])
@settings(max_examples=40, deadline=None)
@given(text=st.text() | st.text("(){}[]<>;:,.=\"'`/*#@$ \n\tdefclassdoendiffn01\\\u00e9\ud800", max_size=300))
def test_no_text_raises(language: str, text: str) -> None:
    for symbol in symbols_of(SourceFile("a/b.x", language, text)):
        assert symbol.code.strip()
        symbol.code.encode()


@pytest.mark.parametrize("language", sorted(GRAMMARS))
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_cut_of_a_source_raises(language: str, data: st.DataObject) -> None:
    text = SOURCES[language]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=4)))
    text = text[: cuts[0]] + text[cuts[1] : cuts[-1]]
    symbols_of(SourceFile("a", language, text))


def test_files_that_take_too_long_to_parse_become_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_TIME_LIMIT_S", -1)
    found = symbols_of(SourceFile("a.py", "python", "def f():\n    g()\n" * 500))
    assert {symbol.kind for symbol in found} == {"block"}


def test_files_that_take_too_much_memory_to_parse_become_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_MEMORY_LIMIT", -(1 << 40))
    found = symbols_of(SourceFile("a.py", "python", "def f():\n    g(\n" * 500))
    assert {symbol.kind for symbol in found} == {"block"}


@pytest.mark.parametrize(("language", "text"), [("python", "/*\n" * 50_000), ("java", "a<" * 50_000)])
def test_repetitive_files_are_not_parsed(language: str, text: str) -> None:
    assert {symbol.kind for symbol in symbols_of(SourceFile("a", language, text))} == {"block"}


@pytest.mark.parametrize("language", [*sorted(GRAMMARS), "kotlin"])
def test_the_same_text_gives_the_same_symbols(language: str) -> None:
    file = SourceFile("a", language, dedent(SOURCES.get(language, SOURCES["java"])))
    found = symbols_of(file)
    assert found == symbols_of(file)
    assert found == symbols_of(SourceFile("a", language, file.text.replace("\n", "\r\n")))


@pytest.mark.parametrize("language", sorted(GRAMMARS))
@pytest.mark.parametrize("unit", ["(", "{", "f(", "class A {", "if a {", "/// a\n", "namespace a {", '"'])
def test_deep_nesting_does_not_overflow(language: str, unit: str) -> None:
    symbols_of(SourceFile("a", language, unit * 5_000))


@pytest.mark.parametrize(
    ("path", "text", "language"),
    [
        ("a.py", "", "python"),
        ("a/b.TSX", "", "tsx"),
        ("a.h", "int f(void);", "c"),
        ("a.h", "namespace a {\n}", "cpp"),
        ("tool", "#!/usr/bin/env python3\n", "python"),
        ("tool", "#!/bin/bash -e\n", "shell"),
        ("tool", "plain words", ""),
        ("a.md", "# Words", ""),
        ("a.json", "{}", ""),
        ("Rakefile", "", "ruby"),
        (".py", "", ""),
    ],
)
def test_languages_are_detected_by_name_or_first_line(path: str, text: str, language: str) -> None:
    assert language_of(path, text) == language


def test_a_call_site_is_dedented_by_its_shallowest_line() -> None:
    source = "def f(x):\n    if x:\n        x = 1\n        x += 2\n    return g(x)\n"
    (symbol,) = symbols_of(SourceFile("a.py", "python", source))
    assert symbol.call_sites["g"].splitlines()[-1] == "return g(x)"
    assert symbol.call_sites["g"].splitlines()[0] == "    x = 1"
