"""What all who refuse for want of time or of places reckon with."""

MARGIN = 1.2
"""How much longer than expected work is taken to last: a late answer helps nobody and has cost as much."""


def milliseconds(seconds: float) -> int:
    """For `retry_after_ms`: neither at once nor for ever."""
    return int(1000 * min(60.0, max(0.05, seconds)))
