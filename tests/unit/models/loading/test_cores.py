"""The cores: how many a process may use, and who else wants them."""

from pathlib import Path

import pytest

from models.loading.cores import usable_cores
from service.cli import doctor_machine
from service.config import Settings


@pytest.mark.parametrize(
    ("groups", "file", "content", "expected"),
    [
        ("0::/\n", "cpu.max", "max 100000\n", 8),
        ("0::/\n", "cpu.max", "150000 100000\n", 2),
        ("0::/\n", "cpu.max", "50000 100000\n", 1),
        ("0::/\n", "cpu.max", "garbage\n", 8),
        ("0::/pod/worker\n", "pod/cpu.max", "300000 100000\n", 3),
        ("3:memory:/x\n1:name=systemd:/\n0::/a\n", "unified/a/cpu.max", "200000 100000\n", 2),
    ],
)
def test_the_quota_of_version_2_counts(tmp_path: Path, groups: str, file: str, content: str, expected: int) -> None:
    (tmp_path / "groups").write_text(groups)
    path = tmp_path / "mount" / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert usable_cores(tmp_path / "groups", tmp_path / "mount", cores=8) == expected


@pytest.mark.parametrize(
    ("folder", "controllers"), [("cpu", "cpu"), ("cpu", "cpu,cpuacct"), ("cpu,cpuacct", "cpu,cpuacct")]
)
@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("250000", 3)])
def test_the_quota_of_version_1_counts(
    tmp_path: Path, folder: str, controllers: str, quota: str, expected: int
) -> None:
    (tmp_path / "groups").write_text(f"5:cpuset:/\n1:{controllers}:/docker/abc\n")
    group = tmp_path / "mount" / folder / "docker"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path / "groups", tmp_path / "mount", cores=8) == expected


@pytest.mark.parametrize("groups", [b"0::/\xff\n", b"garbage\n", b"1:cpu:/\n"])
def test_files_that_cannot_be_read_limit_nothing(tmp_path: Path, groups: bytes) -> None:
    (tmp_path / "groups").write_bytes(groups)
    group = tmp_path / "mount" / "cpu"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("1000\n")
    (group / "cpu.cfs_period_us").write_text("0\n")
    assert usable_cores(tmp_path / "groups", tmp_path / "mount", cores=3) == 3


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path, cores=3) == 3
    assert usable_cores() >= 1


@pytest.mark.parametrize(("waited", "status"), [("3.20", "ok"), ("44.10", "warn")])
def test_doctor_says_when_the_machine_is_crowded(tmp_path: Path, waited: str, status: str) -> None:
    (tmp_path / "cpu").write_text(f"some avg10=1.00 avg60={waited} avg300=9.00 total=12\nfull avg10=0.00\n")
    (finding,) = doctor_machine.load(Settings(), tmp_path / "cpu")
    assert (finding.status, finding.found) == (
        status,
        f"processes waited for a core {float(waited):.0f} % of the last minute",
    )


def test_without_the_kernels_figure_the_load_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    (finding,) = doctor_machine.load(Settings(), tmp_path / "none")
    assert (finding.status, finding.found.partition(" processes")[0]) == ("warn", "99.0")
