"""Options that are made from the fields of a model."""

from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from service.cli.options import options_of


class Options(BaseModel):
    count: int = Field(3, ge=1, le=9, description="how many")
    ratio: float | None = None
    words: list[str] | None = Field(None, description="auto: none")
    side: Literal["left", "right"] = "left"
    loud: bool = False
    polite: bool | None = None


@pytest.fixture
def typed(monkeypatch) -> Any:
    heard: list[dict[str, Any]] = []
    command = typer.Typer()

    @command.command()
    @options_of(Options, "Panel", "count ratio words side loud polite", helps={"side": "Where."})
    def run(name: Annotated[str, typer.Argument()], **options: Any) -> None:
        heard.append({"name": name, **options})

    def invoke(*arguments: str) -> Any:
        done = CliRunner().invoke(command, arguments, env={"COLUMNS": "200"})
        return heard.pop() if heard else done.output

    return invoke


def test_a_command_gets_what_was_typed_and_nothing_else(typed):
    assert typed("a") == {"name": "a"}
    every = "a --count 4 --ratio 0.5 --word x --word y --side right --loud --no-polite"
    assert typed(*every.split()) == {
        "name": "a",
        "count": 4,
        "ratio": 0.5,
        "words": ["x", "y"],
        "side": "right",
        "loud": True,
        "polite": False,
    }


def test_help_comes_from_the_fields(typed):
    told = " ".join(typed("--help").split())
    for part in ("How many; 1 to 9. [default: (3)]", "auto: none.", "Where. [default: (left)]", "<left|right>"):
        assert part in told
    assert "--no-loud" not in told
    assert "--no-polite" in told
