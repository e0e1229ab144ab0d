"""What another user of the machine gets, who may look into the data directory of an embedded server."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.bus.announcement import FILE_NAME, announced, announced_url
from service.bus.errors import BadBusSettings

URL = "nats://127.0.0.1:1"


@contextmanager
def in_the_hands_of_another(path: Path, lock: int) -> Iterator[None]:
    """A file that a killed server left for all to read, as it was before, and its lock with somebody else."""
    path.write_text(URL)
    path.chmod(0o644)
    with path.open("rb") as file:
        fcntl.flock(file, lock)
        yield


def test_who_may_not_read_the_credentials_may_not_open_the_url_and_so_not_lock_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with announced(tmp_path, URL):
            assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
            assert announced_url(tmp_path) == URL
    finally:
        os.umask(before)
    assert announced_url(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_who_holds_the_lock_of_a_file_that_was_left_behind_is_told_no_password(tmp_path: Path) -> None:
    with in_the_hands_of_another(tmp_path / FILE_NAME, fcntl.LOCK_EX):
        assert announced_url(tmp_path) is None


@pytest.mark.parametrize("lock", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_nor_does_it_hold_up_the_next_server(tmp_path: Path, lock: int) -> None:
    with (
        in_the_hands_of_another(tmp_path / FILE_NAME, lock),
        announced(tmp_path, "nats://127.0.0.1:2"),
    ):
        assert announced_url(tmp_path) == "nats://127.0.0.1:2"


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(BadBusSettings, match=rf"{FILE_NAME}: cannot be .*directory"), announced(tmp_path, URL):
        pass
