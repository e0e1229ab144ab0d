"""`mlbus doctor`: how busy the machine is."""

from pathlib import Path

import pytest

from service.cli import doctor_machine
from service.settings import Settings


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
