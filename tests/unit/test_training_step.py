"""A step's process: what ends it is said in one line."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from models.training import __main__ as step


def full_by_number(_: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_by_torch(folder: Path) -> None:
    (folder / "optimizer.pt").symlink_to("/dev/full")
    torch.save({"weights": torch.zeros(100_000)}, folder / "optimizer.pt")


def full_by_safetensors(_: Path) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [full_by_number, full_by_torch, full_by_safetensors])
def test_a_full_disk_is_said_in_one_line(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "_step", lambda _: lambda *_: write(tmp_path))
    assert step.main(["train", str(tmp_path)]) == 1
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["reason"] == f"no space is left in {tmp_path}; free some, and ask again"


def test_what_is_no_full_disk_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("PytorchStreamReader failed reading zip archive")

    monkeypatch.setattr(step, "_step", lambda _: broken)
    with pytest.raises(RuntimeError):
        step.main(["train", str(tmp_path)])
