"""`bluedit demo`: facts written into the embedded model, with residual distribution and with BLUE, side by side.

Or, with `--real`, into a real language model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from bluedit.cli.options import AsJson, Device, Dtype, Quiet, Seed

__all__ = ["demo", "report", "sizes_of_changes"]

_SHOWN = 3
_COMPLETION_TOKENS = 10


def demo(
    facts: Annotated[
        int | None,
        typer.Option("--facts", min=1, max=500, help="How many facts to edit, in one batch; 100, or with --real all 12."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="NAME", help="An embedded model, or one that `bluedit get` downloads.")
    ] = "gpt2-mini",
    real: Annotated[
        bool,
        typer.Option("--real", help="Edit well-known facts in a real model: smollm2-135m-instruct, which is downloaded first."),
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Edit a small model with MEMIT, once distributing residuals evenly and once with BLUE, and compare.

    With --real: write a dozen facts into a real language model with BLUE, query it in several ways, and revert the edit."""
    from bluedit.errors import SettingsError, did_you_mean
    from bluedit.models.embedded import DOWNLOADS, EMBEDDED

    if real and model in EMBEDDED:
        model = next(iter(DOWNLOADS))
    if model in DOWNLOADS:
        _real(model, facts or 500, device, dtype, seed, as_json)
    elif model in EMBEDDED:
        _compare(model, facts or 100, device, dtype, seed, as_json)
    else:
        known = (*EMBEDDED, *DOWNLOADS)
        raise SettingsError(f"{did_you_mean(model, known, what='model of the demo')} For other models use `bluedit edit`.")


def _real(model: str, facts: int, device: str | None, dtype: str | None, seed: int, as_json: bool) -> None:
    from bluedit.cli import console

    console.load()
    from bluedit.cli.demo_real import real_demo, show
    from bluedit.models import load_model

    with console.bars(f"loading {model}") as bars:
        editable = load_model(model, device=device, dtype=dtype, progress=bars)
        started = time.monotonic()
        document = real_demo(editable, model, facts, seed, bars)
    document["seconds"] = round(time.monotonic() - started, 1)
    if as_json:
        from bluedit.results.demos import RealDemoResult

        console.emit(RealDemoResult.of(document))
        return
    console.show(show(document))
    back = all(document["reverted"].values())
    console.show("reverted: every weight is as it was, bit for bit" if back else "NOT reverted: the weights differ")
    console.say(
        f"took {document['seconds']:.0f} s, {document['editing_seconds']:.0f} s of it the edit. ES: the new object is "
        "preferred; PS: also in paraphrases; NS: unrelated prompts keep their answers"
    )


def _compare(model: str, facts: int, device: str | None, dtype: str | None, seed: int, as_json: bool) -> None:
    import warnings

    from bluedit.cli import console
    from bluedit.datasets import read_dataset

    dataset = f"world:counterfact:0:{seed}:person"
    cases = read_dataset(dataset, facts)
    console.load()
    from bluedit.editing import edit
    from bluedit.editors.cautions import LargeChangeWarning
    from bluedit.evaluation import protocol, score_cases
    from bluedit.models import load_model
    from bluedit.models.respondent import as_respondent
    from bluedit.strategies import BOUNDARY, EVEN

    started = time.monotonic()
    shown = cases[:_SHOWN]
    prompts = [case.fact.text for case in shown]
    document: dict[str, Any] = {"model": model, "facts": len(cases), "method": "memit"}
    with console.bars(f"loading {model}") as bars:
        # What they say is said in one sentence below.
        warnings.filterwarnings("ignore", category=LargeChangeWarning)
        editable = load_model(model, device=device, dtype=dtype)

        def measure(name: str) -> dict[str, Any]:
            bars(f"scoring, {name}", 0, None)
            scores = score_cases(editable, cases, progress=lambda done, total: bars(f"scoring, {name}", done, total))
            texts = as_respondent(editable).generate(prompts, max_new_tokens=_COMPLETION_TOKENS)
            return {"scores": scores.as_dict(), "completions": _first_sentences(texts, prompts)}

        document["protocol"] = protocol(editable, cases, dataset=dataset, seed=seed)
        document["before"] = measure("before")
        for strategy in (EVEN, BOUNDARY):
            patch = edit(
                editable,
                [case.fact for case in cases],
                method="memit",
                strategy=strategy,
                seed=seed,
                progress=lambda task, advance, total, name=strategy.name: bars(f"{task}, {name}", advance, total),
            )
            with patch.applied(editable):
                document[strategy.name] = measure(strategy.name)
            document[strategy.name] |= {
                "layers": [record.layer for record in patch.manifest.weights.values()],
                "relative_norms": [record.relative_norm for record in patch.manifest.weights.values()],
                "seconds": patch.manifest.seconds,
            }
            document["settings"] = patch.manifest.settings
    document["completed"] = [{"prompt": case.fact.text, "old": case.true_target, "new": case.fact.target} for case in shown]
    document["seconds"] = round(time.monotonic() - started, 1)
    if as_json:
        from bluedit.results.demos import DemoResult

        console.emit(DemoResult.of(document))
    else:
        _say(document)


def _say(document: Mapping[str, Any]) -> None:
    """The comparison for people, on the console."""
    from bluedit.cli import console

    console.show(report(document))
    if sizes := sizes_of_changes(document):
        console.say(sizes)
    console.say(
        f"took {document['seconds']:.0f} s. ES: the new object is preferred; PS: also in phrasings never seen with the "
        "subject; NS: other subjects keep theirs"
    )


def report(document: Mapping[str, Any]) -> Any:
    """The demo's JSON result for people: scores side by side, and what the model says."""
    from rich.console import Group
    from rich.text import Text

    from bluedit.cli.console import Table, score_table

    layers = document["even"]["layers"]
    labels = {
        "before": "before",
        "even": f"MEMIT, residual distributed over layers {layers[0]}-{layers[-1]}",
        "boundary": f"MEMIT + BLUE, layers {' and '.join(map(str, document['boundary']['layers']))}",
    }
    title = f"{document['facts']} facts written into {document['model']} in one batch, percent [95 % interval]"
    columns = ("ES", "PS", "NS", "S")
    scores = {
        label: {score: document[name]["scores"][score] for score in columns if score in document[name]["scores"]}
        for name, label in labels.items()
    }
    says = Table(["prompt", "wanted", "before", "MEMIT", "+ BLUE"], title="What the model says", text=5)
    for index, fact in enumerate(document["completed"]):
        before, *after = (document[name]["completions"][index] for name in labels)
        cells = (Text(text, style="green" if text.startswith(fact["new"]) else "red") for text in after)
        says.add(fact["prompt"], fact["new"], before, *cells)
    return Group(score_table(title, scores), says)


def sizes_of_changes(document: Mapping[str, Any]) -> str | None:
    """What it means here that a change is larger than its weight, where one is."""
    sizes = {name: document[name]["relative_norms"] for name in ("even", "boundary")}
    if max(map(max, sizes.values())) <= 1:
        return None
    even, blue = (f"{max(found):.1f}" for found in sizes.values())
    return (
        f"the changes are large (up to {even} times the size of the weight, with BLUE up to {blue} times), because "
        f"{document['facts']} facts are many for so small a model; NS says how well other facts survive that"
    )


def _first_sentences(texts: Sequence[str], prompts: list[str]) -> list[str]:
    """What follows each prompt, up to the end of its sentence."""
    return [text[len(prompt) :].split(".")[0].strip() for text, prompt in zip(texts, prompts, strict=True)]
