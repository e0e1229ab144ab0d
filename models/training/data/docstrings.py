"""The text of docstrings and comments of any language: without quotes, comment signs, markup, licences and pragmas."""

import re
from collections.abc import Sequence
from inspect import cleandoc
from textwrap import dedent

_LITERAL = re.compile(
    r"""(?:@\w+[\s(]+)?(?:[rRuU]{0,2}|~[sS])?(?P<quotes>\"{3}|'{3}|"|')(?P<text>.*)(?P=quotes)\)?""", re.S
)
_LICENCE = re.compile(
    r"copyright\s*(?:\(c\)|©|\d{4}|holder|notice)|spdx-license|licen[cs]ed (?:under|to)|all rights reserved"
    r"|permission is hereby granted|general public licen[cs]e|redistribution and use|apache licen[cs]e",
    re.I,
)
_PRAGMA = re.compile(
    r"\s*(?:eslint|tslint|jshint|jslint|jscs|prettier-ignore|biome-ignore|istanbul|c8 ignore|v8 ignore|webpack|@ts-"
    r"|@flow|@jest-|@vitest-|noqa|pylint|pyright|mypy|ruff|type:\s*ignore|pragma|fmt:\s*o|isort|rubocop|nolint|clang-format"
    r"|clang-tidy|cppcheck|codespell|nosec|nosemgrep|checkstyle|noinspection|sourcery|coverage|go:\w+|\+build"
    r"|export \w+$|frozen_string_literal|typed:|encoding:|coding[:=]|-\*-|vim?:|shellcheck|swiftlint|ktlint"
    r"|credo:|sonar|lint[:\s]|#(?:end)?region|(?:todo|fixme|xxx|hack)\b)",
    re.I,
)
_RULE = re.compile(r"[\W_]{3,}")
_WORD = re.compile(r"[^\W\d_]{2,}")
_OPENING = re.compile(r"\A/\*+!?<?")
_BLOCK_SIGN = re.compile(r"^[ \t]*\*+(?!/)[ \t]?", re.M)
_LINE_SIGN = re.compile(r"^[ \t]*(?://[/!]?|#+|--+|;+|%+)", re.M)
_INLINE_TAG = re.compile(r"\{@\w+\s+([^{}]*)\}")
_BRIEF = re.compile(r"^[ \t]*[\\@](?:brief|short|details|summary|description|desc)\b:?[ \t]*", re.M)
_HTML = re.compile(
    r"</?(?:p|pre|code|b|i|em|strong|ul|ol|li|br|tt|a|h[1-6]|summary|para|remarks|c|see|div|span)\b[^<>]*>", re.I
)


def literal_text(literal: str) -> str:
    """The text of a string literal, such as Python's or Elixir's; empty if it is none."""
    match = _LITERAL.fullmatch(literal.strip())
    return _tidy(match["text"].replace("\\\n", "")) if match else ""


def comment_text(comments: Sequence[str]) -> str:
    """The text of consecutive comments; empty if they are a licence, pragmas or commented-out code."""
    text = cleandoc("\n".join(map(_without_signs, comments)))
    prose = "\n".join(line for line in text.split("\n") if not _PRAGMA.match(line))
    return "" if _LICENCE.search(text) or _is_code(prose) else _tidy(prose)


def _without_signs(comment: str) -> str:
    comment = comment.strip()
    if comment.startswith("@"):
        return literal_text(comment)
    comment = _HTML.sub("", comment)
    if not comment.startswith("/*"):
        return _LINE_SIGN.sub("", comment)
    inner = _OPENING.sub("", comment).removesuffix("/").rstrip("*")
    first, newline, rest = inner.partition("\n")
    return first.strip() + newline + dedent(_BLOCK_SIGN.sub("", rest))


def _is_code(text: str) -> bool:
    """Whether more than half of the lines end like statements."""
    lines = [line for line in text.split("\n") if line.strip()]
    return sum(line.rstrip().endswith((";", "{", "}")) for line in lines) * 2 > len(lines)


def _tidy(text: str) -> str:
    """Strip markup, lines without letters and surrounding empty lines; empty if no word is left."""
    text = _BRIEF.sub("", _INLINE_TAG.sub(r"\1", text))
    kept = [line.rstrip() for line in cleandoc(text).split("\n") if not _RULE.fullmatch(line.strip())]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    return text if _WORD.search(text) else ""
