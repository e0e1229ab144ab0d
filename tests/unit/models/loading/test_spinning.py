"""How OpenMP's threads spin: variables set before torch is loaded, other processes' use of cores, libgomp's threads."""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from models.loading import spinning
from models.loading.spinning import BRIEF_SPINS, QUIET_S, Team, Watch, libgomps, others_s

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A clock and the kernel's statistics of the cores, both set by hand."""

    def __init__(self, stat: Path) -> None:
        self.stat = stat
        self.now = 0.0
        self.ticks = 10**6 * TICKS
        self.after(0, 0)

    def clock(self) -> float:
        return self.now

    def after(self, seconds: float, used: float, column: int = 0) -> None:
        """Let others use a number of cores for some seconds."""
        self.now += seconds
        self.ticks += round(seconds * used * TICKS)
        columns = [0] * 10
        columns[3] = 7 * round(self.now * TICKS)  # idle
        columns[column] = self.ticks
        core = min(os.sched_getaffinity(0))
        lines = ["cpu", *columns], [f"cpu{core}", *columns], ["cpu9999", *[10**9] * 10], ["intr", 5, 0], ["ctxt", 1]
        self.stat.write_text("".join(f"{' '.join(map(str, line))}\n" for line in lines))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "stat")


@pytest.mark.parametrize(
    ("before", "cores", "after"),
    [
        ({}, 8, {"KMP_BLOCKTIME": "1"}),
        ({}, 2, {"KMP_BLOCKTIME": "1", "GOMP_SPINCOUNT": str(BRIEF_SPINS)}),
        ({"GOMP_SPINCOUNT": "7"}, 2, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "1"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 2, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_spins_are_short_under_a_quota_unless_the_user_has_set_them(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], cores: int, after: dict[str, str]
) -> None:
    monkeypatch.setattr(spinning, "affine_cores", lambda: 8)
    monkeypatch.setattr(spinning, "usable_cores", lambda: cores)
    environ = dict(before)
    spinning.prepare(environ)
    assert environ == after


@pytest.mark.parametrize("said", [{"GOMP_SPINCOUNT": "300000"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_there_is_no_watch_if_the_user_has_set_the_spins(monkeypatch: pytest.MonkeyPatch, said: dict[str, str]) -> None:
    monkeypatch.setattr(spinning, "affine_cores", lambda: 8)
    spinning.adapt(2, said)
    assert "spins" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("threads", [1, 9])
def test_there_is_no_watch_for_one_thread_or_more_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(spinning, "affine_cores", lambda: 8)
    spinning.adapt(threads, {})
    assert "spins" not in {thread.name for thread in threading.enumerate()}


def test_others_count_while_they_use_too_much_and_a_moment_longer(machine: Machine) -> None:
    watch = Watch(0.5, machine.stat, machine.clock)
    for seconds, used, present in [
        (0.25, 0.3, False),  # clients of ours
        (0.25, 1.0, True),
        (0.25, 0.6, True),
        (QUIET_S - 0.25, 0.1, True),
        (0.25, 0.1, False),
        (100.0, 0.0, False),
        (0.25, 2.0, True),
    ]:
        machine.after(seconds, used)
        assert watch.look() is present, (seconds, used)


@pytest.mark.parametrize(
    ("column", "counts"), [(0, True), (1, False), (2, True), (3, False), (4, False), (5, True), (6, True), (7, True)]
)
def test_processes_of_low_priority_and_idle_time_do_not_count(machine: Machine, column: int, counts: bool) -> None:
    machine.after(0, 0, column)
    before = others_s(machine.stat)
    machine.after(100, 1, column)
    assert (others_s(machine.stat) - before > 50) is counts


@pytest.mark.parametrize("content", [None, "", "cpu0 garbage\n"])
def test_without_the_kernels_figures_others_are_assumed(tmp_path: Path, content: str | None) -> None:
    stat = tmp_path / "stat"
    if content is not None:
        stat.write_text(content)
    assert math.isnan(others_s(stat))
    clock = iter([0.0, 1.0, 2.0])
    watch = Watch(0.5, stat, lambda: next(clock))
    assert watch.look()


def test_libgomp_has_more_threads_for_as_long_as_they_are_wanted() -> None:
    torch.ones(2) @ torch.ones(2)
    (path, *_) = libgomps()

    def tasks_after(wanted: bool) -> set[Path]:
        team.keep(wanted)
        return tasks()

    def tasks() -> set[Path]:
        return set(Path("/proc/self/task").iterdir())

    team = Team(path, 4)
    with ThreadPoolExecutor(1) as executor:
        before, kept, still = executor.map(tasks_after, [False, True, True])
        assert len(kept - before) == 3
        assert still - before == kept - before
        executor.submit(team.keep, False).result()
        while (kept - before) & tasks():
            """They have ended; the kernel may still list them."""
        assert len(executor.submit(tasks_after, True).result() - before) == 3
        executor.submit(team.keep, False).result()
