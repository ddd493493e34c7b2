"""Autoregressive scoring (WILD, arXiv 2502.11177): the model writes freely, and the whole answer is looked at.

Nothing of the target is shown; the model writes greedily and ends by itself, at a full stop, a line break or its end token. A
number of this protocol is never to be compared with a teacher-forced one, so its scores have other names:

| score | on | right where the text |
|---|---|---|
| `reliability_exact`, `_start`, `_contains` | rewrite prompts | is, begins with, holds the new target |
| `generalisation_exact`, ... | paraphrases | the same |
| `specificity_exact`, ... | neighborhood prompts | is, begins with, holds the data's answer |
| `locality` | neighborhood prompts | has the token ids that the unedited model wrote |

`exact` is the strict match of the whole answer, `start` allows for what follows ("Paris, which is"). A text that repeats itself
is wrong by every match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bluedit.datasets.cases import Case
from bluedit.errors import DatasetError
from bluedit.evaluation.matching import MATCHES, matches
from bluedit.evaluation.measures import Count, Writings, write
from bluedit.evaluation.scoring import Scores, tally
from bluedit.models import EditableModel
from bluedit.models.generation import Completion, Stop
from bluedit.models.respondent import Writer

__all__ = ["FORMS", "INSTRUCTION", "Form", "Wild", "generation_tag", "wild_forms"]

Form = Literal["question", "instruction", "chat"]
FORMS: tuple[Form, ...] = ("question", "instruction", "chat")
"""The prompt alone; with an instruction; with the instruction, as a user's message in the model's chat template."""

INSTRUCTION = "Please answer the question:\n\nQ: {}\nA:"

_STOP = Stop(max_new_tokens=50, texts=(".", "\n"))
_KINDS = (("rewrite", "reliability"), ("paraphrase", "generalisation"), ("neighborhood", "specificity"))


@dataclass(frozen=True)
class Wild:
    """Free greedy answers to the rewrite prompts, paraphrases and neighborhood prompts of cases.

    **Arguments**

    - `form`: what a prompt is put into. A writer other than a model is given the same text for `instruction` and `chat`, and
      puts it into its chat template by itself.
    - `stop`: when an answer ends.
    """

    form: Form = "question"
    stop: Stop = _STOP

    @property
    def name(self) -> str:
        return f"wild-{self.form}"

    @property
    def tag(self) -> Mapping[str, Any]:
        template = "{}" if self.form == "question" else INSTRUCTION
        return {"scoring": ["autoregressive"], "generation": generation_tag(self.form, template, self.stop)}

    def observe(self, model: EditableModel | Writer, cases: Sequence[Case], *, progress: Count | None = None) -> Writings:
        """**Raises** as :func:`~bluedit.models.generation.complete`."""
        if not cases:
            raise DatasetError("evaluation", ["there are no cases to score"])
        prompts = [prompt for case in cases for prompts in _prompts(case).values() for prompt in prompts]
        if isinstance(model, EditableModel):
            model = model.in_chat(self.form == "chat")
        form = str if self.form == "question" else INSTRUCTION.replace("{}", "{0}").format
        return write(model, prompts, self.stop, form=form, progress=progress)

    def scores(self, cases: Sequence[Case], now: Writings, unedited: Writings | None = None) -> Scores:
        return tally([(case.fact.id, _outcomes(case, now, unedited)) for case in cases])

    def texts(self, case: Case, observed: Writings) -> list[tuple[str, Completion]]:
        return [(kind, observed[prompt, 0]) for kind, prompts in _prompts(case).items() for prompt in prompts]


def wild_forms(model: EditableModel) -> tuple[Form, ...]:
    """The forms that a model can be asked in: `chat` only where it has a chat template."""
    return tuple(form for form in FORMS if form != "chat" or model.tokenizer.chat_template)


def generation_tag(form: str, template: str, stop: Stop, top_k: int | None = None) -> dict[str, Any]:
    """What the protocol tag says of free generation."""
    return {
        "form": form,
        "template": template,
        "max_new_tokens": stop.max_new_tokens,
        "stops": list(stop.texts),
        "top_k": top_k,
    }


def _prompts(case: Case) -> dict[str, tuple[str, ...]]:
    return {"rewrite": (case.fact.text,), "paraphrase": case.paraphrases, "neighborhood": case.neighborhood}


def _outcomes(case: Case, now: Writings, unedited: Writings | None) -> dict[str, tuple[float, ...]]:
    prompts, found = _prompts(case), dict[str, tuple[float, ...]]()
    for kind, score in _KINDS:
        target = case.neighborhood_target if kind == "neighborhood" else case.fact.target
        if target is None or not prompts[kind]:
            continue
        for how in MATCHES:
            found[f"{score}_{how}"] = tuple(float(matches(now[prompt, 0].text, [target], how)) for prompt in prompts[kind])
    if unedited is not None and prompts["neighborhood"]:
        found["locality"] = tuple(
            float(now[prompt, 0].ids == unedited[prompt, 0].ids and now[prompt, 0].stopped == unedited[prompt, 0].stopped)
            for prompt in prompts["neighborhood"]
        )
    return found
