"""Which pairs stand in a batch, which epochs are kept, and what a history forgets."""

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from training_runs import of_folder

from bench.random_models import write_qodo
from models.encoders.base import Tokens
from models.training.data.records import Pair
from models.training.fit.batches import Batches, Example, collate, examples
from models.training.fit.cost import measure_steps
from models.training.fit.epochs import Epochs
from models.training.fit.method import Method, trainable_model
from models.training.fit.texts import TrainingTexts
from models.training.progress import Evaluated, Event, History, Note, Trained, read_event
from models.training.run import TrainingOptions

CPU = Method(torch.device("cpu"), bf16=False, lora=False, checkpointing=False)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.sets(st.integers(0, 30), max_size=2)), max_size=80),
    st.integers(2, 9),
)
def test_batches_have_no_false_negatives(drawn: list[tuple[int, int, set[int]]], size: int) -> None:
    items = [
        Example(
            tuple(Tokens([1] * (1 + n)) for n in (anchor, positive, *negatives)),
            frozenset((f"a{anchor}", str(positive))),
            frozenset(map(str, negatives - {positive})),
        )
        for anchor, positive, negatives in drawn
    ]
    batches = Batches(items, size, 3, 5)
    again = Batches(items, size, 3, 5)
    for epoch in range(3):
        batches.set_epoch(epoch)
        again.set_epoch(epoch)
        made = list(batches)
        assert made == list(again)
        assert len(made) == len(batches)
        seen = [index for batch in made for index in batch]
        assert len(seen) == len(set(seen))
        for batch in made:
            assert 0 < len(batch) <= size
            own = [text for index in batch for text in items[index].own]
            assert len(own) == len(set(own))
            for index in batch:
                others = set(own) - items[index].own
                assert others.isdisjoint(items[index].foreign)


def test_the_largest_padded_batch_is_measured_and_then_a_median_one() -> None:
    items = [Example((Tokens([1]), Tokens([1] * tokens)), frozenset(), frozenset()) for tokens in (9, 1, 1, 3, 3, 3)]
    largest, smallest, middling = [0, 1], [2], [3, 4, 5]  # 20, 2 and 12 tokens
    computed: list[list[int]] = []
    assert measure_steps(computed.append, items, [smallest, largest, middling]) > 0
    assert computed == [largest, middling]


def test_batches_have_similar_lengths_and_all_examples(tmp_path: Path) -> None:
    base = write_qodo(tmp_path)
    entry = of_folder(base)
    model = trainable_model(entry, base, TrainingOptions(), CPU, torch.float32)
    texts = TrainingTexts.of(entry, model, 64)
    given_pairs = [Pair(f"anchor {n}", f"word {n} " * (n * 37 % 60), "given") for n in range(640)]
    items = examples(given_pairs, texts, TrainingOptions())
    batches = list(Batches(items, 32, 1, 0))
    assert sorted(index for batch in batches for index in batch) == list(range(640))
    padded = sum(len(batch) * max(len(items[i].columns[1]) for i in batch) for batch in batches)
    assert padded < 1.15 * sum(len(item.columns[1]) for item in items)
    first = collate(texts)([items[i] for i in batches[0]])
    assert first["positive_input_ids"].shape == first["positive_attention_mask"].shape
    assert first["positive_input_ids"].shape[0] == 32


def test_rewinding_a_history_removes_later_events_and_torn_lines(tmp_path: Path) -> None:
    said: list[Event] = []
    history = History(tmp_path / "history.jsonl", said.append)
    events: list[Event] = [
        Evaluated(epoch=0, metrics={"ndcg@10": 0.5}),
        Trained(step=1, steps=4, epoch=0.5, loss=1.0, pairs_per_s=1.0, eta_s=1.0),
        Note(text="halved"),
        Evaluated(epoch=1, metrics={"ndcg@10": 0.6}),
        Trained(step=3, steps=4, epoch=1.5, loss=1.0, pairs_per_s=1.0, eta_s=1.0),
    ]
    for event in events:
        history.add(event)
    with (tmp_path / "history.jsonl").open("ab") as file:
        file.write(b'{"event": "trai')
    history.rewind(2, 1)
    kept = [read_event(line) for line in (tmp_path / "history.jsonl").read_bytes().splitlines()]
    assert kept == events[:4]
    history.rewind(0, 0)
    kept = [read_event(line) for line in (tmp_path / "history.jsonl").read_bytes().splitlines()]
    assert kept == [events[2]]
    assert said == events


def test_the_best_epoch_becomes_the_candidate_and_is_kept(tmp_path: Path) -> None:
    epochs = Epochs.load(tmp_path)
    for number, value in enumerate([0.5, 0.7, 0.6, 0.6, 0.6]):
        epochs.scores.append({"ndcg@10": value})
        if number:
            epochs.save(lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 7}'))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-1", "epoch-3", "epoch-4"]
    again = Epochs.load(tmp_path)
    assert (again.done, again.step, again.best_number, again.gained) == (4, 7, 1, True)
    assert again.stagnates(3)
    assert not again.stagnates(4)
