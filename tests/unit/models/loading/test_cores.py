"""The number of cores that a process may use."""

from pathlib import Path

import pytest

from models.loading.cores import usable_cores


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
