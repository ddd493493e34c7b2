"""The demo on a real language model: well-known facts, edited, asked in other ways, and reverted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluedit.models.embedded import TEXTS
from bluedit.storage.parsing import parse_json, read_text

if TYPE_CHECKING:
    from bluedit.cli.console import Bars
    from bluedit.datasets import Case
    from bluedit.models import EditableModel

__all__ = ["read_questions", "real_demo", "show"]

_TOKENS, _CHAT_TOKENS = 8, 16
_FACTS = "facts.jsonl"


def read_questions(model: str, limit: int | None = None) -> list[tuple[Case, str]]:
    """The facts that ship for a model as cases, each with the question that asks for it in a chat."""
    from bluedit.datasets import Case
    from bluedit.facts import Fact

    rows = [parse_json(line) for line in read_text(_facts_file(model)).splitlines()[:limit]]
    return [
        (
            Case(
                fact=Fact(row["prompt"], row["subject"], row["target"], id=str(number)),
                true_target=row["target_true"],
                paraphrases=(row["paraphrase"],),
                neighborhood=(row["neighbour"],),
                neighborhood_target=row["neighbour_target"],
            ),
            row["question"],
        )
        for number, row in enumerate(rows)
    ]


def _facts_file(model: str) -> Path:
    return TEXTS[model].with_name(_FACTS)


def real_demo(editable: EditableModel, name: str, limit: int, seed: int, bars: Bars) -> dict[str, Any]:
    """Edit, ask, and take the edit back; what `--json` prints."""
    from bluedit.editing import edit
    from bluedit.evaluation import protocol, score_cases

    asked = read_questions(name, limit)
    cases = [case for case, _ in asked]
    fingerprint = editable.fingerprint()
    document: dict[str, Any] = {"model": name, "facts": len(cases), "method": "memit", "strategy": "boundary"}

    def measure(when: str) -> dict[str, Any]:
        bars(f"asking, {when}", 0, None)
        scores = score_cases(editable, cases, progress=lambda done, total: bars(f"scoring, {when}", done, total))
        return {"scores": scores.as_dict(), "said": _answers(editable, asked)}

    document["protocol"] = protocol(editable, cases, dataset=f"zoo:{name}", seed=seed)
    document["before"] = measure("before")
    patch = edit(editable, [case.fact for case in cases], method="memit", strategy="boundary", seed=seed, progress=bars)
    patch.apply(editable)
    document["after"] = measure("after")
    patch.revert(editable)
    bars("reverting the edit", 0, None)
    document |= {
        "asked": [_prompts(case, question) for case, question in asked],
        "layers": [record.layer for record in patch.manifest.weights.values()],
        "relative_norms": [record.relative_norm for record in patch.manifest.weights.values()],
        "settings": patch.manifest.settings,
        "editing_seconds": patch.manifest.seconds,
        "reverted": {
            "fingerprint": editable.fingerprint() == fingerprint,
            "said": _answers(editable, asked[:1]) == {key: said[:1] for key, said in document["before"]["said"].items()},
        },
    }
    return document


def _prompts(case: Case, question: str) -> dict[str, str | None]:
    return {
        "fact": case.fact.text,
        "paraphrase": case.paraphrases[0],
        "neighbour": case.neighborhood[0],
        "chat": question,
        "old": case.true_target,
        "new": case.fact.target,
    }


def _answers(editable: EditableModel, asked: Sequence[tuple[Case, str]]) -> dict[str, list[str]]:
    """What the model says, by kind of prompt."""
    from bluedit.models import EditableModel
    from bluedit.models.respondent import as_respondent

    chat = EditableModel(editable.model, editable.tokenizer, module_map=editable.structure.map, chat=True)
    kinds = {
        "fact": [case.fact.text for case, _ in asked],
        "paraphrase": [case.paraphrases[0] for case, _ in asked],
        "neighbour": [case.neighborhood[0] for case, _ in asked],
    }
    prompts = [prompt for several in kinds.values() for prompt in several]
    texts = as_respondent(editable).generate(prompts, max_new_tokens=_TOKENS)
    said = [_first(text[len(prompt) :]) for text, prompt in zip(texts, prompts, strict=True)]
    answers = {kind: said[place * len(asked) : (place + 1) * len(asked)] for place, kind in enumerate(kinds)}
    answers["chat"] = [
        _first(text) for text in as_respondent(chat).generate([question for _, question in asked], max_new_tokens=_CHAT_TOKENS)
    ]
    return answers


def _first(text: str) -> str:
    """The first sentence of an answer, or the first line."""
    return text.strip().split("\n")[0].split(". ")[0].strip().removesuffix(".")


def show(document: Mapping[str, Any]) -> Any:
    """The result for people: what the model says about each fact, before and after, and the scores."""
    from rich.console import Group
    from rich.text import Text

    from bluedit.cli.console import Table, score_table

    before, after, asked = document["before"]["said"], document["after"]["said"], document["asked"]
    title = f"What {document['model']} says, before and after {document['facts']} facts were written into it"
    told = Table(["prompt", "before", "after", "asked otherwise", "after"], title=title, text=5)
    others = Table(["something else", "before", "after (must not change)", "the fact, in the chat", "before", "after"], text=6)
    for number, prompts in enumerate(asked):

        def new(kind: str, number: int = number, target: str = prompts["new"]) -> Text:
            return Text(after[kind][number], style="green" if target.lower() in after[kind][number].lower() else "red")

        same = after["neighbour"][number] == before["neighbour"][number]
        told.add(prompts["fact"], before["fact"][number], new("fact"), prompts["paraphrase"], new("paraphrase"))
        others.add(
            prompts["neighbour"],
            before["neighbour"][number],
            Text("the same" if same else after["neighbour"][number], style="green" if same else "red"),
            prompts["chat"],
            before["chat"][number],
            new("chat"),
        )
    columns = ("ES", "PS", "NS", "S")
    layers = " and ".join(map(str, document["layers"]))
    rows = {"before": document["before"]["scores"], f"MEMIT + BLUE, layers {layers}": document["after"]["scores"]}
    scores = {label: {name: found[name] for name in columns if name in found} for label, found in rows.items()}
    return Group(told, others, score_table(f"{document['facts']} facts, percent [95 % interval]", scores))
