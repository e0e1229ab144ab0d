"""The step `verify`: what is accepted, what is refused and why, and that a report is whole or not there."""

import errno
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_encoder import FakeEncoder, word_id
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from training_runs import run_in
from workers import clean_environment

from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import PromptsAndTasks, TextOptions, Tokens, Vectors, cosine_rows
from models.errors import ModelUnavailable, OutOfDeviceMemory
from models.loading import loader
from models.loading.loader import LoadOptions
from models.training.data.held_out import held_out
from models.training.data.records import Pair
from models.training.encoding import ANCHOR_PROMPTS, DOCUMENT_PROMPTS, encode_texts, options_named
from models.training.progress import Event, Note, Verified, read_event
from models.training.run import RunFolder, VerifyLimits
from models.training.verify import report
from models.training.verify.acceptance import check_gain, check_speed
from models.training.verify.check_texts import FILE, canary_texts, probe_items, read_canary
from models.training.verify.compare import Findings, VersionComparison, speed_ratio
from models.training.verify.report import HTML_FILE, JSON_FILE, Comparison, read_report
from models.training.verify.verify import MAP, verify
from models.weights import durable, hub, model_files
from models.weights.version_history import OWN_DATA, verdict_of
from models.weights.versions import RECORD, TrainingRecord

DEFAULT = VerifyLimits(require_gain=False, max_slowdown=10)
"""Without a gain, since most candidates here are the live version itself; and whatever else the machine computes."""
METRICS = {
    *(f"{name}_{when}" for name in ("ndcg@10", "mrr@10", "probe") for when in ("before", "after")),
    *("p_worse", "probe_base", "cosine_p5", "cosine_p50", "overlap@10"),
    *("old_vectors_overlap@10", "mapped_vectors_overlap@10", "speed_ratio"),
}
Weights = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The step sets up its process, and here that is everybody's."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def minilm() -> ModelSpec:
    return load_catalogue().get("minilm")


def pairs(held: int = 30) -> list[Pair]:
    return [
        Pair(item.sentence, item.paraphrase, "given", file=f"{i}.txt", split="held_out" if i < held else "train")
        for i, item in enumerate(probe_items()[:60])
    ]


def begun(folder: Path, entry: ModelSpec, given: Sequence[Pair], limits: VerifyLimits = DEFAULT) -> RunFolder:
    """A run that has its data, but no candidate."""
    return run_in(folder / "run", entry, [asdict(pair) for pair in given], limits=limits)


def trained(run: RunFolder, change: Callable[[Weights], Weights] = lambda found: found) -> RunFolder:
    """The run with a candidate: the live weights, changed."""
    shutil.copytree(hub.locate(minilm()), run.candidate)
    file = run.candidate / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    recorded(run)
    return run


def recorded(run: RunFolder) -> None:
    digest = model_files.check_weights(minilm().model_copy(update={"sha256": {}}), run.candidate)
    record = TrainingRecord(
        model="minilm",
        job="job-1",
        parent="base",
        created_at=datetime(2026, 2, 3, 2, tzinfo=UTC),
        weights_sha256=digest,
        options={},
        data={},
        metrics={},
    )
    (run.candidate / RECORD).write_text(record.model_dump_json(), "utf-8")


def noisy(share: float) -> Callable[[Weights], Weights]:
    """share: of a tensor's own spread."""

    def change(found: Weights) -> Weights:
        random = np.random.default_rng(0)
        return {
            name: (tensor + share * tensor.std() * random.standard_normal(tensor.shape)).astype(tensor.dtype)
            if tensor.ndim == 2 and tensor.dtype == np.float32
            else tensor
            for name, tensor in found.items()
        }

    return change


def verdict(run: RunFolder) -> Verified:
    said: list[Event] = []
    verify(run, said.append)
    assert [type(event) for event in said] == [Note, Verified]
    assert isinstance(said[-1], Verified)
    return said[-1]


@pytest.mark.slow
def test_weights_with_a_little_noise_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(begun(tmp_path, minilm(), pairs()), noisy(0.02))
    said = verdict(run)
    assert (said.accepted, said.reasons) == (True, [])
    assert set(said.metrics) == METRICS
    assert said.metrics["cosine_p5"] > 0.99
    assert {file.name for file in run.report.iterdir()} == {JSON_FILE, HTML_FILE, MAP, FILE}
    found = read_report(run.report)
    assert found is not None
    assert "neither certainly better nor certainly worse on held-out pairs" in found.verdict
    assert (found.parent, found.parent_weights[:12]) == ("base", "53aa51172d14")
    assert found.version == f"20260203-020000-{(found.weights or '')[:12]}"

    check_vectors(run)
    with safe_open(run.report / MAP, "np") as file:
        turn = file.get_tensor("map")
        assert file.metadata()["from_weights_sha256"].startswith("53aa51172d14")
        assert file.metadata()["to_weights_sha256"].startswith((found.weights or "-")[:12])
    assert turn.dtype == np.float32
    assert np.abs(turn @ turn.T - np.eye(384)).max() < 1e-4

    monkeypatch.setattr(loader, "load", lambda *_: pytest.fail("was verified again"))
    assert verdict(run) == said


def check_vectors(run: RunFolder) -> None:
    """What lies beside the report is what the candidate gives when it is served."""
    texts, vectors = read_canary(run.report)
    assert texts == canary_texts()
    assert (len(set(texts)), vectors.shape, vectors.dtype) == (32, (32, 384), np.float32)
    served = loader.load(minilm(), LoadOptions("cpu", folder=run.candidate))
    assert cosine_rows(encode_texts(served, texts[:8]), vectors[:8]).min() > 0.9999


@pytest.mark.slow
def test_weights_with_much_noise_are_rejected_and_keep_their_report(tmp_path: Path) -> None:
    run = trained(begun(tmp_path, minilm(), pairs()), noisy(0.6))
    said = verdict(run)
    assert not said.accepted
    for start in ("NDCG@10 on held-out pairs fell", "MRR on everyday English fell", "of its vectors 5 % have a cosine"):
        assert any(reason.startswith(start) for reason in said.reasons), said.reasons
    assert (run.report / JSON_FILE).is_file()
    assert said.reasons[1].split(",")[0] in (run.report / HTML_FILE).read_text("utf-8")


def with_nan(found: Weights) -> Weights:
    """In the embedding of one token that no text has."""
    rare = found["embeddings.word_embeddings.weight"].copy()
    rare[5] = np.nan
    return found | {"embeddings.word_embeddings.weight": rare}


def test_non_finite_weights_are_rejected(tmp_path: Path) -> None:
    run = trained(begun(tmp_path, minilm(), pairs()), with_nan)
    said = verdict(run)
    assert "its weights have values that are no finite numbers, in 1 tensors" in said.reasons[0]
    assert {file.name for file in run.report.iterdir()} == {JSON_FILE, HTML_FILE}


@pytest.mark.parametrize(("stated", "reason"), [(None, "its vectors have 768 dimensions"), (384, "cannot be served")])
def test_another_dimension_is_rejected(tmp_path: Path, stated: int | None, reason: str) -> None:
    entry = minilm().model_copy(update={"dimensions": stated, "pooling": None})
    run = trained(begun(tmp_path, entry, pairs()), noisy(0.01))
    pooling = run.candidate / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({**json.loads(pooling.read_text()), "pooling_mode_cls_token": True}))
    assert any(reason in found for found in verdict(run).reasons)
    assert read_report(run.report) is not None


def test_truncated_weights_are_rejected(tmp_path: Path) -> None:
    run = trained(begun(tmp_path, minilm(), pairs()))
    with (run.candidate / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    (reason,) = verdict(run).reasons
    assert reason.startswith("it cannot be served: ")
    assert "model.safetensors cannot be read" in reason


def test_without_a_candidate_nothing_is_written(tmp_path: Path) -> None:
    run = begun(tmp_path, minilm(), pairs())
    with pytest.raises(ModelUnavailable, match="train one first"):
        verify(run, print)
    assert not run.candidate.exists()


@pytest.mark.slow
def test_the_process_emits_events(tmp_path: Path) -> None:
    run = trained(begun(tmp_path, minilm(), pairs()), with_nan)
    command = [sys.executable, "-m", "models.training", "verify", str(run.path)]
    done = subprocess.run(command, capture_output=True, env=clean_environment(), check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    said = read_event(done.stdout.splitlines()[-1])
    assert isinstance(said, Verified)
    assert not said.accepted


# Everything around the models, with fakes of them.


class Turned(FakeEncoder):
    """All vectors in other directions: what `change` makes of them."""

    def __init__(self, change: Callable[[Vectors], Vectors]) -> None:
        super().__init__()
        self._change = change

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        return self._change(super().encode(batch, between_layers))


def compared(candidate: FakeEncoder, given: Sequence[Pair], limits: VerifyLimits = DEFAULT) -> Findings:
    found = Findings()
    VersionComparison(FakeEncoder(), candidate, held_out(given), limits, seed=0).measure(found)
    return found


def test_scaled_vectors_are_the_same_after_normalisation() -> None:
    found = compared(Turned(lambda vectors: vectors * 1000), pairs())
    assert found.reasons == []
    assert found.metrics["cosine_p5"] == pytest.approx(1, abs=1e-6)


def test_vectors_of_length_zero_are_rejected() -> None:
    (reason,) = compared(Turned(np.zeros_like), pairs()).reasons
    assert reason == "32 of 32 vectors have not unit norm, one has 0.000"


def test_one_non_finite_vector_is_enough_for_rejection() -> None:
    spoilt = [*pairs(), Pair("this text is nan", "whatever", "given", split="held_out")]
    found = compared(FakeEncoder(), spoilt)
    assert found.reasons == ["1 of 31 texts got a vector with a value that is no finite number"]
    assert found.canary is not None
    assert found.map is None


def test_heavier_weights_are_rejected() -> None:
    heavy = FakeEncoder()
    heavy.weight_bytes = 2_000
    assert "its weights take 2,000 bytes" in compared(heavy, pairs()).reasons[0]


def test_a_rotated_space_is_rejected_for_its_cosines() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].astype(np.float32)
    found = compared(Turned(lambda vectors: vectors @ turn), pairs())
    assert len(found.reasons) == 1
    assert f"at least {DEFAULT.min_cosine_p5} required" in found.reasons[0]
    assert found.metrics["mapped_vectors_overlap@10"] > found.metrics["old_vectors_overlap@10"] + 0.3
    allowed = compared(
        Turned(lambda vectors: vectors @ turn), pairs(), VerifyLimits(min_cosine_p5=-1, require_gain=False)
    )
    assert allowed.reasons == []


class Forgetful(FakeEncoder):
    """All texts with a word have one vector."""

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        vectors = super().encode(batch, between_layers)
        forgotten = [word_id("ours") in tokens.ids for tokens in batch]
        return np.where(np.array(forgotten)[:, None], np.float32(1), vectors)


@pytest.mark.parametrize(("encoder", "accepted"), [(FakeEncoder(), True), (Forgetful(), False)])
def test_a_candidate_must_not_be_worse_on_the_operators_pairs(encoder: FakeEncoder, accepted: bool) -> None:
    ours = [Pair(f"ours {i} is", f"ours {i} indeed", "given", split="held_out") for i in range(30)]
    found = Findings()
    VersionComparison(FakeEncoder(), encoder, held_out(pairs()), DEFAULT, seed=0, judge=held_out(ours)).measure(found)
    assert found.metrics["mrr@10_after"] == found.metrics["mrr@10_before"]
    assert {"judge_ndcg@10_before", "judge_mrr@10_after"} <= found.metrics.keys()
    if accepted:
        assert found.reasons == []
    else:
        assert [reason.partition(" fell from")[0] for reason in found.reasons] == [
            "NDCG@10 on the operator's own pairs",
            "MRR@10 on the operator's own pairs",
        ]


def test_without_held_out_pairs_nothing_is_accepted() -> None:
    found = compared(FakeEncoder(), pairs(held=0))
    assert "there are no held-out pairs" in found.reasons[0]


def blurred(vectors: Vectors) -> Vectors:
    """Such as find about as much as before."""
    return vectors + 0.02 * np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)


@pytest.mark.parametrize("change", [lambda vectors: vectors, blurred])
def test_a_gain_that_may_be_chance_is_rejected(change: Callable[[Vectors], Vectors]) -> None:
    wrong = [Pair(p.anchor, q.positive, "given", split=p.split) for p, q in zip(pairs(), pairs()[1:], strict=False)]
    found = compared(Turned(change), wrong, VerifyLimits())
    (reason,) = [reason for reason in found.reasons if reason.startswith("no gain: NDCG@10 ")]
    assert reason.endswith(" queries; it must lie above 0 (finetune.limits.require_gain)")
    assert found.retrieval["ndcg@10"].low <= 0 <= found.retrieval["ndcg@10"].high
    assert not any("no gain" in reason for reason in compared(Turned(change), wrong).reasons)


def test_a_gain_that_is_certain_is_accepted() -> None:
    gain = Comparison(before=0.5, after=0.6, difference=0.1, low=0.001, high=0.2, p_worse=0.02)
    assert list(check_gain(gain, 30, VerifyLimits())) == []
    (reason,) = check_gain(replace(gain, low=0.0), 30, VerifyLimits())
    assert reason.startswith("no gain: NDCG@10 +0.100, 95 % interval +0.000 to +0.200, 30 queries")
    assert list(check_gain(replace(gain, low=float("nan")), 30, VerifyLimits()))


def test_slower_than_allowed_is_rejected() -> None:
    assert list(check_speed(1.49, VerifyLimits())) == []
    assert "1.60 times as long" in next(check_speed(1.6, VerifyLimits()))
    assert next(check_speed(float("nan"), VerifyLimits()))
    assert speed_ratio(FakeEncoder(), FakeEncoder(), ["one two", "three"]) > 0


def test_a_candidate_is_not_slower_because_its_process_was_stopped() -> None:
    class Busy(FakeEncoder):
        def __init__(self, stands_still_s: float) -> None:
            super().__init__()
            self.stands_still_s = stands_still_s

        def encode(self, *_: object) -> Vectors:
            end_s = time.thread_time() + 0.005
            while time.thread_time() < end_s:
                pass
            time.sleep(self.stands_still_s)
            return np.zeros((1, self.dimensions), np.float32)

    assert speed_ratio(Busy(0), Busy(0.05), ["one two"]) < 2


def test_queries_and_documents_get_their_prompts() -> None:
    choices = PromptsAndTasks({"query": "query: ", "passage": "passage: "}, tasks={"retrieval.query": 0, "other": 1})
    encoder = FakeEncoder(names=choices)
    assert options_named(encoder, ANCHOR_PROMPTS) == TextOptions(prompt_name="query")
    assert options_named(encoder, DOCUMENT_PROMPTS) == TextOptions(prompt_name="passage")
    assert options_named(encoder, ANCHOR_PROMPTS[1:]) == TextOptions(task="retrieval.query")
    assert options_named(encoder, ()) == TextOptions()
    searched = FakeEncoder(names=choices)
    VersionComparison(FakeEncoder(names=choices), searched, held_out(pairs()), DEFAULT, seed=0).measure(Findings())
    assert {word_id("query:"), word_id("passage:")} <= searched.seen


def test_long_texts_are_truncated_and_vectors_in_order() -> None:
    encoder = FakeEncoder()
    texts = ["word " * 200, *(f"text {i}" for i in range(300)), "word " * 64]
    vectors = encode_texts(encoder, texts)
    assert np.allclose(vectors[0], vectors[-1])
    assert np.allclose(vectors[7:8], encode_texts(encoder, [texts[7]]), atol=1e-6)


@pytest.fixture
def faked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose models are fakes."""
    monkeypatch.setattr(loader, "load", lambda spec, options: FakeEncoder())
    return trained(begun(tmp_path, minilm(), pairs()))


def test_pairs_that_selected_the_epoch_are_not_used_for_verification(faked: RunFolder) -> None:
    spec = faked.read()
    several = spec.model_copy(update={"options": spec.options.model_copy(update={"epochs": 3})})
    faked.spec.write_text(several.model_dump_json(), "utf-8")
    verdict(faked)
    found = read_report(faked.report)
    assert found is not None
    assert found.queries == 20  # of 30 that are held out


def test_a_report_names_its_evaluation_data(faked: RunFolder, tmp_path: Path) -> None:
    verdict(faked)
    told = verdict_of(faked.candidate)
    assert told is not None
    assert told.judged == OWN_DATA
    (faked.report / JSON_FILE).unlink()
    faked.judge.write_bytes(faked.data.read_bytes())
    faked.spec.write_text(faked.read().model_copy(update={"judge": tmp_path}).model_dump_json(), "utf-8")
    assert "judge_mrr@10_after" in verdict(faked).metrics
    told = verdict_of(faked.candidate)
    assert told is not None
    assert told.judged == "by the operator's own pairs too"


@pytest.mark.parametrize("content", [None, "{}", "not JSON"])
def test_a_record_that_cannot_be_read_is_a_reason(faked: RunFolder, content: str | None) -> None:
    if content is None:
        (faked.candidate / RECORD).unlink()
    else:
        (faked.candidate / RECORD).write_text(content)
    assert verdict(faked).reasons == [f"its {RECORD} cannot be read"]


def test_a_record_of_other_weights_is_a_reason(faked: RunFolder) -> None:
    file = faked.candidate / "model.safetensors"
    save_file(noisy(0.01)(load_file(file)), file, {"format": "pt"})
    assert verdict(faked).reasons == [f"its {RECORD} tells of other weights than those beside it"]


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_a_full_disk_leaves_no_partial_report(faked: RunFolder, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """`last` files are written, the next one is not; report.json is the last of the four."""
    written: list[Path] = []
    publish = durable.publish_file

    def fill_up(temporary: Path, final: Path) -> None:
        if len(written) == last:
            raise OSError(errno.ENOSPC, "No space left on device", str(final))
        written.append(final)
        publish(temporary, final)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "publish_file", fill_up)
        with pytest.raises(OSError, match="No space left"):
            verify(faked, print)
    assert not (faked.report / JSON_FILE).exists()
    assert len(list(faked.report.iterdir())) == last
    assert verdict(faked).accepted
    assert len(list(faked.report.iterdir())) == 4


def test_memory_errors_are_no_reason_for_rejection(faked: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load", lambda spec, options: FakeEncoder(memory_tokens=1))
    with pytest.raises(OutOfDeviceMemory):
        verify(faked, print)
    assert report.read_report(faked.report) is None
