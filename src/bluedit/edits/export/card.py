"""The model card of an export: what was changed, how, what it scored, how to use it, and how to take it back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bluedit.edits.base import Edit
from bluedit.edits.export.outputs import Exported
from bluedit.version import __version__

__all__ = ["card"]

_FACTS = 50
"""Facts that a card lists; the patch has all."""
_LIBRARY = {"lora": "peft", "checkpoint": "transformers", "gguf": "gguf", "gguf-lora": "gguf"}
_WHAT = {
    "lora": "a PEFT LoRA adapter",
    "checkpoint": "a checkpoint of transformers",
    "gguf": "a GGUF model",
    "gguf-lora": "a GGUF LoRA adapter",
}

ScoreTable = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By label, by score: `value`, `low`, `high`, `n`."""


def card(exported: Exported, edit: Edit, scores: ScoreTable | None = None, dataset: str | None = None) -> Callable[[str], str]:
    """The text of an export's card, given the mark that it has to hold; Markdown with a YAML header, as model hubs read it.

    `scores` are by label, such as `patched model`, on the cases of `dataset`.
    """

    def text(mark: str) -> str:
        sections = [
            _header(exported),
            mark,
            _introduction(exported, edit),
            _facts(edit),
            _method(edit),
            _weights(exported),
            _scores(scores, dataset),
            _use(exported),
            _back(exported, edit),
            f"Written by bluedit {__version__}.",
        ]
        return "\n\n".join(section for section in sections if section) + "\n"

    return text


def _header(exported: Exported) -> str:
    lines = [
        "---",
        f"base_model: {json.dumps(_public(exported.base))}",
        f"library_name: {_LIBRARY[exported.kind]}",
        "tags: [bluedit, model-editing]",
        "---",
    ]
    return "\n".join(lines)


def _introduction(exported: Exported, edit: Edit) -> str:
    count = len(edit.manifest.facts)
    notes = "".join(f"\n- {_plain(note)}" for note in (*exported.warnings, *exported.notes))
    return (
        f"# {count} {'fact' if count == 1 else 'facts'} edited into {_plain(_public(exported.base))}\n\n"
        f"This is {_WHAT[exported.kind]}. It makes the model answer the facts below with other targets than it did. Targets of "
        "edits may be false on purpose, as in benchmarks: read the list before you use it." + (f"\n{notes}" if notes else "")
    )


def _facts(edit: Edit) -> str:
    rows = [(fact.id, fact.text, fact.target) for fact in edit.facts[:_FACTS]]
    more = len(edit.facts) - _FACTS
    rest = f"\n\nAnd {more} more; the patch lists all." if more > 0 else ""
    return "## What was changed\n\n" + _table(("id", "prompt", "new target"), rows) + rest


def _method(edit: Edit) -> str:
    manifest = edit.manifest
    settings = ", ".join(f"{name} = {value}" for name, value in manifest.settings.items())
    lines = [
        f"- Method: {manifest.method}, strategy {manifest.strategy}, layers {', '.join(map(str, manifest.layers)) or 'none'}",
        f"- Settings: {_plain(settings) or 'none'}",
        f"- Second moments from: {_plain(str(manifest.corpus))}; seed {manifest.seed}",
        f"- Chat template around prompts: {'yes' if manifest.chat else 'no'}",
        f"- Made with: {', '.join(f'{name} {version}' for name, version in manifest.versions.items())}",
    ]
    return "## How\n\n" + "\n".join(lines)


def _weights(exported: Exported) -> str:
    if not exported.parts:
        return ""
    rows = [
        (
            part.weight,
            part.kind,
            "-" if part.rank is None else str(part.rank),
            f"{part.error:.2%}",
            "-" if part.error_at_keys is None else f"{part.error_at_keys:.2%}",
        )
        for part in exported.parts
    ]
    note = "Error: by how much the stored change differs from the patch's, relative to its norm; and where the facts read it."
    return "## Changed weights\n\n" + _table(("weight", "stored as", "rank", "error", "error at keys"), rows) + f"\n\n{note}"


def _scores(scores: ScoreTable | None, dataset: str | None) -> str:
    if not scores:
        return "## Scores\n\nIt was not scored. `--dataset` with `bluedit export` scores it."
    names = list(dict.fromkeys(name for one in scores.values() for name in one))
    rows = [
        (label, *("{value:.1f} [{low:.1f}, {high:.1f}]".format(**one[name]) if name in one else "-" for name in names))
        for label, one in scores.items()
    ]
    legend = (
        "Percent, with 95 % intervals over cases. ES: edited prompts that prefer the new target; PS: the same on paraphrases; "
        "NS: prompts about other subjects that keep their answer; S: their harmonic mean. EA, PA, NA: the whole target is the "
        "greedy answer."
    )
    return f"## Scores\n\nOn {_plain(Path(str(dataset)).name)}.\n\n{_table(('', *names), rows)}\n\n{legend}"


def _use(exported: Exported) -> str:
    place, base = exported.path.name, json.dumps(_public(exported.base))
    code = {
        "lora": (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({base})\n"
            f"model = PeftModel.from_pretrained(model, {json.dumps(place)})"
        ),
        "checkpoint": (
            "from transformers import AutoModelForCausalLM\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({json.dumps(place)})"
        ),
        "gguf": f"llama-server --model {place}",
        "gguf-lora": f"llama-server --model MODEL.gguf --lora {place}",
    }[exported.kind]
    language = "python" if exported.kind in ("lora", "checkpoint") else "sh"
    return f"## How to use it\n\n```{language}\n{code}\n```"


def _back(exported: Exported, edit: Edit) -> str:
    how = {
        "lora": "Load the model without the adapter, or switch it off with `model.disable_adapter()`. Nothing else changed.",
        "checkpoint": (
            "`bluedit patch revert --model FOLDER --out OTHER` gives the original weights, bit for bit: the folder `bluedit/` "
            "holds them."
        ),
        "gguf": (
            "Go back to the original file: this one is a copy. The changed tensors are listed above; all others are those of "
            "the original."
        ),
        "gguf-lora": "Run the model without the adapter. Nothing else was changed.",
    }[exported.kind]
    return f"## How to take it back\n\n{how} The patch that this was made from has the digest `{edit.digest}`."


def _public(base: str) -> str:
    """The base model's name for others: of a folder or file on this machine the last part of its path alone."""
    path = Path(base)
    return path.name if path.is_absolute() else base


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *[[_plain(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """A text of the user's in Markdown: one line, no markup of its own."""
    flat = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return re.sub(r"([\\`*_<>|#]|(?<=\])\()", r"\\\1", flat)
