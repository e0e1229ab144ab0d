"""Measures of a candidate: ranking, its certainty, drift, the map between two spaces, the probe."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import dot_score

from models.encoders.base import Vectors, finish
from models.training.data.held_out import held_out, split_held_out
from models.training.data.records import Pair
from models.training.verify import metrics
from models.training.verify.check_texts import probe_items, probe_score
from models.training.verify.drift import drift, fit_map, reindex_cost
from models.training.verify.metrics import nearest, paired_bootstrap, rank_metrics


def unit(rows: int, dimensions: int = 16, seed: int = 0) -> Vectors:
    return finish(np.random.default_rng(seed).normal(size=(rows, dimensions)).astype(np.float32), True)


def rotation(dimensions: int, seed: int = 1) -> Vectors:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dimensions, dimensions)))[0].astype(np.float32)


class Stored:
    """What the evaluator takes for a model: vectors by the number that a text is."""

    def __init__(self, queries: Vectors, documents: Vectors) -> None:
        self._queries, self._documents = torch.from_numpy(queries), torch.from_numpy(documents)

    def encode_query(self, texts: list[str], **_: object) -> torch.Tensor:
        return self._queries[[int(text) for text in texts]]

    def encode_document(self, texts: list[str], **_: object) -> torch.Tensor:
        return self._documents[[int(text) for text in texts]]


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**31), st.data())
def test_ranking_is_that_of_sentence_transformers(queries: int, documents: int, seed: int, data: st.DataObject) -> None:
    asked, stored = unit(queries, seed=seed), unit(documents, seed=seed + 1)
    each = st.sets(st.integers(0, documents - 1), min_size=1, max_size=14)
    relevant = [data.draw(each) for _ in range(queries)]
    evaluator = InformationRetrievalEvaluator(
        {str(i): str(i) for i in range(queries)},
        {str(i): str(i) for i in range(documents)},
        {str(i): {str(j) for j in found} for i, found in enumerate(relevant)},
        score_functions={"dot": dot_score},
    )
    expected = evaluator.compute_all_metrics(Stored(asked, stored))["dot"]
    found = rank_metrics(asked, stored, relevant)
    assert found.mean_ndcg == pytest.approx(expected["ndcg@k"][10], abs=1e-6)
    assert found.mean_reciprocal_rank == pytest.approx(expected["mrr@k"][10], abs=1e-6)


def test_ranking_does_not_depend_on_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, stored = unit(30), unit(50, seed=1)
    relevant = [{i} for i in range(30)]
    whole, neighbours = rank_metrics(asked, stored, relevant), np.sort(nearest(stored, stored, True))
    monkeypatch.setattr(metrics, "_SCORES_AT_ONCE", 120)
    assert (rank_metrics(asked, stored, relevant).ranks == whole.ranks).all()
    assert (np.sort(nearest(stored, stored, True)) == neighbours).all()


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_model_that_gives_all_texts_one_vector_finds_nothing(value: float) -> None:
    same = np.full((30, 4), value, dtype=np.float32)
    found = rank_metrics(same, same, [{i} for i in range(30)])
    assert (found.mean_ndcg, found.mean_reciprocal_rank, set(found.ranks)) == (0, 0, {30})


def test_ignored_documents_do_not_count() -> None:
    texts = unit(20)
    twin = finish(texts + 0.01 * unit(20, seed=1), True)
    documents = np.concatenate([texts, twin])
    relevant = [{i + 20} for i in range(20)]
    assert rank_metrics(texts, documents, relevant).ranks.tolist() == [2] * 20
    assert rank_metrics(texts, documents, relevant, [{i} for i in range(20)]).mean_ndcg == 1


def test_a_query_without_relevant_documents_is_refused() -> None:
    with pytest.raises(ValueError, match="no relevant document"):
        rank_metrics(unit(1), unit(3), [set()])


def test_bootstrap_distinguishes_better_worse_and_chance() -> None:
    random = np.random.default_rng(0)
    live = random.random(300)
    better = paired_bootstrap(live + random.normal(0.1, 0.2, 300), live, seed=0)
    assert better.low > 0
    assert better.low < better.difference < better.high
    assert better.p_worse == 0
    assert paired_bootstrap(live - 0.1, live, seed=0).p_worse == 1
    assert 0.05 < paired_bootstrap(live + random.normal(0, 0.2, 300), live, seed=0).p_worse < 0.95
    assert paired_bootstrap(live, live, seed=0).p_worse == 0
    with pytest.raises(ValueError, match="nothing to compare"):
        paired_bootstrap(live[:0], live[:0], seed=0)


def test_bootstrap_is_deterministic_and_near_the_normal_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = np.random.default_rng(0).normal(0.02, 0.3, 400)
    live = np.zeros(400)
    found = paired_bootstrap(gains, live, seed=3)
    error = float(gains.std() / 20)
    assert found.low == pytest.approx(gains.mean() - 1.96 * error, abs=0.002)
    assert found.high == pytest.approx(gains.mean() + 1.96 * error, abs=0.002)
    assert paired_bootstrap(gains, live, seed=3) == found != paired_bootstrap(gains, live, seed=4)
    monkeypatch.setattr(metrics, "_SCORES_AT_ONCE", 1)
    assert paired_bootstrap(gains, live, seed=3) == found


def test_equal_vectors_have_no_drift_and_a_rotation_keeps_neighbours() -> None:
    old = unit(200)
    same, turned = drift(old, old), drift(old, old @ rotation(16))
    assert same.cosine_p5 == pytest.approx(1, abs=1e-6)
    assert same.overlap == 1
    assert sum(same.counts) == sum(turned.counts) == 200
    assert turned.cosine_p50 < 0.5
    assert turned.overlap > 0.99
    assert drift(old, unit(200, seed=9)).overlap < 0.15


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_drift_of_few_texts(rows: int) -> None:
    assert drift(unit(rows), unit(rows)).overlap == 1


def test_the_map_finds_a_rotation_and_keeps_directions_without_texts() -> None:
    turn = rotation(16)
    old = unit(4000)
    assert np.abs(fit_map(old, old @ turn) - turn).max() < 0.02
    few = unit(5)
    assert np.abs(fit_map(few, few) - np.eye(16)).max() < 1e-5
    assert np.abs(fit_map(few[:0], few[:0]) - np.eye(16)).max() < 1e-6


def test_a_map_makes_old_vectors_of_a_rotated_space_usable() -> None:
    old, turn = unit(2000), rotation(16)
    new = finish(old @ turn + 0.005 * unit(2000, seed=5), True)
    queries = finish(new[:100] + 0.01 * unit(100, seed=6), True)
    cost = reindex_cost(old, new, queries, [{i} for i in range(100)])
    assert cost.new.overlap == 1
    assert cost.new.ndcg > 0.95
    assert cost.old.overlap < 0.1
    assert cost.mapped.overlap > 0.85
    assert cost.mapped.ndcg > 0.95


def test_the_map_is_cross_fitted() -> None:
    """Spaces that have nothing to do with each other: a map that had seen the documents would find some of them."""
    old, new = unit(60, 64), unit(60, 64, seed=1)
    cost = reindex_cost(old, new, new[:30], [{i} for i in range(30)])
    assert cost.mapped.overlap < 0.35


def test_held_out_pairs_become_queries_among_all_positives() -> None:
    pairs = [
        Pair("open a file", "def open_file", "docstring", file="a.py", split="held_out"),
        Pair("open a file", "def open_path", "docstring", file="b.py", split="held_out"),
        Pair("def open_file", "def close_file", "symbol", file="c.py", split="held_out"),
        Pair("open a file", "def taught", "docstring"),
        Pair("something else", "def close_file", "docstring"),
        *(Pair(f"anchor {i}", f"def f{i}", "docstring") for i in range(50)),
    ]
    task = held_out(pairs, max_distractors=10)
    assert task == held_out(pairs, max_distractors=10)
    assert task.queries == ["open a file", "def open_file"]
    assert task.documents[:3] == ["def open_file", "def open_path", "def close_file"]
    assert (task.positives, len(task.documents)) == (3, 13)
    assert task.relevant == [{0, 1}, {2}]
    assert task.ignored == [{task.documents.index("def taught")}, {0}]
    assert task.files == ["a.py", "c.py"]
    assert held_out([]).queries == []


def asked(files: int, anchors: int) -> list[Pair]:
    return [
        Pair(f"anchor {file} {n}", f"def f{file}_{n}", "docstring", file=f"{file}.py", split="held_out")
        for file in range(files)
        for n in range(anchors)
    ]


@pytest.mark.parametrize(("files", "anchors"), [(9, 4), (2, 5), (1, 30), (40, 1)])
def test_selection_and_verification_share_no_pairs(files: int, anchors: int) -> None:
    held, taught = asked(files, anchors), [Pair("a", "b", "docstring", file="train.py")]
    pairs = [*taught, *held]
    assert split_held_out(pairs, 1, seed=0) == (pairs, pairs)
    choosing, judging = split_held_out(pairs, 2, seed=0)
    assert choosing[0] == judging[0] == taught[0]
    assert sorted(choosing[1:] + judging[1:], key=held.index) == held
    assert len(held) / 4 <= len(choosing) - 1 <= len(held) / 2
    if files > 1:
        assert {pair.file for pair in choosing[1:]}.isdisjoint(pair.file for pair in judging[1:])
    assert split_held_out(pairs, 2, seed=0) == (choosing, judging)


def test_few_held_out_pairs_are_all_used_for_verification() -> None:
    held = asked(1, 1)
    assert split_held_out(held, 3, seed=0) == ([], held)


def test_the_probe_is_of_distinct_sentences_and_rewards_meaning() -> None:
    items = probe_items()
    texts = [text for item in items for text in (item.sentence, item.paraphrase, item.near_miss)]
    assert len(items) == 120
    assert len(set(texts)) == 360
    number = {text: index for index, item in enumerate(items) for text in (item.sentence, item.paraphrase)}
    assert probe_score(lambda asked: np.eye(360, dtype=np.float32)[[number.get(t, 359) for t in asked]]) == 1
    assert probe_score(lambda asked: np.ones((len(asked), 4), dtype=np.float32)) == 0
