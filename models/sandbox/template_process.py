"""Renders chat templates for the process at the other end of a socket: `python -m models.sandbox.template_process FD`.

It is started by templates.py. transformers compiles and runs them, in its sandbox, and does so here alone.
"""

import signal
import socket
import sys
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

from . import frames
from .memory_limit import memory_ceiling

RENDER_S = 2.0
"""How long the other side waits for a render; this process outlives it by as much at most."""
MEMORY_BYTES = 256 << 20


def main(theirs: socket.socket) -> None:
    """Answer until the other side is gone."""
    with theirs, memory_ceiling(MEMORY_BYTES):
        frames.send(theirs, {})
        while (asked := frames.receive(theirs, sys.maxsize)) is not None:
            signal.setitimer(signal.ITIMER_REAL, 2 * RENDER_S)  # a template that goes on for ever ends the process
            frames.send(theirs, _answer(**asked))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(template: str, fields: dict[str, Any], most: int) -> dict[str, str]:
    try:
        text = _compile_jinja_template(template).render(**fields)
    except MemoryError:
        return {"error": "it takes more memory than it may"}
    except Exception as error:  # a template is a program of the model's author
        return {"error": (str(error) or type(error).__name__)[:1000]}
    return {"text": text} if len(text) <= most else {"error": f"it makes {len(text)} characters of them"}


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
