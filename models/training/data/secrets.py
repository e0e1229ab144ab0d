"""Keys, tokens and private keys that stand in code: found, and taken out before anything is made of the text.

Owns what counts as a secret: detect-secrets' detectors, which ask no network here, and a few forms that they lack.
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.filters import heuristic
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.high_entropy_strings import HighEntropyStringsPlugin
from detect_secrets.plugins.keyword import DENYLIST, KeywordDetector

TAKEN_OUT = "\ufdd0"
"""Stands for a secret: a code point that no text has."""
_HARMLESS = ("IPPublicDetector",)
_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|NKEY SEED)[A-Z ]*-----"
    r"(?:[^(){}\[\]]{0,8000}?-----END [A-Z0-9 ]*-+|(?:[\s\"'+,\\n]{0,80}?[A-Za-z0-9+/=]{40,76})*)"
)
"""A key over several lines, to its end. detect-secrets sees its first line alone."""
_MORE = re.compile(
    r"\bgithub_pat_\w{22,}|\bhf_[A-Za-z]{30,}|\bAIza[\w-]{35}|\bxox[a-z]-[\w-]{20,}|\bsk-[\w-]{20,}|\bya29\.[\w-]{20,}"
    r"|\bS[UAOCN][A-Z2-7]{56}\b"
)
"""GitHub's newer tokens, Hugging Face's, Google's, Slack's, keys of language models, NATS seeds."""
_LONG = re.compile(r"[A-Za-z0-9]{16}|\d[\w+/=-]{15}|[\w+/=-]{15}\d|://")
"""What no line is without that holds a secret of a known form, or one that looks random. Looking for all forms in all
lines would take as long as everything else that is done with them."""
_QUOTED = re.compile(r"['\"][\w+/=-]{16,}['\"]")
_NAME = re.compile("|".join(DENYLIST))
_PIECE = 200


def without_secrets(text: str) -> str:
    """The text with TAKEN_OUT in the place of each secret, in as many lines."""
    if "-----BEGIN" in text:
        text = _KEY.sub(lambda found: TAKEN_OUT + "\n" * found[0].count("\n"), text)
    lines = text.split("\n")
    by_form, by_looks, by_name = _detectors()
    long = [number for number, line in enumerate(lines) if len(line) >= 16 and _LONG.search(line)]
    together = "\n".join(lines[number] for number in long)
    suspected = [one for one in by_form if any(form.search(together) for form in one.denylist)]
    for number in long:
        line = _MORE.sub(TAKEN_OUT, lines[number])
        lines[number] = _cleaned(line, suspected + by_looks if _QUOTED.search(line) else suspected)
    for number, lowered in enumerate(text.lower().split("\n")):
        if _NAME.search(lowered):
            lines[number] = "".join(_cleaned(piece, by_name) for piece in _pieces(lines[number]))
    return "\n".join(lines)


def _cleaned(line: str, detectors: list[Any]) -> str:
    found = set(chain.from_iterable(_found(line, detector) for detector in detectors))
    for secret in sorted(found, key=len, reverse=True):
        line = line.replace(secret, TAKEN_OUT)
    return line


def _pieces(line: str) -> Iterator[str]:
    """A line in parts: what finds names takes time with the square of a line's length, and more."""
    return (line[start : start + _PIECE] for start in range(0, len(line), _PIECE))


def _found(line: str, detector: Any) -> Iterator[str]:
    """The secrets that a detector sees in a line, without what only looks like one, as detect-secrets judges it."""
    for secret in detector.analyze_string(line):
        if isinstance(detector, RegexBasedDetector) or _is_likely(secret, line, detector):
            yield secret


def _is_likely(secret: str, line: str, detector: Any) -> bool:
    if isinstance(detector, HighEntropyStringsPlugin):
        if detector.calculate_shannon_entropy(secret) <= detector.entropy_limit or heuristic.is_potential_uuid(secret):
            return False
    elif heuristic.is_indirect_reference(line) or heuristic.is_prefixed_with_dollar_sign(secret):
        return False
    return not (
        heuristic.is_sequential_string(secret)
        or heuristic.is_templated_secret(secret)
        or heuristic.is_not_alphanumeric_string(secret)
        or heuristic.is_likely_id_string(secret, line, detector)
    )


@cache
def _detectors() -> tuple[list[Any], list[Any], list[Any]]:
    """Those that know a form, those that go by its looks, and those that go by the name of what is assigned."""
    kinds: list[Any] = list(get_mapping_from_secret_type_to_class().values())
    every = [kind() for kind in kinds if kind.__name__ not in _HARMLESS]
    return (
        [one for one in every if isinstance(one, RegexBasedDetector)],
        [one for one in every if isinstance(one, HighEntropyStringsPlugin)],
        [one for one in every if isinstance(one, KeywordDetector)],
    )
