"""`bluedit analyze`: the paper's tables and figures on any model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from bluedit.cli.options import (
    AsJson,
    Assignments,
    Chat,
    CorpusName,
    Device,
    Dtype,
    Force,
    Layers,
    MethodName,
    Model,
    ModuleMap,
    Quiet,
    Samples,
    Seed,
    Templates,
    TraceFacts,
    TrustRemoteCode,
    layers_asked,
    parse_assignments,
    read_templates,
)

if TYPE_CHECKING:
    from bluedit.results import Record

__all__ = ["app"]

app = typer.Typer(
    help="Measure what residual distribution does in a model: the paper's tables and figures.", no_args_is_help=True
)

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Save result.json and the figure (PDF, PNG) in this folder; the same command resumes it."),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, metavar="N", help="Facts per batch of the sequence.")]


@dataclass(kw_only=True)
class Options:
    """What every analysis of a model takes."""

    model: Model
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="counterfact:FILE, zsre:FILE, edits:FILE, a FILE whose schema is recognised, or world:counterfact.",
        ),
    ]
    facts: Annotated[int, typer.Option("--facts", min=1, metavar="N", help="Use the first N facts.")] = 20
    method: MethodName = "memit"
    layers: Layers = None
    trace_facts: TraceFacts = None
    assignments: Assignments = None
    corpus: CorpusName = None
    samples: Samples = None
    templates: Templates = None
    values: Annotated[
        Path | None,
        typer.Option("--values", help="A folder of optimised values: analyses of one model that name the same one share them."),
    ] = None
    out: Out = None
    seed: Seed = 0
    device: Device = None
    dtype: Dtype = None
    chat: Chat = False
    module_map: ModuleMap = None
    trust_remote_code: TrustRemoteCode = False
    force: Force = False
    quiet: Quiet = False
    as_json: AsJson = False


def _analysis(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that is called with :class:`Options`, and with options of its own as far as it names any."""

    def register(command: Callable[..., None]) -> Callable[..., None]:
        def called(**given: Any) -> None:
            common = Options(**{one.name: given.pop(one.name) for one in fields(Options)})
            command(common, **given)

        hints = get_type_hints(Options, include_extras=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        shared = [
            inspect.Parameter(one.name, keyword, annotation=hints[one.name],
                              default=inspect.Parameter.empty if one.default is MISSING else one.default)
            for one in fields(Options)
        ]  # fmt: skip
        own = [one.replace(kind=keyword) for one in inspect.signature(command, eval_str=True).parameters.values()][1:]
        vars(called)["__signature__"] = inspect.Signature([*shared[:3], *own, *shared[3:]])
        called.__doc__ = command.__doc__
        app.command(name)(called)
        return command

    return register


@_analysis("steps")
def steps(options: Options) -> None:
    """Table 1: optimisation steps per layer when every critical layer gets a residual of its own."""
    _run("steps", options)


@_analysis("contribution")
def contribution(options: Options) -> None:
    """Figure 2: how much adding a computed or a distributed residual at each layer raises the target's probability."""
    _run("contribution", options)


@_analysis("cosine")
def cosine(options: Options) -> None:
    """Figure 3: the cosine of computed and distributed residuals at each layer."""
    _run("cosine", options)


@_analysis("gap")
def gap(options: Options) -> None:
    """Figure 5: the distance between each layer's computed residual and the last layer's."""
    _run("gap", options)


@_analysis("single-layer")
def single_layer(options: Options) -> None:
    """Figures 4 and 8: scores after editing one layer alone, with its computed and with its distributed residual."""
    _run("single-layer", options)


@_analysis("bounds")
def bounds(options: Options, batch_size: BatchSize = None) -> None:
    """Theorem 4.1 and lemma 4.2: the weight-shift error and its bound, by distance, batch size and sequence length."""
    _run("bounds", options, batch_size=batch_size)


@_analysis("hidden-states")
def hidden_states(
    options: Options,
    prompts: Annotated[
        int, typer.Option("--prompts", min=10, metavar="N", help="Look at this many other facts of the data set.")
    ] = 1000,
    batch_size: BatchSize = None,
    layer: Annotated[int | None, typer.Option("--layer", min=0, help="The layer to look at; the last critical one.")] = None,
) -> None:
    """Figures 7, 9 and 10: hidden states of other prompts before and after an edit, as a t-SNE map and in numbers."""
    _run("hidden-states", options, prompts=prompts, batch_size=batch_size, layer=layer)


@_analysis("pairs")
def pairs(
    options: Options,
    text: Annotated[str | None, typer.Option("--text", help="Held-out text for the KL divergence: text:FILE.")] = None,
    text_skip: Annotated[
        int, typer.Option("--text-skip", min=0, metavar="N", help="Skip N documents, which the corpus may have used.")
    ] = 0,
    text_tokens: Annotated[int, typer.Option("--text-tokens", min=1, metavar="N", help="Tokens of it to predict.")] = 4000,
) -> None:
    """BLUE at all pairs of layers: scores, and what it does to held-out text."""
    _run("pairs", options, text=text, text_skip=text_skip, text_tokens=text_tokens)


@app.command("tables")
def tables(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Folders of finished experiments (`bluedit run`).")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Save result.json, the tables (Markdown, LaTeX) and a figure in this folder."),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Tables 2 to 5: each method with its own strategy beside the same with BLUE, and in how many cells BLUE is better."""
    from bluedit.analysis.place import at
    from bluedit.analysis.table_text import write_tables
    from bluedit.analysis.tables import paper_tables

    result = paper_tables(folders)
    with at(out, {"analysis": "tables", "folders": [str(folder) for folder in folders]}, replace=force) as place:
        place.finish(result)
        if out is not None:
            write_tables(result, out)
    _tell(result, "gains", out, as_json)


def _run(name: str, options: Options, **own: Any) -> None:
    """Carry out an analysis and say what it found. `own`: the options that it alone has."""
    from bluedit.cli import console

    console.load()
    from dataclasses import replace

    from bluedit.analysis.questions import Question
    from bluedit.datasets import read_known
    from bluedit.models import load_model

    layers, automatic = layers_asked(options.layers, options.trace_facts)
    question = Question(
        analysis=name, dataset=options.dataset, facts=options.facts, method=options.method, layers=layers,
        settings=parse_assignments(options.assignments or []), corpus=options.corpus, samples=options.samples,
        templates=read_templates(options.templates), seed=options.seed, **own,
    )  # fmt: skip
    question.cases()  # says what is wrong with them before a model is loaded
    common = {name: value for name, value in asdict(options).items() if name in ("device", "dtype", "module_map")}
    with console.bars(f"loading {options.model}") as bars:
        editable = load_model(
            options.model, trust_remote_code=options.trust_remote_code, chat=options.chat, progress=bars, **common
        )
        if automatic:
            from bluedit.cli.automatic import traced_layers
            from bluedit.methods import find_method

            traced = read_known(options.trace_facts) if options.trace_facts else None
            chosen = traced_layers(editable, options.model, find_method(options.method), traced, options.seed, bars)
            question = replace(question, layers=chosen)
        result = question.answer(editable, options.out, values=options.values, replace=options.force, progress=bars)
    _tell(result, name, options.out, options.as_json)


def _tell(result: Record, name: str, out: Path | None, as_json: bool) -> None:
    """Draw a result where there is a folder, and print it."""
    from bluedit.analysis.figures import save_figure
    from bluedit.analysis.words import in_words
    from bluedit.cli import console

    if out is not None:
        save_figure(result, out, name)
    if as_json:
        console.emit(result)
        return
    words = in_words(result)
    console.show(console.Table(words.columns, words.rows, title=words.title, text=1))
    for remark in words.remarks:
        console.show(remark)
    if out is not None:
        console.say(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}")
