"""Files of pairs as JSON lines: those of a run with their manifest, their archive by day, and those a caller gives."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...errors import fault_text
from ...weights.durable import clear_leftovers, discard, write_durably
from ..errors import MalformedPair, NoPairs
from ..run import RunFolder
from .pairs import PairSource
from .records import Manifest, Pair
from .split import MIN_TRAINING_PAIRS, split, without_duplicates

MAX_TEXT_CHARS = 1_000_000
MAX_LINE_BYTES = 32_000_000
MAX_GIVEN_BYTES = 1_000_000_000
MAX_NEGATIVES = 16
MAX_CHECKED_CHARS = 200_000
"""Of pairs that are checked for near duplicates before a job begins, in about a tenth of a second."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_PAIR = TypeAdapter(Pair)
_FIELDS = {"anchor", "positive", "negative", "negatives"}
_ARCHIVED = re.compile(r"(day-(\d{4}-\d\d-\d\d)(?:\.([1-9]\d{0,8}))?)(\.manifest\.json|\.jsonl)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Pairs and their description. notes: for the job's owner."""

    pairs: list[Pair]
    manifest: Manifest
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, pairs: list[Pair], notes: tuple[str, ...] = (), **origin: Any) -> "Dataset":
        """origin: the fields of the manifest that do not follow from the pairs."""
        training = sum(pair.split == "train" for pair in pairs)
        manifest = Manifest(
            **origin,
            sha256=hashlib.sha256(to_json_lines(pairs)).hexdigest(),
            pairs=training,
            held_out=len(pairs) - training,
            kinds=_counted([pair.kind for pair in pairs]),
            languages=_counted([pair.language for pair in pairs if pair.language]),
        )
        return cls(pairs, manifest, notes)

    def lines(self) -> bytes:
        """The pairs as JSON lines."""
        return to_json_lines(self.pairs)


def _counted(names: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def write_dataset(run: RunFolder, dataset: Dataset) -> Manifest:
    """Write a run's pairs, then the manifest, which marks them as complete. Raises OSError."""
    write_durably(run.data, dataset.lines())
    write_durably(run.manifest, _json(dataset.manifest))
    return dataset.manifest


def archive_dataset(folder: Path, day: date, data: bytes, manifest: Manifest) -> Path:
    """Write pairs and manifest to `day-YYYY-MM-DD.jsonl` -> its path; with a number before the suffix if a file of that
    name has other pairs. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        name = f"day-{day.isoformat()}" + (f".{number}" if number > 1 else "")
        path = folder / f"{name}.jsonl"
        if not path.exists() or (path.stat().st_size == len(data) and path.read_bytes() == data):
            break
    if not path.exists():
        write_durably(path, data)
    write_durably(folder / f"{name}.manifest.json", _json(manifest))
    return path


def prune_archive(folder: Path, keep: int, older_than: datetime) -> list[str]:
    """Remove archived pairs that are not among the `keep` newest and are of a day before `older_than` -> their names.

    Days are those of UTC; older_than: with a time zone. Other files are left alone. Raises OSError.
    """
    clear_leftovers(folder)
    archived = _archived(folder)
    newest_first = sorted(archived, key=lambda name: archived[name], reverse=True)
    removed = [name for name in newest_first[keep:] if archived[name][0] < older_than]
    for name in removed:
        discard(folder / f"{name}.jsonl")
        discard(folder / f"{name}.manifest.json")
    return [f"{name}.jsonl" for name in removed]


def _archived(folder: Path) -> dict[str, tuple[datetime, int]]:
    """The day and number of each archived file, by its name without suffix; also of a manifest without pairs."""
    found: dict[str, tuple[datetime, int]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _ARCHIVED.fullmatch(path.name):
            name, day, number, _ = match.groups()
            with suppress(ValueError):  # no such day
                found[name] = datetime.fromisoformat(day).replace(tzinfo=UTC), int(number or 1)
    return found


def _json(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=2).encode()


def to_json_lines(pairs: Iterable[Pair]) -> bytes:
    """Pairs as JSON lines; the same bytes for the same pairs."""
    rows = (json.dumps(asdict(pair), ensure_ascii=False, separators=(",", ":")) for pair in pairs)
    return "".join(f"{row}\n" for row in rows).encode("utf-8", "replace")


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file that `write_dataset` wrote. Raises MalformedPair, OSError."""
    pairs = []
    for number, fields in _objects(path):
        try:
            pairs.append(_PAIR.validate_python(fields))
        except ValidationError as error:
            raise MalformedPair(number, fault_text(error)) from None
    return pairs


def read_given(path: Path, seed: int) -> Dataset:
    """A caller's pairs: lines of {"anchor", "positive", "negatives"}, or one "negative"; split by anchor.

    Lines with the same anchor and positive are merged. Raises MalformedPair with the line, NoPairs, OSError.
    """
    if path.stat().st_size > MAX_GIVEN_BYTES:
        raise NoPairs(f"what was given is longer than {MAX_GIVEN_BYTES} bytes, which is too much for one job; part it")
    found: dict[tuple[str, str], Pair] = {}
    for number, fields in _objects(path):
        pair = _given(number, fields)
        before = found.get((pair.anchor, pair.positive), pair)
        negatives = tuple(dict.fromkeys(before.negatives + pair.negatives))[:MAX_NEGATIVES]
        found[pair.anchor, pair.positive] = replace(pair, negatives=negatives)
    if not found:
        raise NoPairs("there is not one pair in what was given")
    pairs = []
    for pair in found.values():  # another line may have a negative of this one as the anchor's positive
        negatives = tuple(text for text in pair.negatives if (pair.anchor, text) not in found)
        pairs.append(replace(pair, negatives=negatives))
    texts = (text for pair in pairs for text in (pair.anchor, pair.positive, *pair.negatives, ""))
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    parts = split(without_duplicates([PairSource(pair) for pair in pairs]), seed)
    given = [source.pair for source in parts.sources]
    return Dataset.of(given, source="pairs that were given", digest=digest, seed=seed)


def check_given(pairs: Iterable[Pair], seed: int) -> None:
    """Raise NoPairs as `read_given` would. Near duplicates are only considered up to MAX_CHECKED_CHARS."""
    found = {(pair.anchor, pair.positive): pair for pair in pairs}
    if len(found) <= MIN_TRAINING_PAIRS:
        differ = "1 pair was given" if len(found) == 1 else f"{len(found)} pairs were given that differ"
        raise NoPairs(f"{differ}; {MIN_TRAINING_PAIRS} to train on and 1 to judge by are the least")
    if sum(len(anchor) + len(positive) for anchor, positive in found) <= MAX_CHECKED_CHARS:
        split(without_duplicates([PairSource(pair) for pair in found.values()]), seed)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise MalformedPair(number, f"it is longer than {MAX_LINE_BYTES} bytes")
            if line.strip():
                yield number, _object(number, line)


def _object(number: int, line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise MalformedPair(number, f"it is no JSON ({str(error)[:200]})") from None
    if not isinstance(fields, dict):
        raise MalformedPair(number, 'it is no object such as {"anchor": "…", "positive": "…"}')
    return fields


def _given(number: int, fields: dict[str, Any]) -> Pair:
    if unknown := sorted(map(str, fields.keys() - _FIELDS)):
        raise MalformedPair(number, f"unknown field {unknown[0][:80]!r}; the fields are anchor, positive and negatives")
    negatives = fields.get("negatives", [fields["negative"]] if "negative" in fields else [])
    if not isinstance(negatives, list) or len(negatives) > MAX_NEGATIVES or {"negative", "negatives"} <= fields.keys():
        raise MalformedPair(
            number, f"`negatives` is a list of at most {MAX_NEGATIVES} texts, or `negative` is one text"
        )
    texts = {"anchor": fields.get("anchor"), "positive": fields.get("positive")}
    texts |= {
        "negative" if "negative" in fields else f"negatives[{place}]": text for place, text in enumerate(negatives)
    }
    for name, text in texts.items():
        _require_text(number, name, text)
    if fields["positive"] in negatives:
        raise MalformedPair(number, "its positive is among its negatives")
    return Pair(fields["anchor"], fields["positive"], "given", negatives=tuple(negatives))


def _require_text(number: int, name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise MalformedPair(number, f"`{name}` is {'missing' if text is None else 'no text'}")
    if not text.strip():
        raise MalformedPair(number, f"`{name}` is blank")
    if len(text) > MAX_TEXT_CHARS:
        raise MalformedPair(number, f"`{name}` is longer than {MAX_TEXT_CHARS} characters")
    if "\0" in text:
        raise MalformedPair(number, f"`{name}` holds a NUL character")
    if not text.isascii() and _SURROGATE.search(text):
        raise MalformedPair(number, f"`{name}` holds half of a character (a lone surrogate)")
