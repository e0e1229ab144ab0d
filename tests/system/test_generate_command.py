"""`mlbus generate` as a person or a script runs it: real processes, a real nats-server, a worker that is scripted."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator

import pytest
from scripted_worker import DONE, SERVED, Worker, failing, frames, refusal, reply, scripted_worker, silent, tokens
from shell import Ended, Shell

from subjects import stream
from subjects.errors import Internal, InvalidField


@pytest.fixture
async def worker(nats_url) -> AsyncIterator[Worker]:
    async with scripted_worker(nats_url) as worker:
        yield worker


@pytest.fixture
def shell(tmp_path, nats_url) -> Shell:
    return Shell(tmp_path, nats_url, ("generate",))


async def test_a_pipe_gets_the_text_and_nothing_else(worker, shell):
    worker.scripts = [reply({**DONE, "text": " é\x1b[31m"})]
    asked = ("--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "3", "--seed", "4")
    ended = await shell.run("def f", *asked, "--stop", "a", "--stop", "\n", "--model", "tiny")
    assert ended == Ended(0, " é\x1b[31m", "")
    assert worker.fields() == {
        "prompt": "def f",
        "model": "tiny",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "seed": 4,
        "stop": ["a", "\n"],
    }


async def test_a_terminal_gets_it_as_it_is_written(worker, shell):
    worker.scripts = [frames(*tokens("def", " é\x1b[31m\t"), (stream.DONE, 2, DONE))]
    ended = await shell.run_on_terminal("x")
    assert (ended.code, ended.out.expandtabs()) == (0, "def é\N{REPLACEMENT CHARACTER}[31m\t\n".expandtabs())
    assert worker.requests[0].headers["Ml-Stream"] == "true"
    assert (await shell.run_on_terminal("x", "--no-stream")).code == 1  # frames are no reply


async def test_pieces_are_printed_before_the_next_one_is_there(worker, shell):
    worker.scripts = [frames(*tokens("first "), sentinel=False)]
    process = await shell.start("x", "--stream")
    assert await asyncio.wait_for(process.stdout.readexactly(6), 60) == b"first "
    await frames((stream.TOKEN, 1, {"text": "last"}), (stream.DONE, 2, DONE))(worker, worker.requests[0])
    assert (await process.communicate())[0] == b"last"
    assert process.returncode == 0


async def test_ctrl_c_ends_the_work(worker, shell):
    worker.scripts = [frames(*tokens("first"), sentinel=False), silent]
    process = await shell.start("x", "--stream")
    await asyncio.wait_for(process.stdout.readexactly(5), 60)
    process.send_signal(signal.SIGINT)
    assert await worker.next_cancel() == worker.id()
    _, err = await process.communicate()
    assert process.returncode not in (0, 2)
    assert b"Traceback" not in err


async def test_a_reader_that_leaves_ends_the_work(worker, shell):
    worker.scripts = [frames(*tokens("first"), sentinel=False)]
    ours, theirs = os.pipe()
    process = await shell.start("x", "--stream", stdout=theirs)
    os.close(theirs)
    assert await asyncio.to_thread(os.read, ours, 5) == b"first"
    os.close(ours)
    await frames((stream.TOKEN, 1, {"text": "more"}), sentinel=False)(worker, worker.requests[0])
    assert await worker.next_cancel() == worker.id()
    _, err = await process.communicate()
    assert (process.returncode, b"Traceback" in err) == (1, False)


async def test_how_it_ended_is_told_on_request(worker, shell):
    worker.scripts = [
        frames(*tokens("x"), (stream.DONE, 1, {**DONE, "stop_reason": "\n"})),
        reply({**DONE, "usage": {**SERVED["usage"], "cached_tokens": 2}, "text": "x"}),
    ]
    streamed = await shell.run("x", "--stream", "--verbose")
    whole = await shell.run("x", "-v")
    assert streamed.out == whole.out == "x"
    assert streamed.err.startswith("tiny v-fp32: 3 + 2 tokens in ")
    assert streamed.err.endswith(" s, stop at '\\n', seed 7\n")
    assert " 3 (2 cached) + 2 tokens " in whole.err


async def test_json_is_the_reply_or_the_frames(worker, shell):
    worker.scripts = [reply({**DONE, "text": "x"}), frames(*tokens("a"), (stream.DONE, 1, DONE))]
    whole = json.loads((await shell.run("x", "--json")).out)
    assert whole == {**DONE, "text": "x", "usage": {**SERVED["usage"], "cached_tokens": 0}}
    lines = [json.loads(line) for line in (await shell.run("x", "--json", "--stream")).out.splitlines()]
    assert lines[0] == {"seq": 0, "text": "a"}
    assert (lines[1]["seq"], lines[1]["finish_reason"]) == (1, "stop")


async def test_a_prompt_is_scored(worker, shell):
    told = [{"token": "x", "id": 1, "bytes": [], "top": []}]
    worker.scripts = [reply({**DONE, "text": "x", "logprobs": told})]
    ended = await shell.run("x", "--max-tokens", "0", "--echo", "--logprobs", "2", "--json")
    assert json.loads(ended.out)["logprobs"] == told
    assert worker.fields() == {"prompt": "x", "max_tokens": 0, "echo": True, "logprobs": 2}


async def test_standard_input_is_the_prompt_as_it_is(worker, shell):
    worker.scripts = [reply({**DONE, "text": "x"})]
    await shell.run("-", text="def f():\n    x = 'é'\n\n")
    assert worker.fields() == {"prompt": "def f():\n    x = 'é'\n\n"}


async def test_a_question_is_a_chat(worker, shell):
    worker.scripts = [reply({**DONE, "text": "x"})]
    await shell.run("why?", "--chat")
    await shell.run("why?", "--system", "be brief")
    turn = {"role": "user", "content": "why?"}
    assert worker.fields(0) == {"messages": [turn]}
    assert worker.fields(1) == {"messages": [{"role": "system", "content": "be brief"}, turn]}


async def test_a_gap_has_what_stands_before_and_behind_it(worker, shell):
    worker.scripts = [reply({**DONE, "text": "middle"})]
    (shell.folder / "a.py").write_text("def f():\n    é()\n")
    assert (await shell.run("--fim", "a.py:2:5")).out == "middle"
    assert worker.fields() == {"prefix": "def f():\n    ", "suffix": "é()\n"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fim", "a.py:2"), "a.py has no line 2: it has 1"),
        ((), "give a prompt"),
        (("",), "'prompt'"),
        (("x", "--temperature", "nan"), "'temperature'"),
        (("x", "--stop", ""), "'stop.0'"),
        (("x", "--max-tokens", "0"), "send 'echo' too"),
        (("x", "--logprobs", "1"), "is for --json"),
    ],
)
async def test_what_cannot_be_used_is_said(worker, shell, arguments, says):
    (shell.folder / "a.py").write_text("def f():")
    ended = await shell.run(*arguments)
    assert (ended.code, ended.out, worker.requests) == (2, "", [])
    assert says in " ".join(ended.err.replace("│", "").split())


async def test_what_the_worker_refuses_is_one_line(worker, shell):
    worker.scripts = [refusal(InvalidField("field 'max_tokens': too many")), failing(Internal("broken"), *tokens("a"))]
    assert await shell.run("x") == Ended(2, "", "mlbus: field 'max_tokens': too many\n")
    assert await shell.run("x", "--stream") == Ended(1, "a", "mlbus: broken\n")


async def test_a_text_that_is_not_complete_fails(worker, shell):
    worker.scripts = [frames(*tokens("a"), (stream.DONE, 1, {**DONE, "finish_reason": "timeout"}))]
    ended = await shell.run("x", "--stream")
    assert ended == Ended(1, "a", "mlbus: the text is not complete: it ended with timeout\n")


async def test_nobody_there_is_said(shell):
    ended = await shell.run("x", "--timeout", "5")
    assert (ended.code, ended.out) == (1, "")
    assert "no worker listens on ml.generate" in ended.err
