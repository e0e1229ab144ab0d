"""Chat templates, which are programs of a model's author, rendered in processes that can be killed.

Takes the place of transformers' own step from a template to something that renders, so that whoever asks transformers
for a chat, none is compiled or run in this process. Knows no model.
"""

import socket
import subprocess
import threading
import weakref
from contextlib import suppress
from functools import lru_cache
from typing import Any

from transformers.utils import chat_template_utils

from . import child_process, frames
from .template_process import RENDER_S

KEPT = 8
"""Templates whose processes are kept, the last ones used: about 60 MB each."""
START_S = 30.0
MORE_CHARACTERS = 65_536
"""What a template may add to four times what it is given."""
LONGEST_TEMPLATE = 1_000_000


class RenderFailed(Exception):
    """A template refused, broke, or took more time or memory than it may."""


class Renderer:
    """A template and the process that renders it. Thread-safe; one render waits for another's end.

    The process is started when it is first needed, or by `warm`, and again after it had to be killed. It ends with this
    object, or with our process.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._one_at_a_time = threading.Lock()
        self._child: _Child | None = None

    def warm(self) -> None:
        """Start the process, without waiting for it; what fails in that is told by the first render."""
        with suppress(OSError), self._one_at_a_time:
            self._started()

    def render(self, **fields: Any) -> str:
        """What the template makes of these, which are plain data. Raises RenderFailed."""
        if len(self._template) > LONGEST_TEMPLATE:
            raise RenderFailed(f"it is longer than {LONGEST_TEMPLATE} characters")
        with self._one_at_a_time:
            try:
                answer = self._started().ask(self._template, fields)
            except TimeoutError:
                self._again()
                raise RenderFailed(f"it took longer than {RENDER_S:g} s") from None
            except (OSError, ValueError, EOFError) as error:
                self._again()
                raise RenderFailed("its process ended, by what it did or for want of memory") from error
        if "error" in answer:
            raise RenderFailed(str(answer["error"]))
        return str(answer["text"])

    def _started(self) -> "_Child":
        if self._child is None:
            self._child = _Child()
        return self._child

    def _again(self) -> None:
        """Another process, in the place of one that is of no use any more; it starts while nobody waits."""
        if self._child is not None:
            self._child.end()
        self._child = None
        with suppress(OSError):
            self._started()


class _Child:
    """A process that renders, and our end of the socket to it."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = child_process.start(
                "models.sandbox.template_process", str(theirs.fileno()), fds=[theirs.fileno()]
            )
        self._is_ready = False
        self.end = weakref.finalize(self, _end, self._process, self._socket)

    def ask(self, template: str, fields: dict[str, Any]) -> dict[str, str]:
        """Its answer. Raises TimeoutError, OSError, EOFError, ValueError."""
        if not self._is_ready:
            _present(frames.receive(self._socket, 100, START_S))
            self._is_ready = True
        most = MORE_CHARACTERS + 4 * _size(fields)
        frames.send(self._socket, {"template": template, "fields": fields, "most": most}, RENDER_S)
        return _present(frames.receive(self._socket, 6 * most + 1000, RENDER_S))


def _present(message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise EOFError
    return message


def _size(fields: Any) -> int:
    """Characters of all texts in them."""
    if isinstance(fields, dict):
        return sum(len(str(name)) + _size(value) for name, value in fields.items())
    if isinstance(fields, list | tuple):
        return sum(map(_size, fields))
    return len(str(fields))


def _end(process: "subprocess.Popen[bytes]", ours: socket.socket) -> None:
    ours.close()
    child_process.end(process)


@lru_cache(maxsize=KEPT)
def renderer(template: str) -> Renderer:
    """The one for this template."""
    return Renderer(template)


chat_template_utils._compile_jinja_template = renderer
