"""The peer: CTranslate2 with int8 weights, in an environment of its own that is built on first use.

Knows how to install it, convert a repository and start it; what it answers is in ctranslate2_child.py.
"""

import asyncio
import hashlib
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.generation_process import Child, child
from bench.processes import ROOT

REQUIREMENTS = Path(__file__).with_name("ctranslate2-requirements.txt")
ENVIRONMENT = ROOT / "var" / "bench" / "ctranslate2"


async def installed() -> Path:
    """The folder of its commands, after building the environment if its requirements have changed.

    Raises RuntimeError if pip fails.
    """
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = ENVIRONMENT / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        print("building the environment of CTranslate2; this takes a minute, once", file=sys.stderr)
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        await _run(sys.executable, "-m", "venv", ENVIRONMENT)
        await _run(ENVIRONMENT / "bin" / "pip", "install", "--quiet", "-r", REQUIREMENTS)
        stamp.write_text(wanted)
    return ENVIRONMENT / "bin"


@asynccontextmanager
async def generating(repository: Path, converted: Path, threads: int) -> AsyncIterator[Child]:
    """CTranslate2 with the weights of a repository as int8, which are written to the folder `converted`.

    Raises RuntimeError if it cannot convert them.
    """
    commands = await installed()
    convert = (commands / "ct2-transformers-converter", "--model", repository, "--output_dir", converted)
    await _run(*convert, "--quantization", "int8")
    command = (commands / "python", "-m", "bench.peers.ctranslate2_child", converted, str(threads))
    async with child(command) as started:
        yield started


async def _run(*command: str | Path) -> None:
    """Run a command to its end; its output is shown only if it fails."""
    pipe, out = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=pipe, stderr=out)
    output, _ = await process.communicate()
    if process.returncode:
        sys.stderr.write(output.decode(errors="replace")[-4000:])
        raise RuntimeError(f"failed: {' '.join(map(str, command))}")
