"""`mlbus doctor`: runs all checks and prints what they found."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from rich.text import Text

from ..settings import BadSettings, Settings, read_settings
from . import doctor_machine
from .doctor_machine import Finding
from .doctor_nats import nats
from .options import Config, Json, NatsUrl, Timeout
from .output import out, print_json, spinner

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(config: Config = None, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Check this machine, the NATS server and the workers, and say what to do. Exit code 1 when something fails."""
    settings, findings = _settings(config, nats_url)
    findings += _look(settings, timeout)
    failed = any(finding.status == "fail" for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    raise typer.Exit(int(failed))


def _settings(config: Path | None, nats_url: str | None) -> tuple[Settings, list[Finding]]:
    """The settings in force; if they cannot be read, the defaults and a finding that says so."""
    try:
        return read_settings(config, nats_url=nats_url), []
    except BadSettings as error:
        advice = "correct it; what follows was looked at with the defaults"
        return Settings.model_construct(nats_url=nats_url), [Finding("settings", "fail", str(error), advice)]


def _look(settings: Settings, timeout_s: float) -> list[Finding]:
    checks = {
        "Python": doctor_machine.python,
        "the libraries": doctor_machine.libraries,
        "torch and the device": doctor_machine.device,
        "who else computes here": doctor_machine.load,
        "nats-server": doctor_machine.nats_server,
        "the ports": doctor_machine.ports,
        "NATS and its workers": lambda settings: nats(settings, timeout_s),
        "the models": doctor_machine.models,
        "the data directory": doctor_machine.data_dir,
    }
    findings: list[Finding] = []
    with spinner() as progress:
        task = progress.add_task("")
        for what, check in checks.items():
            progress.reset(task, description=f"looking at {what}")
            findings += check(settings)
    return findings


def _show(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        line = Text.assemble((f"{finding.status:<5}", _COLOURS[finding.status]), f"{finding.check:<{width}}  ")
        out.print(line.append(finding.found))
        if finding.advice:
            out.print(Text(f"{'':{width + 7}}-> {finding.advice}"))
