"""Paths, names and ids of extreme length or odd characters: a clear error of the caller's own, at once and for good."""

import json
from pathlib import Path

from nats.aio.client import Client

from subjects import names

LONG = {
    "a name past the file system's": "x" * 4096,
    "folders past the file system's": "x/" * 2047 + "x",
    "past our own bound": "x" * 4097,
    "up and out": "../" * 1365,
    "through nothing": "nothing/../../../etc",
    "a name past the file system's, in few characters": "é" * 200,
    "ended early": "code\0/../..",
}


async def refused(nc: Client, subject: str, body: object, **headers: str) -> str:
    """The message of an error in the fours that is not to be tried again."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = await nc.request(subject, json.dumps(body).encode(), timeout=20, headers=named or None)
    error = json.loads(reply.data)["error"]
    assert 400 <= error["code"] < 500, error
    assert (error["code"], error["retryable"]) != (429, True), error
    assert not error["retryable"], error
    return str(error["message"])


async def test_paths(anyone: Client, tmp_path: Path) -> None:
    for meaning, path in LONG.items():
        for written in (path, str(tmp_path / "code" / path)):
            assert "JetStream" not in await refused(anyone, names.FINETUNE, {"path": written}), meaning
    (tmp_path / "code" / "link").symlink_to("/etc")
    assert "finetune.roots" in await refused(anyone, names.FINETUNE, {"path": str(tmp_path / "code" / "link")})


async def test_names_and_ids(anyone: Client, admin: Client) -> None:
    await refused(anyone, names.FINETUNE, {"object": "é" * 256})
    await refused(anyone, names.FINETUNE, {"object": "../" * 85})
    await refused(anyone, names.FINETUNE, {"object": "x" * 257})
    await refused(anyone, names.FINETUNE, {"id": "x" * 97, "path": "."})
    await refused(anyone, names.FINETUNE, {"id": "a.>", "path": "."})
    for job in ("x" * 96, "x" * 97, "*", "a.b"):
        await refused(anyone, names.JOBS_GET, {"id": job})
        await refused(anyone, names.JOBS_CANCEL, {"id": job})
        await refused(admin, names.JOBS_LIST, {"before": job})
    for model in ("é" * 64, "../" * 21, "x" * 65, "\0"):
        await refused(anyone, names.MODELS_INFO, {"model": model})
        await refused(anyone, names.EMBED, {"text": "a", "model": model})
        await refused(anyone, names.GENERATE, {"prompt": "a", "model": model})
    for version in ("é" * 128, "x" * 128, "../../minilm", "x" * 129):
        await refused(admin, names.MODELS_RELOAD, {"model": "minilm", "version": version})
    for subject in ("é" * 256, "x" * 257, ".", "*", "ml.models.load"[:-1]):
        await refused(anyone, names.SCHEMA, {"subject": subject})


async def test_headers(anyone: Client) -> None:
    text = {"text": "a"}
    await refused(anyone, names.EMBED, text, Ml_Timeout_Ms="9" * 5000)
    await refused(anyone, names.EMBED, text, Ml_Ping_Ms="9" * 5000)
    await refused(anyone, names.EMBED, text, Ml_Request_Id="x" * 129)
    await refused(anyone, names.EMBED, text, Ml_Caller="_INBOX." + "x" * 1100)
    await refused(anyone, names.EMBED, text, Ml_Stream="x" * 5000)
    await refused(anyone, names.EMBED, text, Accept="x/" * 5000)
    await refused(anyone, names.EMBED, text, traceparent="x" * 20_000)


async def test_numbers(anyone: Client) -> None:
    for digits in ("9" * 5000, "1e999"):
        reply = await anyone.request(names.GENERATE, b'{"prompt": "a", "seed": ' + digits.encode() + b"}", timeout=20)
        assert json.loads(reply.data)["error"]["code"] in (400, 422)


async def test_subjects_of_a_cancel(anyone: Client) -> None:
    await anyone.publish(f"{names.CANCEL}.{'x' * 3000}")
    assert (await anyone.request(names.EMBED, b"still there", timeout=20)).data.startswith(b"{")
