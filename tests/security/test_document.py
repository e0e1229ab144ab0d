"""docs/security.md names a test for what each can cause: they are there."""

import re

from nats_server import REPOSITORY

FOLDERS = ("gateway", "oracle", "security", "system")
TESTS = {path.name for folder in FOLDERS for path in (REPOSITORY / "tests" / folder).glob("test_*.py")}


def test_every_threat_has_its_test():
    lines = (REPOSITORY / "docs/security.md").read_text().splitlines()
    rows = [line for line in lines if line.count("|") == 6 and not line.startswith(("| subject or file |", "|---"))]
    named = [re.findall(r"`(test_\w+\.py)`", row) for row in rows]
    assert len(named) > 25
    assert all(named)
    assert {name for names in named for name in names} <= TESTS
