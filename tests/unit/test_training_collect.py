"""The step `collect`: from a folder of code, or given pairs, to the file of pairs of a run."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from fake_encoder import FakeEncoder
from workers import clean_environment

from models import loader
from models.catalogue import load_catalogue
from models.training.collect import build_dataset, collect
from models.training.dataset import read_pairs
from models.training.errors import MalformedPair, NoPairs, PathRefused
from models.training.options import TrainingOptions
from models.training.progress import Collected, Event, Note, read_event
from models.training.run import RunFolder, RunSpec

PYTHON = '''
def {verb}_{noun}(values):
    """{Verb} every {noun} of the values that somebody gave, and say how many there were."""
    found = [value for value in values if value.{noun}]
    for one in found:
        one.{verb}({noun}=True)
    return len(found), "{verb} {noun}"


def test_{verb}_{noun}(make):
    assert {verb}_{noun}(make("{noun}", {verb}=False)) == (1, "{verb} {noun}")
'''
GO = """
// {Verb}{Noun} takes what it needs to {verb} one {noun} from the store, and puts it back.
func {Verb}{Noun}(store *Store, {noun} string) error {{
	{verb} := store.Take({noun})
	return store.Put({verb}, {noun})
}}
"""
VERBS = ("open", "close", "paint", "weigh", "count", "sell")
NOUNS = ("door", "ship", "apple", "letter", "engine", "mirror", "candle", "bottle")


def written(folder: Path, nouns: tuple[str, ...] = NOUNS) -> Path:
    """A codebase of a Python and a Go file for each noun."""
    folder.mkdir()
    for noun in nouns:
        for template, name in ((PYTHON, f"{noun}s.py"), (GO, f"{noun}.go")):
            parts = [template.format(verb=v, Verb=v.title(), noun=noun, Noun=noun.title()) for v in VERBS]
            (folder / name).write_text(("package store\n" if name.endswith("go") else "") + "".join(parts))
    return folder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return written(tmp_path / "code")


def run_of(tmp_path: Path, **fields: Any) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    spec = RunSpec(
        job="job-1",
        entry=load_catalogue().get("minilm"),
        base=tmp_path / "base",
        parent="base",
        training_data=tmp_path / "training_data",
        day=date(2026, 3, 1),
        **{"options": TrainingOptions(hard_negatives=0), "device": "cpu", **fields},
    )
    run.spec.write_text(spec.model_dump_json())
    return run


def collected(run: RunFolder) -> list[Event]:
    said: list[Event] = []
    collect(run, said.append)
    return said


def test_a_codebase_becomes_a_file_of_pairs(code: Path, tmp_path: Path) -> None:
    (code / "logo.py").write_bytes(b"\x89PNG\0")
    (code / "broken.py").write_text("def (:\n" * 40)
    run = run_of(tmp_path, codebase=code, roots=(tmp_path,))
    note, last = collected(run)
    pairs, manifest = read_pairs(run.data), json.loads(run.manifest.read_bytes())
    assert note == Note(text="files left out: 1 binary")
    assert last == Collected(pairs=manifest["pairs"], held_out=manifest["held_out"], digest=manifest["digest"])
    assert manifest["pairs"] + manifest["held_out"] == len(pairs) >= 60
    assert set(manifest["kinds"]) >= {"docstring", "test"}
    assert set(manifest["languages"]) == {"python", "go"}
    assert {pair.file for pair in pairs if pair.split == "train"}.isdisjoint(
        pair.file for pair in pairs if pair.split == "held_out"
    )
    assert (tmp_path / "training_data" / "day-2026-03-01.jsonl").read_bytes() == run.data.read_bytes()


def test_what_was_collected_is_not_collected_again(code: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, codebase=code)
    *_, last = collected(run)
    (code / "doors.py").unlink()
    before = run.data.read_bytes()
    (tmp_path / "training_data" / "day-2026-03-01.jsonl").unlink()
    assert collected(run) == [last]
    assert run.data.read_bytes() == before == (tmp_path / "training_data" / "day-2026-03-01.jsonl").read_bytes()


def test_pairs_without_a_manifest_are_collected_anew(code: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, codebase=code)
    collected(run)
    before = run.data.read_bytes()
    run.data.write_bytes(b"half of a li")
    run.manifest.unlink()
    collected(run)
    assert run.data.read_bytes() == before
    assert len(list((tmp_path / "training_data").iterdir())) == 2


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_bytes_are_the_same_in_every_process(code: Path, tmp_path: Path, hash_seed: str) -> None:
    expected = build_dataset(code, TrainingOptions(hard_negatives=3, seed=5)).lines()
    program = (
        "import sys; from pathlib import Path; from models.training.collect import build_dataset;"
        "from models.training.options import TrainingOptions;"
        "made = build_dataset(Path(sys.argv[1]), TrainingOptions(hard_negatives=3, seed=5));"
        "sys.stdout.buffer.write(made.lines())"
    )
    environment = clean_environment(PYTHONHASHSEED=hash_seed)
    done = subprocess.run([sys.executable, "-c", program, str(code)], capture_output=True, check=True, env=environment)
    assert done.stdout == expected
    assert b'"negatives":["' in expected


def test_another_seed_gives_other_bytes(code: Path) -> None:
    one, other = (build_dataset(code, TrainingOptions(seed=seed)).lines() for seed in (0, 1))
    assert one != other


def test_one_file_alone_is_split_with_a_note(tmp_path: Path) -> None:
    code = written(tmp_path / "code", ("door",))
    (code / "door.go").unlink()
    text = "".join(PYTHON.format(verb=verb, Verb=verb.title(), noun=noun) for verb in VERBS for noun in NOUNS)
    (code / "doors.py").write_text(text)
    note, last = collected(run_of(tmp_path, codebase=code))
    assert isinstance(note, Note)
    assert note.text.startswith("there is one file alone: ")
    assert isinstance(last, Collected)
    assert last.held_out


def test_an_empty_folder_is_refused_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "logo.png").write_bytes(b"\x89PNG\0")
    run = run_of(tmp_path, codebase=tmp_path / "code")
    with pytest.raises(NoPairs, match="0 files of code with 0 functions and classes, 0 documented; files left out: 1"):
        collected(run)
    assert [path.name for path in run.path.iterdir()] == ["run.json"]
    assert not (tmp_path / "training_data").exists()


def test_code_without_documentation_is_refused_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("".join(f"def f{n}():\n    return {n}\n\n" for n in range(30)))
    with pytest.raises(NoPairs, match="1 files of code with 30 functions and classes, 0 documented"):
        collected(run_of(tmp_path, codebase=tmp_path / "code"))


def test_code_outside_the_roots_is_refused(code: Path, tmp_path: Path) -> None:
    with pytest.raises(PathRefused):
        collected(run_of(tmp_path, codebase=code, roots=(tmp_path / "elsewhere",)))


def test_given_pairs_are_taken_as_they_are(tmp_path: Path) -> None:
    lines = [json.dumps({"anchor": f"question{n} of{n}", "positive": f"answer{n} to{n}"}) for n in range(40)]
    (tmp_path / "given.jsonl").write_text("\n".join(lines))
    run = run_of(tmp_path, given=tmp_path / "given.jsonl")
    (last,) = collected(run)
    assert isinstance(last, Collected)
    assert last.pairs + last.held_out == 40
    (tmp_path / "given.jsonl").write_text("nonsense")
    run.manifest.unlink()
    with pytest.raises(MalformedPair, match="line 1"):
        collected(run)


def test_a_run_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoPairs):
        collected(run_of(tmp_path))


@pytest.mark.parametrize(("memory_tokens", "notes"), [(1_000_000, 0), (1, 1)])
def test_vectors_of_the_model_choose_negatives_where_memory_allows(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_tokens: int, notes: int
) -> None:
    encoder = FakeEncoder(memory_tokens=memory_tokens)
    asked: list[Any] = []
    monkeypatch.setattr(loader, "load", lambda spec, options: asked.append(options) or encoder)
    options = TrainingOptions(hard_negatives=1)
    said = collected(run := run_of(tmp_path, codebase=code, options=options, memory_bytes=1 << 33))
    assert asked[0].folder == tmp_path / "base"
    assert encoder.batches or notes
    assert all(pair.negatives for pair in read_pairs(run.data) if pair.split == "train")
    assert len(said) == 1 + notes
    if notes:
        assert said[0] == Note(text="memory was short: hard negatives were found by words alone")
        assert run.data.read_bytes() == build_dataset(code, options).lines()


def test_as_a_process_it_speaks_in_events(code: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, codebase=code)
    command = [sys.executable, "-m", "models.training", "collect", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=True, timeout=60)
    assert [read_event(line).event for line in done.stdout.splitlines()] == ["collected"]
    assert done.stderr == ""
    run.manifest.unlink()
    (tmp_path / "code").rename(tmp_path / "gone")
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=60)
    assert done.returncode == 1
    assert [read_event(line).event for line in done.stdout.splitlines()] == ["failed"]
