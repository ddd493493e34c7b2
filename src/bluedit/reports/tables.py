"""The table of an experiment, from its `table.json`: as rows, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bluedit.reports.text import visible

__all__ = ["COLUMNS", "columns", "comparisons", "line", "markdown", "rows", "short"]

COLUMNS = ("", "ES", "PS", "NS", "S", "weight drift", "seconds")
_TEXT_COLUMNS = ("perplexity", "KL", "top-1")
_SCORES = ("ES", "PS", "NS", "S")


def columns(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of an experiment's table: :data:`COLUMNS`, and what was measured on held-out text, if it was."""
    return (*COLUMNS[:5], *_TEXT_COLUMNS, *COLUMNS[5:]) if "text" in document["before"] else COLUMNS


def rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per run, the unedited model first: scores in percent with 95 % intervals, where held-out text was read its
    perplexity with the change in percent, KL(unedited || edited) in nats per token and the fraction of tokens with the same
    most likely token, the largest relative change of a weight (||D|| / ||W||), and the seconds that editing took."""
    before = document["before"]
    text: tuple[str, ...] = ()
    if "text" in before:
        text = ("{value:.1f} [{low:.1f}, {high:.1f}]".format(**before["text"]["perplexity"]), "-", "-")
    return [("unedited", *_scores(before["scores"]), *text, "-", "-"), *(_row(run) for run in document["runs"])]


def _row(run: Mapping[str, Any]) -> tuple[str, ...]:
    changed = [weight["relative_norm"] for weight in run["drift"].values()]
    drift = f"{max(changed):.2f}" if changed else "-"
    return (run["label"], *_scores(run["scores"]), *_text(run), drift, f"{run['seconds']['editing']:.0f}")


def _text(run: Mapping[str, Any]) -> tuple[str, ...]:
    if "text" not in run:
        return ()
    text = run["text"]
    change = "{value:+.1f} % [{low:+.1f}, {high:+.1f}]".format(**text["perplexity_change"])
    return (
        f"{text['perplexity']['value']:.1f} ({change})",
        "{value:.4f} [{low:.4f}, {high:.4f}]".format(**text["kl"]),
        "{value:.1f} [{low:.1f}, {high:.1f}]".format(**text["top1"]),
    )


def _scores(scores: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    return tuple("{value:.1f} [{low:.1f}, {high:.1f}]".format(**scores[name]) if name in scores else "-" for name in _SCORES)


def comparisons(document: Mapping[str, Any]) -> list[str]:
    """One line per method that was run with BLUE and with its own strategy: the differences in points, and what they say."""
    lines: list[str] = []
    for pair in document["blue_against_own"]:
        parts: list[str] = []
        for name, change in pair["difference"].items():
            verdict = "better" if change["low"] > 0 else "worse" if change["high"] < 0 else "no clear difference"
            parts.append(f"{name} {change['value']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}] {verdict}")
        note = f" ({pair['note']})" if pair["note"] else ""
        lines.append(f"{pair['method']}{note}, BLUE against {pair['strategy']}: {'; '.join(parts)}")
    return lines


def markdown(document: Mapping[str, Any]) -> str:
    """The table, what it was made with, and the comparisons."""
    recipe = document["recipe"]
    first = document["runs"][0]["protocol"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    head = [
        f"# {recipe.get('title') or recipe['name']}",
        "",
        f"{len(first['cases'])} facts of `{recipe['dataset']}` written into `{recipe['model']}` {_way(recipe, first)}. "
        "Percent, with 95 % intervals over cases; weight drift is the largest ||W_n - W_0|| / ||W_0|| of the changed weights. "
        f"{versions}; seed {recipe['seed']}.",
        "",
    ]
    if "text" in document["before"]:
        text = document["before"]["text"]
        head[2] += (
            f" Perplexity (and its change), KL(unedited || edited) in nats per token, and top-1 agreement with the unedited "
            f"model: {text['tokens']:,} tokens of `{recipe['text']}`, {text['documents']} documents, intervals over documents."
        )
    names = columns(document)
    table = [line(names), line(("---",) * len(names)), *(line(row) for row in rows(document))]
    differences = comparisons(document)
    tail = ["", "Differences in points, paired over cases (95 % bootstrap):", "", *(f"- {line}" for line in differences)]
    settings = [
        f"- {run['label']}: {f'layers {layers}; ' if (layers := ', '.join(map(str, run['layers']))) else ''}"
        + ", ".join(f"{name} {short(value)}" for name, value in run["settings"].items())
        for run in document["runs"]
    ]
    return visible(
        "\n".join([*head, *table, *(tail if differences else []), "", "Settings:", "", *settings, *_failed(document), ""])
    )


def _failed(document: Mapping[str, Any]) -> list[str]:
    lines = [f"- {run['label']}: {' '.join(run['message'].split())}" for run in document.get("failed", ())]
    return ["", "Failed:", "", *lines] if lines else []


def _way(recipe: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """How facts were edited, and when they were scored."""
    if recipe.get("protocol") == "single":
        return "one at a time, each scored and undone before the next"
    return f"in batches of {protocol['edit']['batch_size']}, scored after the last batch"


def short(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def line(cells: Sequence[str]) -> str:
    """One line of a table in Markdown."""
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
