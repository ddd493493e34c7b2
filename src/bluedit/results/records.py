"""What is measured, and what it was measured on: scores, the protocol tag, and the files of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from bluedit.errors import DamagedFileError
from bluedit.storage.parsing import validation_problem

__all__ = [
    "Along",
    "Before",
    "CaseRecord",
    "CellResult",
    "Comparison",
    "Drift",
    "EditTag",
    "Failure",
    "GenerationTag",
    "Interval",
    "MatrixTable",
    "Outcomes",
    "ProtocolTag",
    "Record",
    "RunResult",
    "RunSummary",
    "Scores",
    "Seconds",
    "Table",
    "TextResult",
    "Told",
]


class Record(BaseModel):
    """A JSON object with known keys.

    Unknown keys are preserved: a file of a later version can be read and written again. A key that was not given is
    left out when it is written.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=(), ser_json_inf_nan="constants")

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """The record of a document that was made here. **Raises** `pydantic.ValidationError` where it is another."""
        return cls.model_validate(document)

    @classmethod
    def read(cls, document: Mapping[str, Any], source: Path) -> Self:
        """The record of a document that was read from a file.

        **Raises** :class:`~bluedit.errors.DamagedFileError` naming the first thing that is wrong with it.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise DamagedFileError(source, f"does not hold what it should: {validation_problem(error)}") from error

    def as_dict(self) -> dict[str, Any]:
        """The document, ready for JSON, with its keys in the order of the fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


# -- scores ----------------------------------------------------------------------------------------------------------


class Interval(Record):
    """An estimate with its 95 % interval, over `n` cases or documents; scores and differences of scores are in percent."""

    value: float
    low: float
    high: float
    n: int


Scores = dict[str, Interval]
"""By score: ES, PS, NS, S, EA, PA, NA, and those of other measures. A score that no case has the data for is absent."""


class EditTag(Record):
    """How the scored model was edited.

    - `layers`: the critical layers.
    - `corpus`: where second moments came from.
    - `edits`: how many facts; `batch_size`: the most in one batch.
    - `order`, `evaluated`: in which order they were edited, and when the model was scored.
    """

    method: str
    strategy: str
    layers: list[int]
    settings: dict[str, Any]
    corpus: str | None
    edits: int
    batch_size: int
    order: str
    evaluated: str


class GenerationTag(Record):
    """How texts were generated.

    - `form`, `template`: what a prompt was put into; `chat` is in the model's chat template as well.
    - `stops`: texts that end a generated text, besides the model's end token and the limit of tokens.
    - `top_k`: sampled from the k most likely tokens; null where it was greedy.
    """

    form: str
    template: str
    max_new_tokens: int
    stops: list[str]
    top_k: int | None


class ProtocolTag(Record):
    """What a score was measured on, and how.

    - `dataset_fingerprint`: a hash of the records used.
    - `cases`: the ids of the records, in order.
    - `scoring`: teacher forced `probability` (CounterFact, your own files) or `token_accuracy` (zsRE); `autoregressive`,
      `generation` or `follow-ups`.
    - `generation`: of free generation; `follow_ups`: the same, by how a follow-up is scored.
    - `skipped`: records that could not be used, and were left out.
    - `model`: its name; `model_fingerprint`: a hash of the unedited weights.
    - `chat`: the template around prompts, where there was one.
    - `edit`: how the model was edited, where it was.
    """

    dataset: str
    dataset_fingerprint: str | None = None
    cases: list[str]
    scoring: list[str]
    model: str
    model_fingerprint: str
    dtype: str
    seed: int
    versions: dict[str, str]
    generation: GenerationTag | None = None
    follow_ups: dict[str, GenerationTag] | None = None
    skipped: int | None = None
    chat: dict[str, str] | None = None
    edit: EditTag | None = None


class TextResult(Record):
    """A model on held-out text, compared with the unedited one; intervals are over documents.

    - `perplexity`; `perplexity_before`, the unedited model's; `perplexity_change`, paired, in percent.
    - `kl`: KL(unedited || edited) per token, in nats.
    - `top1`: tokens with the same most likely token, in percent.
    """

    documents: int
    tokens: int
    perplexity: Interval
    perplexity_before: Interval
    perplexity_change: Interval
    kl: Interval
    top1: Interval


# -- experiments -----------------------------------------------------------------------------------------------------


class Before(Record):
    """`before.json`: the unedited model. `text`: on held-out text, where the recipe names some."""

    scores: Scores
    text: TextResult | None = None
    protocol: ProtocolTag


class Drift(Record):
    """How large the total change of a weight is: ||D||, ||D|| / ||W||, and the largest singular value of D."""

    relative_norm: float
    norm: float
    largest_singular_value: float


class Seconds(Record):
    """What a run took: all editing, scoring, and the editing batch by batch."""

    editing: float
    scoring: float
    batches: list[float]


class Outcomes(Record):
    """A case: its id, and by score the outcome of each prompt, in [0, 1]."""

    __pydantic_extra__: dict[str, list[float]]  # pyright: ignore[reportIncompatibleVariableOverride]

    id: str

    @property
    def by_score(self) -> dict[str, tuple[float, ...]]:
        """The outcomes without the id."""
        return {name: tuple(values) for name, values in self.__pydantic_extra__.items()}


class Along(Record):
    """A model on the way through a sequence of batches, as it would be if the sequence ended there.

    - `batches`, `facts`: how many were edited by then.
    - `scores`: of all of these facts; `first`: of the first batch; `latest`: of the last one so far.
    - `text`: on held-out text, where the recipe names some.
    """

    batches: int
    facts: int
    scores: Scores
    first: Scores
    latest: Scores
    text: TextResult | None = None


class RunSummary(Record):
    """One run, as `table.json` lists it.

    - `name`: its folder; `label`: for people; `note`: tells runs of one method and strategy apart.
    - `layers`: the critical layers; `settings`: every setting that counts.
    - `text`: on held-out text, where the recipe names some.
    - `retention`: the scores of the `first`, the `middle` and the `latest` batch, after the whole sequence.
    - `drift`: by weight; `null_space_rank`: by weight, AlphaEdit only.
    - `along`: with evaluate_every, the scores along the sequence.
    - `mean_evaluations`: by target layer, how often a fact's loss was evaluated; `remaining`: what fraction of what was
      asked for the written weights leave open, over all facts.

    Of single facts drift, evaluations and what remains are means over them, and there is no `retention`.
    """

    name: str
    label: str
    note: str
    method: str
    strategy: str
    layers: list[int]
    settings: dict[str, Any]
    scores: Scores
    text: TextResult | None = None
    retention: dict[str, Scores]
    along: list[Along] = []
    drift: dict[str, Drift]
    null_space_rank: dict[str, int]
    mean_evaluations: dict[str, float]
    remaining: dict[str, float] = {}
    seconds: Seconds
    protocol: ProtocolTag


class RunResult(RunSummary):
    """`NAME/result.json`: a finished run, with the outcomes of every case."""

    outcomes: list[Outcomes]

    def summary(self) -> RunSummary:
        """The run without the outcomes."""
        return RunSummary.of({name: value for name, value in self.as_dict().items() if name != "outcomes"})


class Comparison(Record):
    """A method with BLUE against the same method with another strategy.

    - `blue`, `own`: the names of the two runs; `strategy`: that of `own`.
    - `difference`: by score, by how many points BLUE is above, paired over cases.
    """

    method: str
    note: str
    blue: str
    own: str
    strategy: str
    difference: Scores


class Failure(Record):
    """A run that did not come to its end: its folder, its label, and why. `kind`: the name of the exception."""

    name: str
    label: str
    message: str
    kind: str


class Table(Record):
    """`table.json`, and what `bluedit run --json` prints: all runs of an experiment side by side.

    - `recipe`: as it was understood.
    - `failed`: runs that did not come to their end; they are tried again by the same command.
    - `versions`: of the software, and the platform.
    """

    recipe: dict[str, Any]
    model_fingerprint: str
    before: Before
    runs: list[RunSummary]
    blue_against_own: list[Comparison]
    failed: list[Failure] = []
    versions: dict[str, str] = {}


class CellResult(Record):
    """One combination of a matrix: where its results are, and what they are.

    - `name`: its folder; `label`: for people.
    - `status`: `done`, `failed` (with a `message`; `table` has the runs that succeeded, if any), or `open`.
    """

    name: str
    label: str
    status: str
    recipe: dict[str, Any]
    message: str | None = None
    table: Table | None = None


class MatrixTable(Record):
    """`matrix.json`, and what `bluedit run --json` prints of a recipe with lists.

    - `recipe`: as it was written.
    """

    name: str
    title: str
    recipe: dict[str, Any]
    versions: dict[str, str]
    cells: list[CellResult]


class Told(Record):
    """What a model made of a case: by score the outcome of each prompt, in [0, 1], and what it says after the prompt.

    - `says`: the greedy continuation of the prompt that was edited, its first tokens.
    """

    outcomes: dict[str, list[float]]
    says: str | None = None


class CaseRecord(Record):
    """One line of `NAME/records.jsonl`: a case, before it was edited and after the run.

    - `batch`: the batch it was edited in, from 1.
    - `target`: what was edited in; `true_target`: what held before.
    """

    id: str
    batch: int
    subject: str
    prompt: str
    target: str
    true_target: str | None
    paraphrases: list[str]
    neighborhood: list[str]
    neighborhood_target: str | None
    before: Told
    after: Told
