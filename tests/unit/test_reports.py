"""Reports: everything in one page, nothing from anywhere else, whatever data and models say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bluedit.reports.data import CellView, Difference, ReportData, failed_edits
from bluedit.reports.html import html_report
from bluedit.reports.markdown import markdown_report
from bluedit.reports.run_figures import drawings
from bluedit.reports.seeds import mean_interval, over_seeds

HOSTILE = "</script><img src=https://evil.example/x onerror=alert(1)>\x1b[2J & \"'`${x}` | $\\frac{1}{2}$"
TAG = {
    "dataset": f"edits:{HOSTILE}",
    "cases": ["a", "b"],
    "scoring": ["probability"],
    "model": "tiny",
    "model_fingerprint": "00ff" * 8,
    "dtype": "float32",
    "seed": 0,
    "versions": {"bluedit": "0.1.0"},
    "edit": {
        "method": "memit", "strategy": "even", "layers": [1, 2], "settings": {}, "corpus": None, "edits": 40,
        "batch_size": 10, "order": "as listed", "evaluated": "after the last batch",
    },
}  # fmt: skip


def interval(value: float, n: int = 40) -> dict[str, float]:
    return {"value": value, "low": max(0.0, value - 5), "high": min(100.0, value + 5), "n": n}


def run(name: str, strategy: str, score: float, label: str) -> dict[str, Any]:
    scores = {key: interval(score + shift) for key, shift in (("ES", 0), ("PS", -3), ("NS", 2), ("S", 1))}
    along = [{"batches": 2, "facts": 20, "scores": scores, "first": scores, "latest": scores}]
    return {
        "name": name, "label": label, "note": "", "method": "memit", "strategy": strategy, "layers": [1, 2],
        "settings": {"lambda": 5.0}, "scores": {**scores, "fluency": interval(60)}, "retention": {"first": scores},
        "along": along, "drift": {"h.1.mlp.weight": {"relative_norm": score / 100, "norm": 1.0, "largest_singular_value": 1.0}},
        "null_space_rank": {}, "mean_evaluations": {"2": 9.0}, "remaining": {"2": 0.25},
        "seconds": {"editing": score, "scoring": 1.0, "batches": [1.0, 1.0, 1.0]},
        "text": {"documents": 3, "tokens": 100, **{key: interval(30) for key in ("perplexity", "perplexity_before", "top1")},
                 "perplexity_change": interval(3), "kl": {"value": score / 1000, "low": 0.01, "high": 0.2, "n": 3}},
        "protocol": TAG,
    }  # fmt: skip


def record(case: str, outcome: float, said: str) -> dict[str, Any]:
    return {
        "id": case, "batch": 1, "prompt": f"{HOSTILE} lives in", "target": "Paris", "true_target": "Rome",
        "before": {"outcomes": {}, "says": "Rome"},
        "after": {"outcomes": {"ES": [outcome], "EA": [0.0], "PS": [0.5]}, "says": said},
    }  # fmt: skip


@pytest.fixture(scope="module")
def data() -> ReportData:
    runs = [run("memit-even", "even", 40, f"memit, even {HOSTILE}"), run("memit-boundary", "boundary", 90, "memit + BLUE")]
    change = {"value": 50.0, "low": 40.0, "high": 60.0, "n": 40}
    table = {
        "recipe": {"name": HOSTILE, "dataset": "d", "model": "tiny", "seed": 0, "text": "text:x"}, "model_fingerprint": "0",
        "before": {"scores": {"ES": interval(5)}, "text": runs[0]["text"], "protocol": TAG}, "runs": runs,
        "blue_against_own": [{"method": "memit", "note": "", "blue": "memit-boundary", "own": "memit-even",
                              "strategy": "even", "difference": {"ES": change, "S": change}}],
    }  # fmt: skip
    failures = failed_edits(runs[0], [record("a", 0, HOSTILE), record("b", 1, "Lyon"), record("c", 0, "")])
    cells = [
        CellView("runs/x", f"cell {HOSTILE}", table, failures, 4),
        CellView("runs/y", "another cell", table, (), 4),
        CellView("runs/z", "broken", None, problem=f"memory ran out {HOSTILE}"),
    ]
    differences = [Difference("memit + BLUE", "x", "y", {"ES": change})]
    return ReportData(HOSTILE, cells, {"runs/x": table["recipe"]}, {"bluedit": "0.1.0", "python": "3"}, differences)


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return html_report(data)


class Reader(HTMLParser):
    """Collects what a browser would look at."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_fetches_nothing_and_allows_nothing_else(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    (policy,) = [attributes["content"] for tag, attributes in reader.tags if tag == "meta" and "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'; ")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='; ", policy)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert not {"img", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes[name])
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_what_data_say_is_shown_and_not_obeyed(page: str) -> None:
    assert "<img src=https" not in page
    assert "\x1b" not in page
    reader = Reader()
    reader.feed(page)
    assert HOSTILE.replace("\x1b", "\\x1b") in "".join(reader.text)


def test_the_page_can_be_read_by_everyone(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in reader.tags if tag == "th")
    assert [tag for tag, _ in reader.tags].count("caption") == [tag for tag, _ in reader.tags].count("table")
    images = [attributes for _, attributes in reader.tags if attributes.get("role") == "img"]
    assert len(images) == 10
    assert all(len(attributes["aria-label"]) > 20 for attributes in images)
    ids = [attributes["id"] for tag, attributes in reader.tags if "id" in attributes and tag not in ("g", "path", "clippath")]
    assert len({one for one in ids if not one.startswith(("figure", "patch"))} & {"table-results", "results", "failed"}) == 3


def test_scores_failures_and_differences_are_on_it(page: str, data: ReportData) -> None:
    for text in ("35.0 to 45.0", "fluency", "not preferred", "not said", "Lyon", "(nothing)", "memory ran out", "+50.0"):
        assert text in page
    assert [one.why for one in data.cells[0].failures] == ["preferred", "said", "preferred"]
    text = markdown_report(data)
    assert "memory ran out" in text
    assert "Lyon" in text
    assert "ES +50.0 [+40.0, +60.0]" in text
    assert "\x1b" not in text


def test_means_over_seeds_have_students_interval() -> None:
    """Three seeds with 1, 2, 3: mean 2, standard deviation 1, so half an interval is 4.303 / sqrt(3) = 2.484."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found["value"], found["n"]) == (2.0, 3)
    assert (found["low"], found["high"]) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-4)

    def cell(seed: int, score: float, label: str = "memit, even") -> CellView:
        one = run("memit-even", "even", score, label)
        return CellView(f"runs/{seed}", f"seed {seed}", {"runs": [{**one, "protocol": {**TAG, "seed": seed}}]})

    data = ReportData("t", [cell(0, 40), cell(5, 60), cell(0, 10, "alone")], {}, {})
    (means,) = over_seeds(data)
    assert (means.label, means.seeds, means.scores["ES"]["value"]) == ("memit, even", [0, 5], 50.0)
    assert over_seeds(ReportData("t", [cell(0, 40), cell(0, 60)], {}, {})) == [], "one seed twice is something else"


def test_figures_are_text_of_the_pages_colour(data: ReportData) -> None:
    made = drawings(data.cells[0].table or {})
    assert [drawing.name for drawing in made] == ["scores", "retention", "score-against-kl", "drift", "remaining"]
    for drawing in made:
        assert drawing.svg.startswith("<svg")
        assert "currentColor" in drawing.svg
        assert "<text" in drawing.svg
        assert not re.search("<metadata|<script|<image|#010203", drawing.svg)
    again = drawings(data.cells[0].table or {})
    assert [one.svg for one in again] == [one.svg for one in made], "the same numbers, the same file"
    assert drawings({"runs": []}) == []


CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_opens_in_a_browser_without_an_error(page: str, tmp_path: Path) -> None:
    """The script runs, sorts as the address asks, and the console stays silent."""
    assert CHROMIUM is not None
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    address = (tmp_path / "report.html").as_uri() + "#sort=table-results,2,ascending&text=Lyon"
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address,
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "CONSOLE" not in ended.stderr, ended.stderr
    assert 'data-ready="true"' in ended.stdout
    table = ended.stdout.partition('<table id="table-results"')[2].partition("</table>")[0]
    assert 'aria-sort="ascending"' in table.partition("</thead>")[0]
    numbers = [float(value) for value in re.findall(r'<tr[^>]*><th scope="row">.*?<td.*?<td[^>]*data-sort="([^"]+)"', table)]
    assert numbers == sorted(numbers)
    assert len(numbers) == 6
    failed = ended.stdout.partition('<table id="table-failed"')[2].partition("</table>")[0]
    assert len(re.findall(r"<tr[^>]* hidden", failed)) == 2
    assert "1 of 1 shown" in ended.stdout


def test_the_recipe_is_whole(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    assert json.dumps(HOSTILE).replace("\x1b", "\\x1b")[1:-1] in "".join(reader.text)
