"""The registry's bookkeeping: leases, memory, eviction, failures, and any sequence of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Crowded, OverBudget
from models.registry import LoadedModel, Registry

GB = 10**9


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def registry(budget: int = 10 * GB) -> Registry[str]:
    return Registry(lambda _: budget, Clock())


def loaded(model: str, gigabytes: float = 1, **fields: object) -> LoadedModel[str]:
    return LoadedModel(model, "v1", "cpu", int(gigabytes * GB), f"serves {model}", **fields)


def published(store: Registry[str], *models: LoadedModel[str]) -> None:
    for one in models:
        store.publish(one)


def test_the_least_recently_used_idle_model_goes_first() -> None:
    store = registry()
    old, used, pinned = loaded("old", 3), loaded("used", 3), loaded("pinned", 3, pinned=True)
    published(store, pinned, old, used)
    store.lease(old)
    store.release(old)
    store.lease(used)
    store.release(used)
    assert store.reserve("new", "cpu", 3 * GB) == [old]
    assert store.current("old") is None
    assert not store.fits("cpu")
    store.forget(old)
    assert store.fits("cpu")


def test_nothing_in_use_is_evicted() -> None:
    store = registry()
    busy, idle = loaded("busy", 4), loaded("idle", 4)
    published(store, busy, idle)
    store.lease(busy)
    with pytest.raises(Crowded, match="busy would have to go"):
        store.reserve("new", "cpu", 9 * GB)
    assert list(store) == [busy, idle]
    assert store.reserve("new", "cpu", 6 * GB) == [idle]
    assert not store.release(busy)
    store.forget(idle)
    assert store.reserve("new", "cpu", 9 * GB) == [busy]


def test_an_old_version_that_is_still_used_counts_until_it_goes() -> None:
    store = registry()
    old, new = loaded("m", 4), loaded("m", 4, pinned=True)
    published(store, old)
    store.lease(old)
    store.publish(new)
    with pytest.raises(Crowded, match="m would have to go"):
        store.reserve("other", "cpu", 6 * GB)
    assert store.release(old)
    assert store.reserve("other", "cpu", 6 * GB) == []


def test_what_cannot_fit_changes_nothing() -> None:
    store = registry()
    pinned, idle = loaded("pinned", 6, pinned=True), loaded("idle", 2)
    published(store, pinned, idle)
    with pytest.raises(OverBudget) as caught:
        store.reserve("new", "cpu", 5 * GB)
    assert (caught.value.budget, caught.value.in_use) == (10 * GB, 6 * GB)
    assert store.current("idle") is idle
    assert store.used_bytes("cpu") == 8 * GB
    with pytest.raises(OverBudget):
        store.reserve("huge", "cpu", 11 * GB)


def test_devices_have_budgets_of_their_own() -> None:
    store: Registry[str] = Registry({"cpu": 4 * GB, "cuda:0": 2 * GB}.__getitem__, Clock())
    on_gpu = LoadedModel("gpu", "v1", "cuda:0", 2 * GB, "serves")
    published(store, on_gpu, loaded("cpu", 3))
    assert store.reserve("small", "cpu", GB) == []
    assert store.reserve("other", "cuda:0", GB) == [on_gpu]


def test_a_swap_keeps_the_old_one_until_its_last_user_is_done() -> None:
    store = registry()
    old, new = loaded("m", 2), loaded("m", 2)
    published(store, old)
    store.lease(old)
    assert store.reserve("m", "cpu", 2 * GB) == []
    assert store.publish(new) is old
    assert store.current("m") is new
    assert store.used_bytes("cpu") == 4 * GB
    assert store.release(old)
    store.forget(old)
    assert store.used_bytes("cpu") == 2 * GB


def test_an_idle_model_is_found() -> None:
    store = registry()
    idle, busy, pinned = loaded("idle"), loaded("busy"), loaded("pinned", pinned=True)
    published(store, idle, busy, pinned)
    store.lease(busy)
    assert store.idle_since(100) == [idle]
    assert store.idle_since(0) == []


def test_a_failure_is_remembered_for_a_while() -> None:
    clock = Clock()
    store: Registry[str] = Registry(lambda _: GB, clock, failure_remembered_s=5)
    error = OverBudget("m", 1, 1, 1)
    store.fail("m", error)
    failure = store.failure("m")
    assert failure is not None
    assert failure.error is error
    clock.now += 5
    assert store.failure("m") is None


EVENTS = st.lists(
    st.tuples(st.sampled_from(["load", "lease", "release", "unload"]), st.integers(0, 4), st.integers(1, 7)),
    max_size=60,
)


@given(EVENTS)
def test_any_sequence_of_events_keeps_the_budget_and_what_is_in_use(events: list[tuple[str, int, int]]) -> None:
    store = registry()
    leased: list[LoadedModel[str]] = []
    for event, number, gigabytes in events:
        current = store.current(f"m{number}")
        if event == "load":
            try:
                leaving = store.reserve(f"m{number}", "cpu", gigabytes * GB)
            except OverBudget:
                continue
            for one in leaving:
                if not one.leases:
                    store.forget(one)
            if not store.fits("cpu"):  # the loader would wait here for the users of those that leave
                store.cancel(f"m{number}")
                continue
            replaced = store.publish(loaded(f"m{number}", gigabytes))
            if replaced is not None and not replaced.leases:
                store.forget(replaced)
        elif event == "lease" and current is not None:
            store.lease(current)
            leased.append(current)
        elif event == "release" and leased:
            one = leased.pop(number % len(leased))
            if store.release(one):
                store.forget(one)
        elif event == "unload" and current is not None and not current.leases:
            store.retire(current)
            store.forget(current)
        assert store.used_bytes("cpu") <= 10 * GB
        assert all(store.in_memory(one) for one in leased)
    for one in leased:
        if store.release(one):
            store.forget(one)
    assert store.used_bytes("cpu") == sum(one.memory_bytes for one in store)
    assert all(one.leases == 0 for one in store.everything())
