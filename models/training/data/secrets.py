"""Redact keys, tokens and private keys in code, before anything is made of the text.

Found by detect-secrets' detectors, without their network checks, and a few patterns that they lack.
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

REDACTED = "\ufdd0"
"""Replaces a secret: a code point that no text has."""
_HARMLESS = ("IPPublicDetector",)
_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*(?:PRIVATE KEY|NKEY SEED)[A-Z ]*-----"
    r"(?:[^(){}\[\]]{0,8000}?-----END [A-Z0-9 ]*-+|(?:[\s\"'+,\\n]{0,80}?[A-Za-z0-9+/=]{40,76})*)"
)
"""A key of several lines. detect-secrets finds only its first line."""
_TOKENS = re.compile(
    r"\bgithub_pat_\w{22,}|\bhf_[A-Za-z]{30,}|\bAIza[\w-]{35}|\bxox[a-z]-[\w-]{20,}|\bsk-[\w-]{20,}|\bya29\.[\w-]{20,}"
    r"|\bS[UAOCN][A-Z2-7]{56}\b"
)
"""Tokens of GitHub (new form), Hugging Face, Google, Slack, language model APIs; NATS seeds."""
_SUSPECT = re.compile(r"[A-Za-z0-9]{16}|\d[\w+/=-]{15}|[\w+/=-]{15}\d|://")
"""In every line with a secret of a known form, or one that looks random: a cheap filter before the detectors."""
_QUOTED = re.compile(r"['\"][\w+/=-]{16,}['\"]")
_NAME = re.compile("|".join(DENYLIST))
_PIECE_CHARS = 200


def redact_secrets(text: str) -> str:
    """Replace each secret by REDACTED; the number of lines stays."""
    if "-----BEGIN" in text:
        text = _KEY.sub(lambda found: REDACTED + "\n" * found[0].count("\n"), text)
    lines = text.split("\n")
    by_form, by_entropy, by_name = _detectors()
    long = [number for number, line in enumerate(lines) if len(line) >= 16 and _SUSPECT.search(line)]
    together = "\n".join(lines[number] for number in long)
    suspected = [one for one in by_form if any(form.search(together) for form in one.denylist)]
    for number in long:
        line = _TOKENS.sub(REDACTED, lines[number])
        lines[number] = _redacted(line, suspected + by_entropy if _QUOTED.search(line) else suspected)
    for number, lowered in enumerate(text.lower().split("\n")):
        if _NAME.search(lowered):
            lines[number] = "".join(_redacted(piece, by_name) for piece in _pieces(lines[number]))
    return "\n".join(lines)


def _redacted(line: str, detectors: list[Any]) -> str:
    found = set(chain.from_iterable(_found(line, detector) for detector in detectors))
    for secret in sorted(found, key=len, reverse=True):
        line = line.replace(secret, REDACTED)
    return line


def _pieces(line: str) -> Iterator[str]:
    """A line in parts: the keyword detector takes more than quadratic time."""
    return (line[start : start + _PIECE_CHARS] for start in range(0, len(line), _PIECE_CHARS))


def _found(line: str, detector: Any) -> Iterator[str]:
    """The secrets that a detector finds in a line, without those that detect-secrets' heuristics reject."""
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
    """detect-secrets' detectors: by known form, by entropy, by the name of what is assigned."""
    kinds: list[Any] = list(get_mapping_from_secret_type_to_class().values())
    every = [kind() for kind in kinds if kind.__name__ not in _HARMLESS]
    return (
        [one for one in every if isinstance(one, RegexBasedDetector)],
        [one for one in every if isinstance(one, HighEntropyStringsPlugin)],
        [one for one in every if isinstance(one, KeywordDetector)],
    )
