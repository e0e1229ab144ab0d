"""The tokeniser under threads: no call disturbs another."""

from concurrent.futures import ThreadPoolExecutor

from models.catalogue import load_catalogue
from models.encoders.base import TextOptions
from models.loading.loader import LoadOptions, load

CASES = [
    (["def f(): pass", "x " * 400], TextOptions()),
    (["x " * 400, "y " * 300], TextOptions(truncate="start")),
    (["x " * 400, "short"], TextOptions(truncate="error")),
    (["one", "two", "three"], TextOptions(prompt="query: ")),
]


def test_calls_from_many_threads_give_what_single_ones_give() -> None:
    encoder = load(load_catalogue().get("minilm"), LoadOptions("cpu", "fp32"))

    def run(case: int) -> str:
        return repr(encoder.tokenize(*CASES[case % len(CASES)]))

    expected = [run(case) for case in range(len(CASES))]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(run, range(200)))
    assert found == [expected[case % len(CASES)] for case in range(200)]


def test_no_texts_give_no_tokens() -> None:
    encoder = load(load_catalogue().get("minilm"), LoadOptions("cpu", "fp32"))
    assert encoder.tokenize([], TextOptions()) == []
