"""The parts that a job goes through, each alone: a step's process, a run's folder."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from models.catalogue import ModelSpec
from models.training import errors as training
from models.training.progress import Event, Note
from models.training.run import RunSpec, TrainingOptions
from service.errors import to_wire
from service.jobs import step_process
from service.jobs.runs import Runs
from service.jobs.step_process import StepCrashed, StepFailed, Steps
from service.runtime.activity import Activity
from service.runtime.background import background_task
from service.settings import Settings
from subjects.finetune import FinetuneOptions, FinetuneRequest, TrainingPair
from subjects.jobs import Job

DAY = datetime(2030, 1, 1, 23, 59, tzinfo=UTC)


async def heard_of(program: str, folder: Path) -> list[Event]:
    """What a step says that is this program; it finds its name and its folder in sys.argv."""
    events: list[Event] = []
    await Steps(3, (sys.executable, "-c", program)).run("train", folder, events.append)
    return events


async def test_step_is_quiet_and_has_its_arguments(tmp_path: Path) -> None:
    program = (
        "import os, sys, json\n"
        "names = 'OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'ONEDNN_PRIMITIVE_CACHE_CAPACITY'\n"
        "quiet = [os.environ[name] for name in names]\n"
        "words = [*sys.argv[1:], *quiet, os.getpgid(0) == os.getpid()]\n"
        "print(json.dumps({'event': 'note', 'text': ' '.join(map(str, words))}))"
    )
    assert await heard_of(program, tmp_path) == [Note(text=f"train {tmp_path} 3 PASSIVE 0 64 True")]


def test_a_step_stands_behind_whatever_serves() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True) as process:
        step_process.lower_priority(process.pid)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 10
        group = Path(f"/proc/{process.pid}/autogroup")
        assert not group.exists() or group.read_text().endswith("nice 19\n")
        process.communicate()
    step_process.lower_priority(process.pid)  # one that is gone harms nobody


async def test_a_step_stands_still_while_others_compute() -> None:
    serving = Activity()
    process = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    async with background_task(lambda closing: step_process.give_way(process, serving), "give_way"):
        with serving.going_on():
            await changed(process.pid, os.WSTOPPED)
        await changed(process.pid, os.WCONTINUED)
        with serving.going_on():
            await changed(process.pid, os.WSTOPPED)
    await changed(process.pid, os.WCONTINUED)
    process.kill()
    await process.wait()


async def test_a_step_has_a_share_of_the_time_however_much_others_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_process, "PAUSE_S", 0.01)
    monkeypatch.setattr(step_process, "RUN_S", 0.01)
    serving = Activity()
    process = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    async with background_task(lambda closing: step_process.give_way(process, serving), "give_way"):
        with serving.going_on():
            for change in (os.WSTOPPED, os.WCONTINUED, os.WSTOPPED):
                await changed(process.pid, change)
    process.kill()
    await process.wait()


async def test_children_of_a_step_go_on() -> None:
    """If the worker is killed meanwhile, nobody is left to let them go on."""
    serving = Activity()
    command = ("sh", "-c", "sleep 600 & echo $!; wait")
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    child = (await process.stdout.readline()).decode().strip()
    async with background_task(lambda closing: step_process.give_way(process, serving), "give_way"):
        with serving.going_on():
            await changed(process.pid, os.WSTOPPED)
            shown = await asyncio.to_thread(subprocess.check_output, ["ps", "-o", "stat=", "-p", child], text=True)
            assert shown.startswith(("S", "R"))
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


async def changed(pid: int, change: int) -> None:
    """Wait until a child has stopped or goes on."""
    await asyncio.to_thread(os.waitid, os.P_PID, pid, change)


async def test_failure_needs_its_word(tmp_path: Path) -> None:
    failed = """print('{"event":"failed","reason":"too little"}'); raise SystemExit(1)"""
    with pytest.raises(StepFailed, match=r"^too little$"):
        await heard_of(failed, tmp_path)
    with pytest.raises(StepCrashed, match="exit code 1: ValueError: a bug"):
        await heard_of("raise ValueError('a bug')", tmp_path)
    with pytest.raises(StepCrashed, match="exit code 2"):
        await heard_of("raise SystemExit(2)", tmp_path)
    with pytest.raises(StepCrashed, match="SIGSEGV"):
        await heard_of("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", tmp_path)
    with pytest.raises(StepCrashed, match="lower batch_size"):
        await heard_of("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path)


async def test_much_on_both_pipes_blocks_nobody(tmp_path: Path) -> None:
    program = "import sys\nfor _ in range(3):\n  sys.stdout.write('o' * 2**20)\n  sys.stderr.write('e' * 2**20 + '\\n')"
    assert await heard_of(program + '\nprint(\'\\n{"event":"note","text":"x"}\')', tmp_path) == [Note(text="x")]


async def test_cancelled_step_that_will_not_end_is_ended_by_force(tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        """print('{"event":"note","text":"%d"}' % os.getpid(), flush=True)\n"""
        "while True: signal.pause()"
    )
    heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def hear(event: Event) -> None:
        assert isinstance(event, Note)
        heard.set_result(int(event.text))

    steps = Steps(1, (sys.executable, "-c", program), grace_s=0.1)
    step = asyncio.create_task(steps.run("train", tmp_path, hear))
    pid = await heard
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.fixture
def entry(tmp_path: Path) -> ModelSpec:
    (tmp_path / "weights").mkdir()
    return ModelSpec(id="a", kind="embedding", folder=tmp_path / "weights")


def runs_in(tmp_path: Path, **finetune: Any) -> Runs:
    finetune = {"roots": (tmp_path,), **finetune}
    settings = Settings(data_dir=tmp_path / "data", finetune=finetune)
    return Runs(settings, Client(), lambda entry, base, options: ("cpu", 7), threads=2)


JOB = Job(id="one", model="a", source="code", state="collecting", created_at=DAY, updated_at=DAY)


async def prepared(runs: Runs, request: FinetuneRequest, entry: ModelSpec) -> RunSpec:
    async with runs.locked("one"):
        run = await runs.prepare(JOB, request, entry)
    assert run.folder.read() == run.spec
    assert run.memory_bytes == 7  # as runs_in has it
    return run.spec


async def test_run_says_all_that_its_steps_need(tmp_path: Path, entry: ModelSpec) -> None:
    request = FinetuneRequest(path=str(tmp_path), options=FinetuneOptions(epochs=2))
    spec = await prepared(runs_in(tmp_path), request, entry)
    assert (spec.job, spec.parent, spec.base, spec.threads) == ("one", "base", entry.folder, 2)
    assert (spec.codebase, spec.roots, spec.given) == (tmp_path, (tmp_path,), None)
    assert (spec.day, spec.options) == (DAY.date(), TrainingOptions(epochs=2))
    assert spec.memory_bytes is None
    spec = await prepared(runs_in(tmp_path, memory_gb=2.5), FinetuneRequest(path=str(tmp_path)), entry)
    assert spec.memory_bytes is None  # an attempt that was cut off goes on as it began


async def test_what_callers_give_is_judged_by_the_operators_pairs(tmp_path: Path, entry: ModelSpec) -> None:
    runs = runs_in(tmp_path, judge=tmp_path / "judge.jsonl")
    given = FinetuneRequest(pairs=[TrainingPair(anchor="a", positive="b")])
    assert (await prepared(runs, given, entry)).judge == tmp_path / "judge.jsonl"
    await runs.remove("one")
    assert (await prepared(runs, FinetuneRequest(path=str(tmp_path)), entry)).judge is None


async def test_run_begins_afresh_where_another_version_is_live(tmp_path: Path, entry: ModelSpec) -> None:
    runs = runs_in(tmp_path)
    request = FinetuneRequest(path=str(tmp_path))
    await prepared(runs, request, entry)
    left = runs.folder("one").data
    left.touch()
    assert (await prepared(runs, request, entry)).parent == "base"
    assert left.exists()
    live = runs.settings.checkpoints_dir / "a" / "v1"
    live.mkdir(parents=True)
    live.with_name("checkpoint-latest").symlink_to("v1")
    spec = await prepared(runs, request, entry)
    assert (spec.parent, spec.base) == ("v1", live)
    assert not left.exists()


async def test_run_whose_orders_cannot_be_read_begins_afresh(tmp_path: Path, entry: ModelSpec) -> None:
    runs = runs_in(tmp_path)
    folder = runs.folder("one")
    folder.path.mkdir(parents=True)
    folder.spec.write_bytes(b'{"job": "on')
    folder.data.touch()
    await prepared(runs, FinetuneRequest(path=str(tmp_path)), entry)
    assert not folder.data.exists()
    await runs.remove("one")
    await runs.remove("one")
    assert not folder.path.exists()


async def test_run_is_one_workers_at_a_time(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    async with runs.locked("one"):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), runs.locked("one"):
                pass
    async with asyncio.timeout(5), runs.locked("one"):
        pass


@pytest.mark.parametrize(
    "error",
    [
        training.PathRefused("/x", "it is no folder"),
        training.CannotTrain("a", "it has no torch weights"),
        training.NoPairs("0 files"),
        training.MalformedPair(3, "no anchor"),
    ],
)
def test_refusals_of_training_are_the_callers_to_mend(error: Exception) -> None:
    wire = to_wire(error)
    assert wire is not None
    assert (wire.code, wire.message) == (422, str(error))
