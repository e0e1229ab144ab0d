"""`mlbus finetune` and `mlbus jobs` as a person or a script runs them: real processes, a worker that is scripted."""

import asyncio
import json
import os
import pty
import signal
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scripted_jobs import JobsWorker, job, scripted_jobs
from shell import Ended, Shell, read_terminal

from subjects import names
from subjects.errors import Conflict, InvalidField, NotFound, Unavailable

BEFORE_AND_AFTER = {"mrr@10_before": 0.594, "mrr@10_after": 0.6631, "cosine_p5": 0.9, "ndcg@10_before": 0.6}
DONE = {"parent": "base", "version": "v2", "worker": "W1", "metrics": BEFORE_AND_AFTER}


@pytest.fixture
async def worker(nats_url: str) -> AsyncIterator[JobsWorker]:
    async with scripted_jobs(nats_url) as worker:
        yield worker


@pytest.fixture
def shell(nats_url: str, tmp_path: Path) -> Shell:
    folder = tmp_path / "shell"
    folder.mkdir()
    return Shell(folder, nats_url)


# Asking for it


async def test_a_codebase_is_sent_with_its_whole_path(worker: JobsWorker, shell: Shell) -> None:
    ended = await shell.run("finetune", "code", "--model", "a", "--id", "mine")
    assert ended == Ended(
        0,
        "job mine is queued\nfollow it:  mlbus jobs watch mine\ncancel it:  mlbus jobs cancel mine\n",
        "",
    )
    assert worker.asked == [(names.FINETUNE, {"id": "mine", "model": "a", "path": str(shell.folder / "code")})]


async def test_every_option_goes_along(worker: JobsWorker, shell: Shell) -> None:
    options = "--epochs 2 --batch-size 8 --learning-rate 2e-5 --method lora --loss triplet --matryoshka --seed 7"
    ended = await shell.run("finetune", ".", *options.split(), "--max-tokens", "64", "--hard-negatives", "0", "--json")
    reply = json.loads(ended.out)
    _, sent = worker.asked[0]
    assert reply == {"job": sent["id"], "id": sent["id"], "duplicate": False}
    assert ("swap" in sent, sent["path"]) == (False, str(shell.folder))
    assert sent["options"] == {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 2e-5,
        "method": "lora",
        "loss": "triplet",
        "matryoshka": True,
        "seed": 7,
        "max_tokens": 64,
        "hard_negatives": 0,
    }


async def test_promoting_is_said_as_soon_as_the_job_is_there(worker: JobsWorker, shell: Shell) -> None:
    ended = await shell.run("finetune", ".", "--id", "mine", "--promote")
    assert (ended.code, ended.err) == (0, "")
    assert worker.asked[1:] == [(names.MODELS_PROMOTE, {"job": "mine"})]
    assert (await shell.run("models", "promote", "--job", "mine")).out.startswith("what comes of job mine will serve")
    assert (await shell.run("models", "promote", "a", "v2")).out == "a v2 serves now\n"
    assert worker.asked[-1] == (names.MODELS_PROMOTE, {"model": "a", "version": "v2"})
    told = json.loads((await shell.run("models", "promote", "a", "v2", "--json")).out)
    assert (told["version"], told["live"]) == ("v2", True)
    assert "give 'model' and 'version'" in (await shell.run("models", "promote", "a")).err


async def test_a_job_that_was_there_already_is_not_promoted(worker: JobsWorker, shell: Shell) -> None:
    """Whoever guesses an id would otherwise have what they trained served."""
    worker.duplicate = True
    for more in ((), ("--watch",), ("--json",)):
        ended = await shell.run("finetune", ".", "--id", "mine", "--promote", *more)
        assert (ended.code, ended.out) == (1, "")
        assert "job mine was there already" in ended.err
        assert "mlbus models promote --job mine" in ended.err
    assert names.MODELS_PROMOTE not in [subject for subject, _ in worker.asked]
    assert (await shell.run("finetune", ".", "--promote")).code == 0, "an id that nobody knows is our own, asked twice"


async def test_a_job_goes_on_where_promoting_it_is_refused(worker: JobsWorker, shell: Shell) -> None:
    worker.promotion = Conflict("no")
    ended = await shell.run("finetune", ".", "--id", "mine", "--promote")
    says = "job mine goes on, and what passes is kept as a candidate:\nmlbus: no\n"
    assert ended == Ended(1, "", says)


async def test_pairs_of_a_file_or_of_standard_input_are_sent(worker: JobsWorker, shell: Shell) -> None:
    lines = '{"anchor": "é", "positive": "b"}\n\n{"anchor": "c", "positive": "d", "negatives": ["e"]}'
    (shell.folder / "pairs.jsonl").write_text(lines)
    assert (await shell.run("finetune", "--data", "pairs.jsonl")).code == 0
    assert (await shell.run("finetune", "--data", "-", text=lines)).code == 0
    pairs = [{"anchor": "é", "positive": "b"}, {"anchor": "c", "positive": "d", "negatives": ["e"]}]
    assert [sent["pairs"] for _, sent in worker.asked] == [pairs, pairs]


async def test_many_pairs_become_an_object(worker: JobsWorker, shell: Shell) -> None:
    (shell.folder / "pairs.jsonl").write_text('{"anchor": "a", "positive": "b"}\n' * 1000)
    assert (await shell.run("finetune", "--data", "pairs.jsonl")).code == 0
    assert worker.uploaded[worker.asked[0][1]["object"]].count(b"\n") == 1000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give the path of a codebase, or --data FILE"),
        ((".", "--data", "pairs.jsonl"), "give the path of a codebase, or --data FILE"),
        (("--data", "nowhere"), "nowhere cannot be read"),
        (("--data", "."), "cannot be read"),
        (("--data", "empty"), "empty holds no pairs"),
        (("--data", "broken"), "line 2 of broken is no pair: unreadable JSON"),
        (("--data", "blank"), "line 1 of blank is no pair: field 'positive': the text is empty"),
        (("--data", "lists"), "line 3 of lists is no pair: write it as {"),
        (("--data", "foreign"), "line 1 of foreign is no pair: unknown field 'kind'"),
        (("--data", "binary"), "line 1 of binary is no pair: unreadable JSON"),
        ((".", "--epochs", "0"), "field 'epochs'"),
        ((".", "--batch-size", "1000000"), "field 'batch_size'"),
        ((".", "--learning-rate", "nan"), "field 'learning_rate'"),
        ((".", "--id", "a b"), "field 'id'"),
        ((".", "--method", "magic"), "'magic' is not one of"),
    ],
)
async def test_what_cannot_be_used_is_said(
    worker: JobsWorker, shell: Shell, arguments: tuple[str, ...], says: str
) -> None:
    good = '{"anchor": "a", "positive": "b"}\n'
    files = {
        "empty": b"\n",
        "broken": f"{good}{{".encode(),
        "blank": b'{"anchor": "a", "positive": " "}',
        "lists": f'{good}\n["a", "b"]'.encode(),
        "foreign": b'{"anchor": "a", "positive": "b", "kind": "call"}',
        "binary": bytes(range(256)),
    }
    for name, content in files.items():
        (shell.folder / name).write_bytes(content)
    ended = await shell.run("finetune", *arguments)
    assert (ended.code, ended.out, worker.asked) == (2, "", [])
    assert says in " ".join(ended.err.replace("│", "").split())


async def test_what_the_worker_refuses_is_one_line(worker: JobsWorker, shell: Shell) -> None:
    worker.refusal = InvalidField("field 'model': no")
    assert await shell.run("finetune", ".") == Ended(2, "", "mlbus: field 'model': no\n")
    worker.refusal = Unavailable("starting")
    assert await shell.run("finetune", ".", "--timeout", "1") == Ended(1, "", "mlbus: starting\n")


async def test_nobody_there_is_said(shell: Shell) -> None:
    ended = await shell.run("finetune", ".", "--timeout", "5")
    assert (ended.code, ended.out) == (1, "")
    assert "no worker listens on ml.finetune" in ended.err


# Watching


async def watched(worker: JobsWorker, shell: Shell, *arguments: str) -> Ended:
    """A command that watches the job, which goes through its states as soon as it is watched."""
    process = await shell.start(*arguments)
    await worker.is_asked()
    training = {"steps": 10, "loss": 0.5, "pairs_per_s": 6.25, "eta_s": 61.4, "notes": ["half the batch"]}
    await worker.publish(
        job("training", 1, reason="waits for memory"),
        job("training", 2, step=1, **training),
        job("training", 3, step=2, **training),
        job("done", 4, **DONE),
    )
    return await shell.end(process)


async def test_a_watch_tells_each_state_and_the_outcome(worker: JobsWorker, shell: Shell) -> None:
    ended = await watched(worker, shell, "finetune", ".", "--watch", "--id", "j1")
    assert ended.code == 0
    assert ended.err.splitlines() == [
        "a queued",
        "a training: waits for memory",
        "half the batch",
        "a training",
    ]
    assert ended.out.splitlines() == [
        "a v2 serves now, trained further from base",
        "  mrr@10  0.594 -> 0.663",
        "report: checkpoints/a/v2/report/report.html in the data folder of worker W1",
    ]


async def test_a_watch_in_json_is_a_line_for_each_state(worker: JobsWorker, shell: Shell) -> None:
    ended = await watched(worker, shell, "jobs", "watch", "j1", "--json")
    states = [json.loads(line) for line in ended.out.splitlines()]
    assert [state["state"] for state in states] == ["queued", "training", "training", "training", "done"]
    assert (states[2]["step"], states[2]["loss"], ended.code, ended.err) == (1, 0.5, 0, "")


async def test_a_person_sees_a_bar(worker: JobsWorker, shell: Shell) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 150))
    process = await shell.start("jobs", "watch", "j1", stderr=theirs)
    os.close(theirs)
    seen = asyncio.create_task(asyncio.to_thread(read_terminal, ours))
    await worker.is_asked()
    training = job("training", 1, step=3, steps=12, loss=0.5, pairs_per_s=6.25, eta_s=61.4)
    await worker.publish(training, job("done", 2, **DONE))
    assert (await shell.end(process)).code == 0
    assert "step 3 of 12, loss 0.5000, 6.2 pairs/s, 0:01:01 left" in await seen


@pytest.mark.parametrize(
    ("state", "fields", "code", "says"),
    [
        ("done", {**DONE, "reason": "kept as a candidate; promote with: x"}, 0, "a v2 is kept as a candidate; promote"),
        ("skipped", {"reason": "the code did not change"}, 0, "nothing was trained: the code did not change"),
        ("rejected", {**DONE, "reason": "worse"}, 1, "a v2 was rejected, and base goes on serving: worse"),
        ("failed", {"reason": "no [pairs]"}, 1, "job j1 failed: no [pairs]"),
        ("cancelled", {}, 1, "job j1 was cancelled"),
    ],
)
async def test_the_exit_code_says_how_it_ended(
    worker: JobsWorker, shell: Shell, state: str, fields: dict[str, object], code: int, says: str
) -> None:
    worker.job = job(state, **fields)
    worker.duplicate = True
    ended = await shell.run("finetune", ".", "--watch", "--id", "j1")
    assert (ended.code, ended.err) == (code, "")
    there, outcome, *_ = ended.out.splitlines()
    assert there == "job j1 was there already: nothing new begins"
    assert says in outcome


async def test_ctrl_c_leaves_the_job_running_and_says_what_to_do(worker: JobsWorker, shell: Shell) -> None:
    process = await shell.start("finetune", ".", "--watch", "--id", "j1")
    await worker.is_asked()
    assert process.stderr is not None
    assert await process.stderr.readline() == b"a queued\n"
    process.send_signal(signal.SIGINT)
    ended = await shell.end(process)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err == "job j1 goes on\nfollow it:  mlbus jobs watch j1\ncancel it:  mlbus jobs cancel j1\n"
    assert names.JOBS_CANCEL not in [subject for subject, _ in worker.asked]


# The jobs


async def test_the_list_is_a_table_or_json(worker: JobsWorker, shell: Shell) -> None:
    worker.job = job("training", source="/code/[x]", step=1, steps=4)
    heading, row = (await shell.run("jobs")).out.splitlines()
    assert heading.split() == ["job", "model", "state", "made", "from"]
    assert row.split()[:3] == ["j1", "a", "training"]
    assert row.rstrip().endswith("/code/[x]  step 1 of 4")
    (listed,) = json.loads((await shell.run("jobs", "list", "--state", "training", "--model", "a", "--json")).out)
    assert (listed["id"], listed["step"]) == ("j1", 1)
    assert [sent for _, sent in worker.asked] == [{"limit": 20}, {"state": "training", "model": "a", "limit": 20}]


async def test_a_job_is_shown_whole(worker: JobsWorker, shell: Shell) -> None:
    worker.job = job("done", **DONE, origin="nightly", attempt=2, notes=["half the batch"])
    out = (await shell.run("jobs", "get", "j1")).out
    for part in ("the nightly run", "2, on worker W1", "half the batch", "a v2 serves now", "0.594 -> 0.663"):
        assert part in out
    assert json.loads((await shell.run("jobs", "get", "j1", "--json")).out)["metrics"] == BEFORE_AND_AFTER
    worker.job = NotFound("there is no job 'j2'")
    assert await shell.run("jobs", "get", "j2") == Ended(1, "", "mlbus: there is no job 'j2'\n")


async def test_a_job_is_cancelled(worker: JobsWorker, shell: Shell) -> None:
    told = []
    for worker.job in (job("cancelled"), job("training", cancel_requested=True), job("done", **DONE)):
        told.append((await shell.run("jobs", "cancel", "j1")).out)
    assert told == [
        "job j1 is cancelled\n",
        "job j1 ends as soon as its worker hears of it, and is training until then\n",
        "job j1 was over already: done\n",
    ]
    assert json.loads((await shell.run("jobs", "cancel", "j1", "--json")).out)["state"] == "done"
    assert {subject for subject, _ in worker.asked} == {names.JOBS_CANCEL}


async def test_options_before_a_sub_command_are_refused(shell: Shell) -> None:
    ended = await shell.run("jobs", "--json", "get", "j1")
    assert ended.code == 2
    assert "write it behind the command: mlbus jobs get --json" in " ".join(ended.err.replace("│", "").split())
