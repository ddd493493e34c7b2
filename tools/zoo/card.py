"""Model cards: what an embedded model was trained on, what it knows, and which settings edit it best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bluedit.storage.files import atomic_file
from zoo.gates import GATES

__all__ = ["render_card", "write_card"]


def write_card(folder: Path, sweep: Mapping[str, Any] | None = None) -> Path:
    """Write `README.md` into a model folder from its `training.json` and, when given, the results of a sweep."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    path = folder / "README.md"
    with atomic_file(path) as temporary:
        temporary.write_text(render_card(folder.name, record, sweep), encoding="utf-8")
    return path


def render_card(name: str, record: Mapping[str, Any], sweep: Mapping[str, Any] | None) -> str:
    """The card's text."""
    settings = record["settings"]
    lines = [
        f"# {name}",
        "",
        f"A small GPT-2 ({settings['layers']} layers of width {settings['width']}, {settings['heads']} heads, a "
        f"{settings['vocabulary']:,}-token byte-level BPE, context {settings['context']}) that knows the facts of bluedit's "
        "synthetic world and nothing else: a model to edit and to score exactly. Everything it says is invented. Licence: MIT.",
        "",
        "## Training",
        "",
        f"From nothing, on text of `World(seed={settings['world_seed']})` (1,280 subjects, 2,560 facts, 13 relations), with "
        f"`PYTHONPATH=tools python -m zoo.train {name}`: {record['seconds']:,.0f} s on {record['device']}, last loss "
        f"{record['last_loss']:.3f} nats per token. No subject occurs in training with more than four of its relation's six "
        "phrasings.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in settings.items()),
        "",
        "## Gates",
        "",
        "Answered with the true object: greedy, whole object, percent with 95 % interval over cases.",
        "",
        "| prompts | at least | measured | cases |",
        "|---|---|---|---|",
        *(_gate_row(gate.name, gate.what, gate.minimum, record["gates"]) for gate in GATES),
        "",
        *(_sweep_section(sweep) if sweep else []),
    ]
    return "\n".join(lines)


def _gate_row(name: str, what: str, minimum: float, gates: Mapping[str, Any]) -> str:
    return f"| {what} | {minimum} | {_estimate(gates[name])} | {gates[name]['n']:,} |"


def _estimate(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"


def _sweep_section(sweep: Mapping[str, Any]) -> Sequence[str]:
    chosen = sweep["chosen"]
    lines = [
        "## Editing it",
        "",
        f"Chosen: critical layers {chosen['range'][0]} to {chosen['range'][1]}, "
        + ", ".join(f"{key} {value:g}" for key, value in chosen["settings"].items())
        + f"; second moments of keys over the world's own text. Found by `{sweep['command']}`: one batch of "
        f"{sweep['facts']} facts about people (`{sweep['dataset']}`), drawn for the sweep alone, MEMIT with residuals "
        "distributed evenly over the critical layers and with BLUE on their boundary. Percent with 95 % interval; the last "
        "column is ||D|| / ||W|| per changed layer.",
        "",
        "| layers | settings | strategy | ES | PS | NS | S | relative change |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in sweep["runs"]:
        settings = ", ".join(f"{key} {value:g}" for key, value in run["settings"].items())
        scores = " | ".join(_estimate(run["scores"][name]) for name in ("ES", "PS", "NS", "S"))
        norms = ", ".join(f"{value:.2f}" for value in run["relative_norm"].values())
        lines.append(f"| {run['range'][0]}-{run['range'][1]} | {settings} | {run['strategy']} | {scores} | {norms} |")
    return [*lines, ""]
