"""A flood of warnings becomes a line a second with a count."""

from structlog.testing import capture_logs

from service.bus.log import RareLog


def test_the_first_is_written_and_the_rest_are_counted() -> None:
    now = 0.0
    rare = RareLog(interval_s=1.0, clock=lambda: now)
    with capture_logs() as lines:
        for subject in ("a", "b", "c"):
            rare.warn("denied", subject=subject)
        rare.warn("slow", subject="x")
        now = 1.0
        rare.warn("denied", subject="d")
        rare.warn("denied", subject="e")
        rare.warn("denied", subject="f")
        rare.flush()
        rare.flush()
    assert [(line["event"], line["subject"], line.get("unwritten")) for line in lines] == [
        ("denied", "a", None),
        ("slow", "x", None),
        ("denied", "d", 2),
        ("denied", "f", 1),
    ]
