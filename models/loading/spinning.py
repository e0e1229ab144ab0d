"""How long OpenMP's threads spin while they wait for each other: long on free cores, briefly beside other processes.

A spinning thread reacts at once, but occupies a core that the thread it waits for may need: beside one busy process,
text is then generated very slowly. libgomp spins briefly while it has more threads than cores, whatever its spin count.
So a watch gives it idle threads for as long as other processes want the cores. The threads that compute stay the same,
and so do results. If torch's threads are not run by libgomp, the watch does nothing.
"""

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from .cores import affine_cores, usable_cores

BRIEF_SPINS = 1000
LOOK_S = 0.25
TOLERATED_CORES = 0.5
"""What others may use of the cores that our threads compute on; the clients of a busy worker use some too."""
QUIET_S = 1.0
"""How long others must use no more than is tolerated before our threads spin long again."""

_HARD_PAUSE = 2
_lock = threading.Lock()
_watch: threading.Thread | None = None


def prepare(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the environment variables for spinning; to be called before torch is loaded.

    LLVM's and Intel's OpenMP then spin for a millisecond; libgomp briefly under a quota of processor time, which
    spinning would use up. Variables that the user has set win.
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("KMP_BLOCKTIME", "1")
        if usable_cores() < affine_cores():
            environ.setdefault("GOMP_SPINCOUNT", str(BRIEF_SPINS))


def adapt(threads: int, environ: Mapping[str, str] = os.environ) -> None:
    """Start the watch, for so many threads that compute, unless the user or `prepare` has set how long they spin."""
    global _watch
    if "OMP_WAIT_POLICY" in environ or "GOMP_SPINCOUNT" in environ or not 1 < threads <= affine_cores():
        return
    with _lock:
        if _watch is None:
            _watch = threading.Thread(target=_run, args=[affine_cores() - threads], name="spins", daemon=True)
            _watch.start()


class Watch:
    """Whether other processes want our cores, by their use of these. tolerated: cores that they may use together."""

    def __init__(
        self, tolerated: float, stat: Path = Path("/proc/stat"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bearable = tolerated
        self._stat, self._clock = stat, clock
        self._looked, self._used_s = clock(), others_s(stat)
        self._seen = -math.inf

    def look(self) -> bool:
        """Whether they want them now, or did a moment ago."""
        now, used_s = self._clock(), others_s(self._stat)
        used = (used_s - self._used_s) / (now - self._looked)
        self._looked, self._used_s = now, used_s
        if not used <= self._bearable:  # or there is no telling
            self._seen = now
        return now - self._seen < QUIET_S


def _run(free: int) -> None:
    """Watch as long as the process lives. free: cores that no thread of ours computes on."""
    watch = Watch(free + TOLERATED_CORES)
    teams = [Team(path, free + 2) for path in libgomps()]  # one more than there are cores
    while teams:
        time.sleep(LOOK_S)
        wanted = watch.look()
        for team in teams:
            team.keep(wanted)


class Team:
    """Idle threads of one libgomp. Not thread-safe. size: how many, with the calling thread."""

    def __init__(self, path: Path, size: int) -> None:
        self._runtime = ctypes.CDLL(str(path))
        self._nothing = ctypes.CDLL(None).free  # of no memory
        self._size = size
        self._kept = False

    def keep(self, wanted: bool) -> None:
        """Make the threads, or end them."""
        if wanted and not self._kept:
            self._runtime.GOMP_parallel(self._nothing, None, self._size, 0)
        elif self._kept and not wanted:
            self._runtime.omp_pause_resource_all(_HARD_PAUSE)
        self._kept = wanted


def libgomps() -> list[Path]:
    """The libgomps that this process has loaded: a package may bring its own."""
    with suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
        return [Path(path) for path in {line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}]
    return []


def others_s(stat: Path = Path("/proc/stat")) -> float:
    """Seconds of our cores that other processes, or the host of this virtual machine, have used; NaN if unknown.

    Processes of a niceness above 0 do not count: the threads that compute come before them.
    """
    try:
        lines = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        ticks = [list(map(int, rest)) for name, *rest in map(str.split, stat.read_text().splitlines()) if name in lines]
        user, _nice, system, _idle, _waiting, interrupts, soft, stolen, *_ = map(sum, zip(*ticks, strict=True))
    except (OSError, ValueError):
        return math.nan
    return (user + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK") - time.process_time()
