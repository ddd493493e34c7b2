"""What `bluedit evaluate` prints with `--json`, and the lines of its `--records` file."""

from __future__ import annotations

from bluedit.results.records import Interval, ProtocolTag, Record, Scores

__all__ = ["EvaluateResult", "EvaluatedCase", "MeasureResult"]


class CaseOutcomes(Record):
    """A case: by score the outcome of each prompt, in [0, 1] (fluency in bits)."""

    id: str
    outcomes: dict[str, list[float]]


class MeasureResult(Record):
    """Scores of one measure.

    - `name`: `standard` (teacher forced), `wild-question`, `wild-instruction`, `wild-chat` (autoregressive), `generation`
      (fluency, consistency) or `follow-ups` (MQuAKE, RippleEdits, UnKEBench).
    - `scores`: of the model with the patch, where there is one; `before`: of the unedited model, then.
    """

    name: str
    scores: Scores
    before: Scores | None = None
    protocol: ProtocolTag


class HeldOutResult(Record):
    """A model on held-out text; with a patch compared with the unedited model, as in an experiment's `text`."""

    documents: int
    tokens: int
    perplexity: Interval
    perplexity_before: Interval | None = None
    perplexity_change: Interval | None = None
    kl: Interval | None = None
    top1: Interval | None = None


class EvaluateResult(Record):
    """`bluedit evaluate --json`.

    - `model`, `patch`, `dataset`: as given.
    - `scores`, `protocol`: of the first measure; `measures`: of all.
    - `text`: on held-out text, compared with the unedited model.
    - `seconds`: of scoring.
    - `skipped`: records that could not be used, and why.
    - `records`: the file that `--records` wrote.
    - `cases`: with `--cases`, of the first measure.
    """

    model: str
    patch: str | None
    dataset: str
    scores: Scores
    protocol: ProtocolTag
    measures: list[MeasureResult]
    text: HeldOutResult | None = None
    seconds: float
    skipped: list[str] | None = None
    records: str | None = None
    cases: list[CaseOutcomes] | None = None


class GeneratedText(Record):
    """What a model wrote.

    - `kind`: what it was asked for: `rewrite`, `paraphrase`, `neighborhood`, `generation`, or the name of a follow-up.
    - `prompt`: what the model was given, without a chat template.
    - `stopped`: `end` (the model's end token), `text` (a stop text) or `length` (the limit of tokens).
    """

    kind: str
    prompt: str
    text: str
    tokens: int
    stopped: str


class CaseMeasure(Record):
    """A case under one measure: by score the outcome of each prompt, in [0, 1] (fluency in bits), and what the model wrote."""

    outcomes: dict[str, list[float]]
    generated: list[GeneratedText] | None = None


class EvaluatedCase(Record):
    """A line of `--records`: one case, by measure.

    - `true_target`: what held before, where the data say it.
    - `before`: the unedited model, with `--patch`; `after`: the model that is evaluated.
    """

    id: str
    prompt: str
    subject: str
    target: str
    true_target: str | None
    before: dict[str, CaseMeasure] | None = None
    after: dict[str, CaseMeasure]
