"""The check of the pages's blocks finds what it is for."""

from pathlib import Path

import pytest
from readme_blocks import Block, Checkout, install_nats, is_as_shown


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        (["a"], ["a"], True),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (["a … c"], ["a b c"], True),
        (["x 0.50"], ["x 0.509"], True),
        (["x 0.50"], ["x 0.52"], False),
        (["…"], ["a", "b"], True),
        (["…"], [], False),
        (["…", "b", "…"], ["a", "b", "c"], True),
        (["…", "b", "…"], ["a", "c", "b"], False),
        (["(a)"], ["a"], False),
    ],
)
def test_lines_are_compared(shown: list[str], printed: list[str], alike: bool) -> None:
    assert is_as_shown(shown, printed) is alike


def run(folder: Path, printing: str, shown: str | None) -> None:
    """A block that types a nats command, which does as the shell code says."""
    fake = folder / "fake"
    fake.write_text(f"#!/usr/bin/env bash\n{printing}\n")
    fake.chmod(0o755)
    install_nats(folder, str(fake))
    Checkout(folder, "nats://127.0.0.1:1", "http://127.0.0.1:1", 0).run(
        Block("page", 1, "sh", "nats req ml.embed x\n", None, shown)
    )


@pytest.mark.parametrize(
    ("printing", "shown"),
    [("echo ok", None), ("echo; echo ok", "ok\n"), ("echo ok >&2", "ok\n"), ("echo 'error 422: no'", "error 422: …\n")],
)
def test_what_is_shown_passes(tmp_path: Path, printing: str, shown: str | None) -> None:
    run(tmp_path, printing, shown)


@pytest.mark.parametrize(
    ("printing", "shown", "told"),
    [
        ("echo other", "ok\n", "shown:\nok"),
        ("true", None, "nothing came of: nats req ml.embed x"),
        ("echo no; exit 3", None, "no"),
        ("echo '{\"error\":{}}'", None, "error"),
        ("echo 'error 422: no'", "…\n", "error 422"),
    ],
)
def test_what_is_not_shown_fails_and_so_do_silence_and_errors(
    tmp_path: Path, printing: str, shown: str | None, told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        run(tmp_path, printing, shown)
