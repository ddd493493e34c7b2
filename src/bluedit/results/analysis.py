"""What `bluedit analyze` prints with `--json` and writes to `result.json`, one record for each analysis."""

from __future__ import annotations

from typing import Any

from bluedit.results.records import Interval, ProtocolTag, Record, Scores, TextResult

__all__ = [
    "AnalysisResult",
    "Bound",
    "BoundsResult",
    "ContributionResult",
    "CosineResult",
    "GainRow",
    "GapResult",
    "HiddenStatesResult",
    "LayerContribution",
    "LayerCosine",
    "LayerGap",
    "LayerScores",
    "LayerSteps",
    "Pair",
    "PairsResult",
    "PaperTable",
    "Shift",
    "SingleLayerResult",
    "StepsResult",
    "TablesResult",
    "Tally",
]


class AnalysisResult(Record):
    """What every analysis says of itself.

    - `analysis`: its name.
    - `method`, `layers`, `settings`: with what facts were, or would be, edited; `templates`: how many context templates.
    - `corpus`, `samples`: where second moments came from.
    - `seconds`: of this run; what an earlier one left done is not counted.
    """

    analysis: str
    method: str
    layers: list[int]
    settings: dict[str, Any]
    templates: int
    corpus: str | None
    samples: int | None
    protocol: ProtocolTag
    seconds: float


# -- value optimisation ----------------------------------------------------------------------------------------------


class LayerSteps(Record):
    """Value optimisation at one layer, the layers below it edited.

    - `steps`: evaluations of the loss that were above `early_stop_loss`, the paper's count; 0: the fact was there already.
    - `updates`: steps that Adam took; one less where a fact used up all evaluations.
    - `unfinished`: facts that never came below `early_stop_loss`, in percent.
    - `by_fact`: steps of each fact.
    """

    layer: int
    steps: Interval
    updates: Interval
    unfinished: Interval
    by_fact: list[int]


class StepsResult(AnalysisResult):
    """`bluedit analyze steps --json`: the paper's table 1.

    `most`: evaluations of the loss that a fact has at most; `early_stop_loss`: where it is done.
    """

    most: int
    early_stop_loss: float
    by_layer: list[LayerSteps]


# -- residuals -------------------------------------------------------------------------------------------------------


class LayerContribution(Record):
    """Simulated editing at one layer, in percentage points of the target's probability.

    - `share`: which part of the last layer's residual the layer is given.
    - `distributed`, `computed`: contribution scores; `difference`: computed minus distributed, paired over facts.
    """

    layer: int
    share: float
    distributed: Interval
    computed: Interval
    difference: Interval


class ContributionResult(AnalysisResult):
    """`bluedit analyze contribution --json`: the paper's figure 2. `unedited`: the target's probability, in percent."""

    unedited: Interval
    by_layer: list[LayerContribution]


class LayerCosine(Record):
    """The cosine of the computed and the distributed residual of a layer, the mean over facts; `by_fact`: each fact's.

    Null: one of the residuals is 0.
    """

    layer: int
    cosine: Interval | None
    by_fact: list[float | None]


class CosineResult(AnalysisResult):
    """`bluedit analyze cosine --json`: the paper's figure 3."""

    by_layer: list[LayerCosine]


class LayerGap(Record):
    """How far a layer's own residual is from the last layer's.

    - `gap`: ||delta_l* - delta_L||, the mean over facts; `relative`: the same, in ||delta_L||.
    - `spectral`: ||R^l* - R^L||_2 of all facts together, as in the bound.
    - `computed`: ||delta_l*||, the mean over facts.
    """

    layer: int
    gap: Interval
    relative: Interval
    spectral: float
    computed: Interval


class GapResult(AnalysisResult):
    """`bluedit analyze gap --json`: the paper's figure 5, in the unit of the hidden state."""

    by_layer: list[LayerGap]


# -- the bound -------------------------------------------------------------------------------------------------------


class Bound(Record):
    """The weight-shift error of some edits and its bound.

    - `layer`; `distance`: critical layers from there to the last; `facts`: of a batch; `batches`: of the sequence so far.
    - `error`: ||D* - D||_2, of the total change of the sequence; `bound`: what it should not exceed.
    - `first`, `second`: the two summands of the bound, ||R^l* - R^L|| ||Q|| and (L - l) ||R^l|| ||Q||; `gain`: ||Q||_2.
    - `errors`, `bounds`: of each part (groups of facts, for batch sizes), whose means `error` and `bound` are.
    - `tightness`: error / bound, the largest of the parts. `holds`: whether no part exceeds its bound.
    """

    layer: int
    distance: int
    facts: int
    batches: int
    error: float
    bound: float
    first: float
    second: float
    gain: float
    errors: list[float]
    bounds: list[float]
    tightness: float
    holds: bool


class BoundsResult(AnalysisResult):
    """`bluedit analyze bounds --json`: theorem 4.1 and lemma 4.2.

    - `by_layer`: all facts in one batch, by distance; `by_batch`: at the first critical layer, by batch size; `by_sequence`:
      at the first critical layer, by the number of batches before.
    - `checked`: how many pairs of error and bound were compared; `violated`: those where the error is larger.
    """

    by_layer: list[Bound]
    by_batch: list[Bound]
    by_sequence: list[Bound]
    checked: int
    violated: int


# -- edits and their scores ------------------------------------------------------------------------------------------


class LayerScores(Record):
    """One layer edited alone: with its computed residual, and with its share of the last layer's.

    - `difference`: computed minus distributed, in points, paired over cases.
    - `computed_norm`, `distributed_norm`: ||D|| / ||W||.
    """

    layer: int
    share: float
    computed: Scores
    distributed: Scores
    difference: Scores
    computed_norm: float
    distributed_norm: float


class SingleLayerResult(AnalysisResult):
    """`bluedit analyze single-layer --json`: the paper's figures 4 and 8."""

    before: Scores
    by_layer: list[LayerScores]


class Pair(Record):
    """BLUE at a pair of layers; at one alone where both are the same.

    - `text`: held-out text, where some was named.
    - `remaining`: by layer, what fraction of what was asked for is left open; `relative_norm`: by layer, ||D|| / ||W||.
    """

    first: int
    last: int
    scores: Scores
    text: TextResult | None = None
    remaining: dict[str, float]
    relative_norm: dict[str, float]


class PairsResult(AnalysisResult):
    """`bluedit analyze pairs --json`. `best`: the pair with the largest S, and `equal`: those whose S is not clearly lower."""

    before: Scores
    pairs: list[Pair]
    best: list[int]
    equal: list[list[int]]


# -- hidden states ---------------------------------------------------------------------------------------------------


class Shift(Record):
    """What an edit does to hidden states of prompts that it is not about.

    - `strategy`: how it was edited.
    - `shift`: distance of the means before and after, in root mean square distances of a state from the mean before.
    - `moved`: ||h_after - h_before|| / ||h_before||, the mean over prompts, in percent.
    """

    strategy: str
    shift: Interval
    moved: Interval


class HiddenStatesResult(AnalysisResult):
    """`bluedit analyze hidden-states --json`: the paper's figures 7, 9 and 10.

    - `layer`: where the states stand; `prompts`: how many; `batch_size`: of the sequence of edits.
    - `points`: their t-SNE map, by `before` and strategy, two coordinates each without a unit.
    """

    layer: int
    prompts: int
    batch_size: int
    perplexity: float
    by_strategy: list[Shift]
    points: dict[str, list[list[float]]]


# -- tables ----------------------------------------------------------------------------------------------------------


class GainRow(Record):
    """A method on one model and data set, with its own strategy and with BLUE.

    - `batch_size`, `edits`: of the run.
    - `own`, `blue`: scores in percent; `gain`: BLUE minus own, in points, paired over cases.
    """

    model: str
    dataset: str
    method: str
    note: str
    edits: int
    batch_size: int
    strategy: str
    own: Scores
    blue: Scores
    gain: Scores


class Tally(Record):
    """In how many cells BLUE has the larger value, of how many; `clearly`, `clearly_worse`: where the interval leaves out 0."""

    better: int
    cells: int
    equal: int
    clearly: int
    clearly_worse: int


class PaperTable(Record):
    """One of the paper's tables, over all runs that belong in it.

    - `number`: 2 and 3 (a sequence of batches: values, and gains), 4 (one batch), 5 (PMET).
    """

    number: int
    title: str
    rows: list[GainRow]
    tally: Tally
    by_score: dict[str, Tally]
    mean_gain: dict[str, Interval]


class TablesResult(Record):
    """`bluedit analyze tables --json`.

    - `folders`: the experiments; `unpaired`: runs without a counterpart, left out.
    """

    folders: list[str]
    tables: list[PaperTable]
    unpaired: list[str]
