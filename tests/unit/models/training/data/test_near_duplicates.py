"""Which texts are nearly the same: copies of code, and no code that only looks like other code."""

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workers import clean_environment

from models.training.data.near_duplicates import duplicate_groups

LONG = """
def read_table(path, delimiter=",", limit=1000):
    rows = []
    with open(path, encoding="utf-8") as source:
        header = next(source).rstrip("\\n").split(delimiter)
        for number, line in enumerate(source):
            if number >= limit:
                break
            cells = line.rstrip("\\n").split(delimiter)
            if len(cells) != len(header):
                raise ValueError(f"line {number + 2} of {path} has {len(cells)} cells")
            rows.append(dict(zip(header, cells, strict=True)))
    if not rows:
        log.warning("table.empty", path=str(path), columns=len(header))
    return Table(name=Path(path).stem, columns=tuple(header), rows=rows)
"""


@pytest.mark.parametrize(
    "changed",
    [
        LONG.replace("1000", "50"),
        LONG.replace("1000", "2_500").replace("+ 2", "+ 1"),
        LONG.replace("    ", "\t").replace("\n", "\n\n"),
        LONG.replace("(", "( ").replace(", ", ","),
        LONG.replace("source", "stream"),
        LONG.replace("read_table", "load_rows"),
    ],
    ids=["a number", "numbers", "indents", "spaces", "a variable", "its name"],
)
def test_a_copy_with_small_changes_is_a_near_duplicate(changed: str) -> None:
    assert changed != LONG
    assert duplicate_groups([LONG, "something else", changed]) == [0, 1, 0]


ALIKE = [
    "def width(self):\n    return self._box.right - self._box.left",
    "def height(self):\n    return self._box.bottom - self._box.top",
    "def area(self):\n    return self.width() * self.height()",
    "def save(self, path):\n    with open(path, 'w') as file:\n        json.dump(self.rows, file)",
    "def load(self, path):\n    with open(path) as file:\n        self.rows = json.load(file)",
    "@app.get('/users')\ndef users(db):\n    return [row.public() for row in db.query(User).all()]",
    "@app.get('/orders')\ndef orders(db):\n    return [row.summary() for row in db.query(Order).open()]",
    "for (int i = 0; i < rows; i++) { total += weights[i] * values[i]; }",
    "for (int i = 0; i < count; i++) { if (names[i] == key) return i; }",
]


def test_code_of_similar_structure_is_no_near_duplicate() -> None:
    assert duplicate_groups(ALIKE) == list(range(len(ALIKE)))


TEXTS = st.lists(st.one_of(st.sampled_from([*ALIKE, LONG, LONG.replace("1000", "9"), "", "\ud800"]), st.text()))


@given(TEXTS)
def test_a_group_has_the_index_of_its_first_text(texts: list[str]) -> None:
    groups = duplicate_groups(texts)
    assert len(groups) == len(texts)
    assert all(group <= index and groups[group] == group for index, group in enumerate(groups))
    assert groups == [groups[texts.index(text)] for text in texts]
    assert groups == duplicate_groups([f" {text}\n\t" for text in texts])


@given(TEXTS, st.randoms())
def test_the_order_of_texts_does_not_count(texts: list[str], rng: random.Random) -> None:
    order = rng.sample(range(len(texts)), len(texts))
    groups, mixed = duplicate_groups(texts), duplicate_groups([texts[index] for index in order])
    one, other = [groups[index] for index in order], mixed
    assert len(set(zip(one, other, strict=True))) == len(set(one)) == len(set(other))


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_groups_are_the_same_in_every_process(hash_seed: str) -> None:
    rng = random.Random(1)
    texts = [" ".join(_text(rng, 30)) for _ in range(50)]
    texts += [f"{text} {rng.randrange(9)} more" for text in texts[::2]]
    module = "models.training.data.near_duplicates"
    program = f"import sys; from {module} import duplicate_groups; print(duplicate_groups(sys.argv[1:]))"
    environment = clean_environment(PYTHONHASHSEED=hash_seed)
    command = [sys.executable, "-c", program, *texts]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert done.stdout.strip() == str(duplicate_groups(texts))


def _text(rng: random.Random, length: int = 80) -> list[str]:
    return [f"name{rng.randrange(100_000)}" for _ in range(length)]


def test_white_space_does_not_count_and_few_words_hardly() -> None:
    text = " ".join(f"x{number} = f(y{number});" for number in range(40))
    changed = text.replace("y7", "z7")
    assert duplicate_groups([text, text.replace(" ", "\n  "), "another one", changed]) == [0, 0, 2, 0]


@pytest.mark.parametrize("changed", [0, 1, 9, 16])
def test_a_sentence_with_another_word_is_no_near_duplicate(changed: int) -> None:
    said = [f"word{number}" for number in range(17)]
    other = [*said[:changed], "mend", *said[changed + 1 :]]
    assert duplicate_groups([" ".join(said), " ".join(other)]) == [0, 1]


def test_short_texts_with_the_same_words_are_near_duplicates() -> None:
    assert duplicate_groups(["case 1", "case 2", "case  1", "", " "]) == [0, 1, 0, 3, 3]


@pytest.mark.parametrize("shared", [0.4, 0.7])
def test_partly_equal_texts_are_no_near_duplicates(shared: float) -> None:
    """By 40 tries: each hash function must order the runs in a way of its own."""
    rng = random.Random(3)
    for _ in range(40):
        one = _text(rng)
        other = one[: int(len(one) * shared)] + _text(rng, int(len(one) * (1 - shared)))
        assert duplicate_groups([" ".join(one), " ".join(other)]) == [0, 1]


def test_near_duplicates_are_found_among_many() -> None:
    rng = random.Random(5)
    texts = [_text(rng) for _ in range(300)]
    copies = [[*text[:40], "changed", *text[41:]] for text in texts]
    assert duplicate_groups([" ".join(text) for text in texts + copies]) == [*range(300), *range(300)]


def test_huge_and_empty_texts_are_accepted() -> None:
    huge = " ".join(map(str, range(200_000)))
    assert duplicate_groups([huge, huge + " end", "\ud800 half", "\0"]) == [0, 0, 2, 3]
