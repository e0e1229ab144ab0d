"""Chat templates, which are programs of a model's author, rendered in processes that can be killed.

Replaces the function by which transformers compiles templates, so that none is compiled or run in this process, also
where a library asks transformers for a chat. `python -m models.sandbox.templates FD` is the process that does it, in
transformers' own sandbox.
"""

import signal
import sys
import threading
from contextlib import suppress
from functools import lru_cache
from typing import Any

from transformers.utils import chat_template_utils

from .confined_process import Channel, ChildProcess
from .limits import memory_limit

CACHED = 8
"""Templates whose processes are kept, the last ones used: about 60 MB each."""
START_S = 30.0
RENDER_S = 2.0
"""How long a render may take; its process ends by itself after twice that."""
MEMORY_BYTES = 256 << 20
MORE_CHARACTERS = 65_536
"""What a template may add to four times what it is given."""
LONGEST_TEMPLATE = 1_000_000


class RenderFailed(Exception):
    """A template refused, broke, or took more time or memory than it may."""


class Renderer:
    """A template and the process that renders it. Thread-safe; renders are done one after the other.

    The process is started when it is first needed, or by `warm`, and again after it had to be killed. It ends with this
    object, or with our process.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._one_at_a_time = threading.Lock()
        self._child: ChildProcess | None = None
        self._is_ready = False

    def warm(self) -> None:
        """Start the process without waiting for it; the first render raises what fails in that."""
        with suppress(OSError), self._one_at_a_time:
            self._started()

    def render(self, **fields: Any) -> str:
        """The text that the template makes of plain data. Raises RenderFailed."""
        if len(self._template) > LONGEST_TEMPLATE:
            raise RenderFailed(f"it is longer than {LONGEST_TEMPLATE} characters")
        with self._one_at_a_time:
            try:
                answer = self._answer(fields)
            except TimeoutError:
                self._restart()
                raise RenderFailed(f"it took longer than {RENDER_S:g} s") from None
            except (OSError, ValueError, EOFError) as error:
                self._restart()
                raise RenderFailed("its process ended, by what it did or for want of memory") from error
        if "error" in answer:
            raise RenderFailed(answer["error"])
        return answer["text"]

    def _started(self) -> ChildProcess:
        if self._child is None:
            self._child, self._is_ready = ChildProcess(__name__), False
        return self._child

    def _restart(self) -> None:
        """Replace the process by another, which starts in the background."""
        if self._child is not None:
            self._child.end()
        self._child = None
        with suppress(OSError):
            self._started()

    def _answer(self, fields: dict[str, Any]) -> dict[str, str]:
        """Raises TimeoutError, OSError, EOFError, ValueError."""
        channel = self._started().channel
        if not self._is_ready:
            channel.receive(100, START_S)
            self._is_ready = True
        most = MORE_CHARACTERS + 4 * _characters(fields)
        channel.send({"template": self._template, "fields": fields, "most": most}, RENDER_S)
        answer = channel.receive(6 * most + 1000, RENDER_S)
        if not isinstance(answer, dict):
            raise ValueError("it did not answer")
        return {name: str(text) for name, text in answer.items()}


def _characters(fields: Any) -> int:
    """Characters of all texts in plain data."""
    if isinstance(fields, dict):
        return sum(len(str(name)) + _characters(value) for name, value in fields.items())
    if isinstance(fields, list | tuple):
        return sum(map(_characters, fields))
    return len(str(fields))


@lru_cache(maxsize=CACHED)
def renderer(template: str) -> Renderer:
    return Renderer(template)


# In the process


def _serve(channel: Channel) -> None:
    """Render until the other side is gone."""
    with suppress(EOFError), memory_limit(MEMORY_BYTES):
        channel.send({})
        while True:
            request = channel.receive(sys.maxsize)
            signal.setitimer(signal.ITIMER_REAL, 2 * RENDER_S)  # an endless template ends the process
            channel.send(_rendered(**request))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _rendered(template: str, fields: dict[str, Any], most: int) -> dict[str, str]:
    try:
        text = chat_template_utils._compile_jinja_template(template).render(**fields)
    except MemoryError:
        return {"error": "it takes more memory than it may"}
    except Exception as error:  # a template is a program of the model's author
        return {"error": (str(error) or type(error).__name__)[:1000]}
    return {"text": text} if len(text) <= most else {"error": f"it makes {len(text)} characters of them"}


if __name__ == "__main__":
    _serve(Channel.of_child())
else:
    chat_template_utils._compile_jinja_template = renderer
