"""What `mlbus generate` asks for: a prompt, a chat, or the gap at a place of a file."""

import pytest
import typer

from service.cli.generate import form_of, split_at

CODE = "def f():\r\n    é()\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_bytes(CODE.encode())
    (tmp_path / "a:7").write_text("x")
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "empty").write_text("")


@pytest.mark.parametrize(
    ("place", "before"),
    [
        ("a.py:1", ""),
        ("a.py:1:9", "def f():"),
        ("a.py:2", "def f():\r\n"),
        ("a.py:2:5", "def f():\r\n    "),
        ("a.py:2:8", "def f():\r\n    é()"),
        ("a.py:3", CODE),
        ("a.py:3:1", CODE),
        ("a:7:1:2", "x"),
        ("empty:1", ""),
    ],
)
def test_a_place_splits_its_file(place, before):
    prefix, suffix = split_at(place)
    assert prefix == before
    assert prefix + suffix in (CODE, "x", "")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("a.py:4", "a.py has no line 4: it has 3"),
        ("a.py:0", "a.py has no line 0"),
        ("a.py:1:10", "line 1 of a.py has no column 10: it ends at 9"),
        ("a.py:2:0", "line 2 of a.py has no column 0"),
        ("a.py", "is not FILE:LINE"),
        ("a.py:-1", "is not FILE:LINE"),
        ("a.py:1:x", "is not FILE:LINE"),
        (":1", "is not FILE:LINE"),
        ("b.py:1", "b.py cannot be read"),
        (".:1", "cannot be read"),
        ("bytes:1", "bytes cannot be read"),
    ],
)
def test_a_place_that_is_not_there_is_said(place, says):
    with pytest.raises(typer.BadParameter, match=says):
        split_at(place)


def test_each_form_is_made_of_what_was_typed():
    turn = {"role": "user", "content": "why?"}
    system = {"role": "system", "content": "be brief"}
    assert form_of("why?", None, None, chat=False) == {"prompt": "why?"}
    assert form_of("why?", None, None, chat=True) == {"messages": [turn]}
    assert form_of("why?", None, "be brief", chat=False) == {"messages": [system, turn]}
    assert form_of(None, "a.py:1", None, chat=False) == {"prefix": "", "suffix": CODE}


@pytest.mark.parametrize(
    ("prompt", "fim", "system", "chat"),
    [
        (None, None, None, False),
        ("x", "a.py:1", None, False),
        (None, "a.py:1", "x", False),
        (None, "a.py:1", None, True),
    ],
)
def test_forms_do_not_mix(prompt, fim, system, chat):
    with pytest.raises(typer.BadParameter):
        form_of(prompt, fim, system, chat=chat)
