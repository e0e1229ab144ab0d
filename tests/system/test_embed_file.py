"""`mlbus embed --file … --out …`: real processes, a real nats-server, and files that are complete or not there."""

import asyncio
import os
import pty
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from fake_encoder import DIMENSIONS, FakeEncoder, vector_of, word_id
from shell import Shell
from workers import clean_environment, running_worker

from models.encoders.base import finish
from subjects.vectors import encode

LINES = [f"line {number}" for number in range(5000)]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "lines.txt").write_text("\n".join(LINES))
    return folder


@pytest.fixture
async def encoder(nats_url):
    encoder = FakeEncoder()
    async with running_worker(nats_url, encoder):
        yield encoder
        encoder.gate.set()


def expected(texts: list[str]) -> np.ndarray:
    return finish(np.stack([vector_of([word_id(word) for word in text.split()]) for text in texts]), True)


async def start(folder: Path, url: str, *arguments: str, **pipes: int) -> asyncio.subprocess.Process:
    return await Shell(folder, url, ("embed",)).start(*arguments, **pipes)


async def mlbus(folder: Path, url: str, *arguments: str, text: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error, on one line each."""
    ended = await Shell(folder, url, ("embed",)).run(*arguments, text=text)
    return ended.code, *(" ".join(part.split()) for part in (ended.out, ended.err))


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != "lines.txt")


@pytest.mark.parametrize(("encoding", "dtype"), [(None, "f4"), ("float16", "f2"), ("int8", "i1"), ("binary", "u1")])
async def test_a_npy_file_holds_every_line_in_its_place(nats_url, encoder, lines, encoding, dtype):
    chosen = ["--encoding", encoding] if encoding else []
    code, out, err = await mlbus(lines, nats_url, "--file", "lines.txt", "--out", "vectors.npy", *chosen)
    assert (code, err) == (0, "")
    assert out.startswith("minilm fake-fp32, 8 dimensions,")
    assert "5000 texts, 10000 tokens: vectors.npy" in out
    vectors = np.load(lines / "vectors.npy")
    assert vectors.dtype == np.dtype(dtype)
    unit = expected(LINES)
    if encoding in (None, "float16"):
        np.testing.assert_allclose(vectors, unit, atol=1e-3 if encoding else 1e-6)
    else:
        np.testing.assert_allclose(vectors, encode(unit, encoding), atol=encoding == "int8")
    assert left(lines) == ["vectors.npy"]


async def test_a_parquet_file_holds_the_texts_too_and_what_made_it(nats_url, encoder, lines):
    arguments = ["--file", "lines.txt", "--out", "vectors.parquet", "--dimensions", "4", "--json"]
    code, out, err = await mlbus(lines, nats_url, *arguments)
    assert (code, err) == (0, "")
    assert '"count":5000' in out
    table = pyarrow.parquet.read_table(lines / "vectors.parquet")
    assert [str(kind) for kind in table.schema.types] == ["int64", "string", "fixed_size_list<element: float>[4]"]
    assert table["index"].to_pylist() == list(range(5000))
    assert table["text"].to_pylist() == LINES
    vectors = np.stack(table["embedding"].to_numpy())
    np.testing.assert_allclose(vectors, finish(expected(LINES)[:, :4], True), atol=1e-5)
    file = pyarrow.parquet.ParquetFile(lines / "vectors.parquet")
    assert file.metadata.num_row_groups == 2
    metadata = file.metadata.metadata
    assert {name: metadata[name.encode()].decode() for name in ("model", "version", "dimensions", "encoding")} == {
        "model": "minilm",
        "version": "fake-fp32",
        "dimensions": "4",
        "encoding": "float32",
    }


@pytest.mark.parametrize(("encoding", "kind"), [("float16", "halffloat"), ("int8", "int8"), ("binary", "uint8")])
async def test_a_parquet_file_of_each_encoding(nats_url, encoder, lines, encoding, kind):
    code, _, err = await mlbus(lines, nats_url, "some words", "--out", "v.parquet", "--encoding", encoding)
    assert (code, err) == (0, "")
    table = pyarrow.parquet.read_table(lines / "v.parquet")
    width = 1 if encoding == "binary" else DIMENSIONS
    assert str(table.schema.types[2]) == f"fixed_size_list<element: {kind}>[{width}]"
    (vector,) = table["embedding"].to_pylist()
    np.testing.assert_allclose(vector, encode(expected(["some words"]), encoding)[0], atol=1e-3)


async def test_standard_input_is_read_as_it_comes(nats_url, encoder, lines):
    process = await start(lines, nats_url, "--file", "-", "--out", "vectors.npy")
    assert process.stdin is not None
    process.stdin.write("".join(f"{line}\n" for line in LINES[:3000]).encode())
    assert await asyncio.to_thread(encoder.entered.wait, 30)  # the worker has begun, the input has not ended
    process.stdin.write("".join(f"{line}\n" for line in LINES[3000:]).encode())
    process.stdin.close()
    await process.communicate()
    assert process.returncode == 0
    np.testing.assert_allclose(np.load(lines / "vectors.npy"), expected(LINES), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text", "told"),
    [
        (["--file", "-"], "a\n\nb\n", "line 2 of - is blank"),
        (["--file", "-"], "a\nb\0c\n", "line 2 of - holds a NUL"),
        (["--file", "-"], "", "- is empty"),
        (["--file", "-"], "a\n" + "x" * 1_000_001, "line 2 of - is longer than 1000000"),
        (["--file", "nowhere.txt"], "", "nowhere.txt"),
        (["some text", "--encoding", "int8", "--no-normalize"], "", "normalize: true"),
        (["some text", "--task", "nope"], "", "unknown task 'nope'"),
        (["some text", "--out", "vectors.csv"], "", ".npy or .parquet"),
        (["some text", "--out", "."], "", "directory"),
        ([], "", "give a text"),
    ],
)
async def test_what_is_refused_leaves_nothing_behind(nats_url, encoder, lines, arguments, text, told):
    code, out, err = await mlbus(lines, nats_url, "--out", "vectors.npy", *arguments, text=text)
    assert (code, out) == (2, "")
    assert told in err.replace("│ ", "")
    assert "Traceback" not in err
    assert left(lines) == []


async def test_a_bad_line_of_a_file_is_found_before_any_work(nats_url, encoder, lines):
    (lines / "lines.txt").write_text("\n".join([*LINES, "", "more"]))
    code, _, err = await mlbus(lines, nats_url, "--file", "lines.txt", "--out", "vectors.parquet")
    assert code == 2
    assert "line 5001 of lines.txt is blank" in err
    assert not encoder.seen
    assert left(lines) == []


async def test_an_encoding_without_a_file_is_refused(nats_url, lines):
    code, _, err = await mlbus(lines, nats_url, "some text", "--encoding", "int8")
    assert code == 2
    assert "--out" in err


class Swapped(FakeEncoder):
    """Another version from its eighth batch on."""

    @property
    def version(self) -> str:
        return "old-fp32" if len(self.batches) < 8 else "new-fp32"


@pytest.mark.parametrize("name", ["vectors.npy", "vectors.parquet"])
async def test_a_swap_of_the_model_ends_it_and_the_older_file_stays(nats_url, lines, name):
    (lines / name).write_bytes(b"an older file")
    async with running_worker(nats_url, Swapped()):
        code, _, err = await mlbus(lines, nats_url, "--file", "lines.txt", "--out", name)
    assert code == 1
    assert "swapped meanwhile" in err
    assert left(lines) == [name]
    assert (lines / name).read_bytes() == b"an older file"


@pytest.mark.parametrize("name", ["vectors.npy", "vectors.parquet"])
async def test_ctrl_c_leaves_nothing_behind_and_stops_the_worker(nats_url, encoder, lines, name):
    encoder.gate.clear()
    process = await start(lines, nats_url, "--file", "lines.txt", "--out", name)
    assert await asyncio.to_thread(encoder.entered.wait, 30)
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130
    assert left(lines) == []
    encoder.gate.set()


async def test_a_terminal_gets_a_bar(nats_url, encoder, lines):
    ours, theirs = pty.openpty()
    encoder.gate.clear()
    process = await start(lines, nats_url, "--file", "lines.txt", "--out", "vectors.npy", stderr=theirs)
    os.close(theirs)
    shown = await asyncio.to_thread(os.read, ours, 65536)
    while b"/5000" not in shown:
        shown += await asyncio.to_thread(os.read, ours, 65536)
    encoder.gate.set()
    await process.communicate()
    os.close(ours)
    assert process.returncode == 0


async def test_without_pyarrow_it_says_what_to_install(lines):
    script = (
        "import sys; sys.modules['pyarrow'] = None; sys.argv[1:] = ['embed', 'text', '--out', 'v.parquet']\n"
        "from service.cli.main import main\n"
        "main()\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script), cwd=lines, env=clean_environment(), stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 2
    assert "python -m pip install pyarrow" in " ".join(err.decode().replace("│", "").split())
    assert left(lines) == []
