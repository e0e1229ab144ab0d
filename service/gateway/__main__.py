"""The gateway as a child of `mlbus serve`: what beside.py starts, with its settings as JSON on standard input."""

import socket
import sys

from ..telemetry import configure_logging
from .beside import Given
from .process import run


def main() -> int:
    """Run until SIGTERM -> exit code."""
    given = Given.model_validate_json(sys.stdin.buffer.read())
    configure_logging(given.log_format, given.log_level)
    return run(socket.socket(fileno=given.descriptor), given.nats, given.http, given.grace_s)


if __name__ == "__main__":
    sys.exit(main())
