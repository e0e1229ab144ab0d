"""A step as a process of its own: how it ends where the disk is full."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from models.training import __main__ as step_main
from models.training.progress import Failed, read_event


def write_bytes() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")


def write_with_torch() -> None:
    torch.save({"step": torch.zeros(1_000_000)}, "/dev/full")


def write_with_safetensors() -> None:
    """Its words on a full disk; it takes the place of a file that is there, so that no device will do."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def exceed_a_quota() -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded", "/run/epoch-1")


def main_with(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> int:
    monkeypatch.setattr(step_main, "_step", lambda _: lambda run, say: work())
    return step_main.main(["train", "/run"])


@pytest.mark.parametrize("work", [write_bytes, write_with_torch, write_with_safetensors, exceed_a_quota])
def test_a_full_disk_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Callable[[], None]
) -> None:
    assert main_with(monkeypatch, work) == 1
    (line,) = capsys.readouterr().out.splitlines()
    said = read_event(line)
    assert isinstance(said, Failed)
    assert said.reason.startswith("no space is left in /run")
    assert said.reason.endswith("; free some, and ask again")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), RuntimeError("a bug"), SafetensorError("MetadataIncompleteBuffer")],
)
def test_other_errors_are_not_caught(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        main_with(monkeypatch, fail)
