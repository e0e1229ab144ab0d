"""The versions of a model as a person sees them: `mlbus models history`, and `ml.models.info` over a real server."""

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import nats
import pytest
from fake_loader import FakeLoader
from shell import MLBUS
from trained_versions import serve, trained
from workers import clean_environment, running_worker

from models.weights.versions import RECORD, keep, version_name
from subjects import MLClient

OWN = {"kind": "embedding", "folder": "weights"}
REPORT = {"accepted": True, "metrics": {"mrr@10_before": 0.594, "mrr@10_after": 0.6631}}
WORSE = {"accepted": False, "reasons": ["NDCG@10 is worse"], "metrics": {"mrr@10_before": 0.6631}}


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Three versions of the model `mine` below the data directory: served, served before, rejected."""
    checkpoints, made = tmp_path / "var" / "checkpoints", ["base"]
    for day, report in enumerate((REPORT, REPORT, WORSE)):
        name = trained(tmp_path / "run", f"weights {day}", parent=made[-1], day=day, **report)
        keep(tmp_path / "run", checkpoints, "mine", name)
        made.append(name)
    for name in made[1:3]:
        serve(checkpoints, "mine", name)
    return made[1:]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    (cwd / "mlbus.toml").write_text('[catalogue.mine]\nkind = "embedding"\nfolder = "weights"\n')
    return subprocess.run(
        [MLBUS, "models", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=clean_environment(XDG_CONFIG_HOME=str(cwd / "no-config"), TZ="UTC"),
        cwd=cwd,
    )


def printed(*arguments: str, cwd: Path) -> Any:
    done = run(*arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout) if "--json" in arguments else [line.split() for line in done.stdout.splitlines()]


def test_history_is_a_table_newest_first(tmp_path, names):
    first, second, third = names
    heading, *rows = printed("history", "mine", cwd=tmp_path)
    assert heading == ["version", "made", "from", "pairs", "MRR@10", "verdict", "size"]
    better = ["0.594", "->", "0.663"]
    assert rows == [
        [third, "2026-01-03", "02:00", second, "4950", "-", "rejected", "0.00", "GB"],
        [second, "2026-01-02", "02:00", first, "4950", *better, "accepted", "live", "0.00", "GB"],
        [first, "2026-01-01", "02:00", "base", "4950", *better, "accepted", "previous", "0.00", "GB"],
        ["base", "-", "-", "-", "-", "-", "-"],
        [f"{third}:", "NDCG@10", "is", "worse"],
    ]


def test_history_for_scripts_holds_all_that_is_known(tmp_path, names):
    first, second, third = names
    (tmp_path / "var" / "checkpoints" / "mine" / first / RECORD).write_text("{")
    told = printed("history", "mine", "--json", "--config", "mlbus.toml", cwd=tmp_path)
    versions = {version["name"]: version for version in told}
    assert "is damaged" in versions[first]["problem"]
    worse = versions[third]
    assert (worse["accepted"], worse["reasons"], worse["parent"]) == (False, ["NDCG@10 is worse"], second)
    assert version_name(datetime.fromisoformat(worse["created_at"]), worse["weights"]) == third
    assert worse["job"] == "job-2"  # who may read the data directory
    base = told[-1]
    assert (base["name"], base["live"], base["size_bytes"]) == ("base", False, None)
    assert printed("info", "mine", "--json", cwd=tmp_path)["live"] == second


def test_history_of_a_model_that_was_never_trained_is_base(tmp_path):
    (only,) = printed("history", "mine", "--json", cwd=tmp_path)
    assert (only["name"], only["live"], only["previous"]) == ("base", True, False)


def test_history_of_an_unknown_model_is_refused(tmp_path):
    done = run("history", "nothing", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown model 'nothing'" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_worker_tells_the_same(nats_url, tmp_path, names):
    settings = {"catalogue": {"mine": OWN}, "data_dir": tmp_path / "var", "models": ("mine",)}
    async with running_worker(nats_url, loader=FakeLoader(), **settings):
        nc = await nats.connect(nats_url)
        try:
            info = await MLClient(nc, timeout_s=20).models.info("mine")
        finally:
            await nc.close()
    assert (info.live, info.versions) == (names[1], ["base", *names])
    assert [version.name for version in info.history] == [*reversed(names), "base"]
    third, second, first, base = info.history
    assert (third.accepted, third.reasons, third.metrics) == (False, ["NDCG@10 is worse"], {"mrr@10_before": 0.6631})
    assert (second.live, second.previous, second.parent) == (True, False, names[0])
    assert (first.live, first.previous, first.pairs, first.weights) == (False, True, 4950, names[0][-12:])
    assert second.created_at is not None
    assert f"{second.created_at:%Y%m%d-%H%M%S}-{second.weights}" == names[1]
    assert (base.live, base.created_at, base.weights, base.problem) == (False, None, None, None)
