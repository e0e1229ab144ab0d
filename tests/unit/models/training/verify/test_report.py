"""The report on a candidate: what programs read, and the page for people, whatever is missing or hostile in it."""

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training.data.records import Manifest
from models.training.progress import Candidate, Evaluated, Trained
from models.training.run import TrainingOptions, VerifyLimits
from models.training.verify.charts import Bar, bar_chart, histogram, line_chart
from models.training.verify.drift import drift, reindex_cost
from models.training.verify.report import (
    Comparison,
    Example,
    Report,
    page,
    read_manifest,
    read_report,
    trainer_events,
    write_report,
)

HOSTILE = '<script>alert("&")</script>\'$body${title}'
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Keeps the tags that are open, and all attributes and names of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Balanced:
    """Well-formed, and by itself: nothing runs and nothing is fetched."""
    found = Balanced()
    found.feed(html)
    found.close()
    assert found.open == []
    assert not {"script", "link", "img", "iframe", "object"} & found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "href", "style")]
    assert not re.search(r"url\(|@import|https?:", html)
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
    return found


def bare(reason: str = "it cannot be served") -> Report:
    """Of a candidate that could not be loaded."""
    return Report(
        accepted=False,
        verdict=f"rejected: {reason}",
        reasons=[reason],
        metrics={},
        model="minilm",
        job="job-1",
        created_at=datetime(2026, 2, 3, 2, 30, tzinfo=UTC),
        parent="base",
        parent_weights="53aa51172d14-fp32",
        options=TrainingOptions(),
        limits=VerifyLimits(),
    )


def full(text: str = "plain") -> Report:
    """With everything; `text` stands wherever foreign text may stand."""
    random = np.random.default_rng(0)
    old = random.normal(size=(60, 8)).astype(np.float32)
    new = old + 0.3 * random.normal(size=(60, 8)).astype(np.float32)
    compared = Comparison(before=0.6, after=0.66, difference=0.06, low=0.02, high=0.1, p_worse=0.001)
    manifest = Manifest(
        source=text,
        commit=text,
        digest="0",
        sha256="0",
        seed=0,
        files=12,
        skipped={text: 3},
        pairs=1234,
        held_out=100,
        kinds={"docstring": 1000, text: 234},
        languages={text: 1234},
    )
    return bare().model_copy(
        update={
            "accepted": True,
            "reasons": [],
            "verdict": f"accepted: {text}",
            "metrics": {"probe_before": 0.88, "probe_after": 0.87, "speed_ratio": 1.01},
            "version": text,
            "weights": "0123456789ab-fp32",
            "queries": 60,
            "documents": 2060,
            "retrieval": {"ndcg@10": compared, "mrr@10": compared},
            "drift": drift(old, new),
            "reindex": reindex_cost(old, new, new[:20], [{i} for i in range(20)]),
            "examples": [Example(query=text, file=text, before=1200, after=1)],
            "history": [trained(step) for step in range(1, 60)] + [Evaluated(epoch=1, metrics={text: 0.5})],
            "data": manifest,
        }
    )


def trained(step: int, loss: float = 0.5) -> Trained:
    return Trained(step=step, steps=60, epoch=step / 60, loss=loss / step, pairs_per_s=8, eta_s=1)


@pytest.mark.parametrize("report", [bare(), full(), full(HOSTILE)], ids=["bare", "full", "hostile"])
def test_a_report_survives_writing_and_reading(report: Report, tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    content = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert content["accepted"] is report.accepted
    parsed((tmp_path / "report.html").read_text("utf-8"))


def test_the_page_states_all_findings() -> None:
    said = re.sub(r"\s+", " ", parsed(page(full())).text)
    for part in (
        "Accepted",
        "What it finds",
        "Each of 60 held-out texts has to find what belongs to it among 2,060 texts",
        "1,200 → 1",
        "How far the vectors moved",
        "of the ten nearest texts",
        "with the map",
        "Loss by step",
        "epoch 1",
        "1,234, 100 of them held out",
        "docstring 1,000",
        "learning rate",
    ):
        assert part in said


def test_the_page_of_an_unloadable_candidate_has_only_what_is_known() -> None:
    said = parsed(page(bare("weights <torn> & cut"))).text
    assert "Rejected" in said
    assert "weights <torn> & cut" in said
    for absent in ("What it finds", "How far", "re-index", "The training", "The data"):
        assert absent not in said


@given(st.text())
def test_texts_are_escaped(text: str) -> None:
    assert parsed(page(full(text))).tags == parsed(page(full())).tags


def test_the_page_adapts_to_dark_mode_and_narrow_screens() -> None:
    html = page(full())
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport" content="width=device-width' in html


def test_torn_and_non_finite_lines_of_a_history_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    assert trainer_events(file) == []
    events = [trained(1), Candidate(weights_sha256="0"), trained(2, float("nan")), Evaluated(epoch=1, metrics={"a": 1})]
    lines = [event.model_dump_json() for event in events]
    file.write_text("\n".join([*lines, lines[0][:30]]) + "\n\xff", "latin-1")
    assert trainer_events(file) == [events[0], events[3]]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_an_unreadable_manifest_is_absent(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "manifest.json"
    if content is not None:
        file.write_bytes(content)
    assert read_manifest(file) is None


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.5), (2, 0.5)], [(i, 10 / i) for i in range(1, 500)]])
def test_line_charts_stay_inside_their_box(points: list[tuple[float, float]]) -> None:
    svg = ElementTree.fromstring(line_chart(points, "a & b", "step"))
    line = svg.find("polyline")
    assert line is not None
    at = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(at) == len(points)
    assert all(0 <= x <= 360 and 0 <= y <= 180 for x, y in at)


def test_bars_and_histograms_stay_inside_their_boxes() -> None:
    bars = [Bar("low", -1, -2, 3), Bar("high", 7, strong=True)]
    pictures = [bar_chart([("group", bars)], "bars"), histogram([-1, 0, 1], [3, 0], "counts", [("a", -0.9)])]
    for svg in map(ElementTree.fromstring, pictures):
        for box in svg.iter("rect"):
            x, width = float(box.attrib["x"]), float(box.attrib["width"])
            assert 0 <= x <= x + width <= 360
