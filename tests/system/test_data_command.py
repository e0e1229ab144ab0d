"""`mlbus data build` as a person types it, on a codebase that the test writes."""

import json
import subprocess
from pathlib import Path

import pytest
from shell import MLBUS
from workers import clean_environment

FUNCTION = '''
def {verb}_{noun}(values):
    """{Verb} every {noun} of the values that somebody gave, and say how many there were."""
    found = [value for value in values if value.{noun}]
    for one in found:
        one.{verb}({noun}=True)
    return len(found), "{verb} {noun}"
'''
VERBS = ("open", "close", "paint", "weigh", "count", "sell", "mend", "carry")
NOUNS = ("door", "ship", "apple", "letter", "engine", "mirror")


@pytest.fixture
def codebase(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    for noun in NOUNS:
        functions = [FUNCTION.format(verb=verb, Verb=verb.title(), noun=noun) for verb in VERBS]
        (folder / f"{noun}s.py").write_text("".join(functions))
    (folder / "logo.png").write_bytes(b"\x89PNG\0")
    return folder


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (MLBUS, "data", "build", *arguments)
    environment = clean_environment(MLBUS_DATA_DIR=str(tmp_path / "var"))
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=100)


def test_pairs_are_made_filed_and_counted(codebase: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(codebase), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    lines = Path(facts["file"]).read_text().splitlines()
    assert Path(facts["file"]).parent == tmp_path / "var" / "training_data"
    assert len(lines) == facts["pairs"] + facts["held_out"] >= 30
    assert facts["kinds"]["docstring"] == len(lines)
    assert facts["languages"] == {"python": len(lines)}
    assert all(json.loads(line)["negatives"] for line in lines if json.loads(line)["split"] == "train")


def test_the_same_again_is_the_same_file(codebase: Path, tmp_path: Path) -> None:
    one, other = (json.loads(run(tmp_path, str(codebase), "--json").stdout) for _ in range(2))
    assert one == other
    changed = json.loads(run(tmp_path, str(codebase), "--json", "--seed", "7").stdout)
    assert changed["file"] == one["file"].replace(".jsonl", ".2.jsonl")


def test_a_person_sees_counts_and_examples(codebase: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(codebase), "--show", "1", "--out", str(tmp_path / "here"))
    assert done.returncode == 0, done.stderr
    assert "kind: docstring" in done.stdout
    assert "+ " in done.stdout
    assert list((tmp_path / "here").glob("day-*.jsonl"))


@pytest.mark.slow
def test_the_vectors_of_a_model_may_choose_negatives(codebase: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(codebase), "--model", "minilm", "--hard-negatives", "2", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in Path(json.loads(done.stdout)["file"]).read_text().splitlines()]
    assert all(len(line["negatives"]) == 2 for line in lines if line["split"] == "train")


def test_one_file_alone_is_noted(codebase: Path, tmp_path: Path) -> None:
    code = "".join(file.read_text() for file in sorted(codebase.glob("*.py")))
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "all.py").write_text(code)
    done = run(tmp_path, str(tmp_path / "single"), "--show", "2")
    assert done.returncode == 0, done.stderr
    assert "there is one file alone" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--model", "nothing"), "unknown model"), (("--seed", str(2**32)), "seed"), (("--hard-negatives", "9"), "hard")],
)
def test_what_cannot_be_is_refused(codebase: Path, tmp_path: Path, arguments: tuple[str, str], said: str) -> None:
    done = run(tmp_path, str(codebase), *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "var" / "training_data").exists()


@pytest.mark.parametrize("name", ["nowhere", "code/doors.py"])
def test_what_is_no_folder_is_refused(codebase: Path, tmp_path: Path, name: str) -> None:
    done = run(tmp_path, str(tmp_path / name))
    assert done.returncode == 1
    assert "cannot be trained on" in done.stderr
    assert done.stderr.count("\n") == 1


def test_too_little_is_said_with_figures(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        'def f():\n    """Say hello to everybody here."""\n    print("hello to everybody")\n'
    )
    done = run(tmp_path, str(tmp_path))
    assert done.returncode == 1
    assert "there is too little to train on: 1 files of code with 1 functions" in done.stderr
