"""What follows from an edit, asked in free generation: MQuAKE's chains, RippleEdits' tests, UnKEBench's long answers.

- MQuAKE (EMNLP 2023): `multi_hop`, any of the questions about the chain is answered with the new answer or an alias;
  `edit_wise`, every edited hop by itself; `instance_wise`, all single hops of an instance are right. The questions come after
  an instruction, or after examples of the user's. An answer is right where it begins with the name.
- RippleEdits (TACL 2024): six groups of tests. A test is left out where its conditions do not hold in the unedited model, or
  the edit did not take; it passes where its queries hold, any or all of them. A query holds where the text names everything
  that is asked for. The limit is 30 tokens beyond the prompt; the published code counts 30 characters, and finds names in
  prompts, too.
- UnKEBench (arXiv 2405.15349): `original_BLEU`, `original_ROUGE-1`, ... of long answers, the same on paraphrases, and
  `sub_question_ROUGE-L` of short ones.

An example counts with the mean over its tests that were not left out; one with none is absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bluedit.datasets.cases import Case, FollowUp, Question
from bluedit.evaluation.matching import Match, matches
from bluedit.evaluation.measures import Count, Writings, write
from bluedit.evaluation.overlap import bleu, rouge_l_recall, rouge_recall, words
from bluedit.evaluation.scoring import Scores, tally
from bluedit.evaluation.wild import INSTRUCTION, generation_tag
from bluedit.models import EditableModel
from bluedit.models.generation import Completion, Stop
from bluedit.models.respondent import Writer

__all__ = ["FollowUps", "asks_follow_ups"]

_STOPS = {
    "start": Stop(max_new_tokens=50, texts=("\n",)),
    "contains": Stop(max_new_tokens=30),
    "overlap": Stop(max_new_tokens=256),
}
"""When a text ends, by how it is scored."""


def asks_follow_ups(cases: Sequence[Case]) -> bool:
    """Whether cases ask something that is answered in free generation."""
    return any(follow_up.scoring in _STOPS for case in cases for follow_up in case.follow_ups)


@dataclass(frozen=True)
class FollowUps:
    """The follow-ups of cases that are answered in free, greedy generation.

    **Arguments**

    - `examples`: text to put before each question of MQuAKE and UnKEBench, such as the published few-shot examples; it is
      followed by `Q: ...` and `A:` on lines of their own. An instruction when left out.
    - `max_new_tokens`: in place of each data set's own limit.
    """

    examples: str | None = None
    max_new_tokens: int | None = None
    name: str = "follow-ups"

    @property
    def tag(self) -> Mapping[str, Any]:
        kinds = {how: generation_tag("question" if how == "contains" else "instruction", self._template(how), self._stop(how))
                 for how in _STOPS}  # fmt: skip
        return {"scoring": ["follow-ups"], "follow_ups": kinds}

    def observe(self, model: EditableModel | Writer, cases: Sequence[Case], *, progress: Count | None = None) -> Writings:
        """**Raises** as :func:`~bluedit.models.generation.complete`."""
        written: dict[tuple[str, int], Completion] = {}
        for how in _STOPS:
            prompts = [key for case in cases for one, key in _asked(case) if one == how]

            def form(prompt: str, how: str = how) -> str:
                return self._template(how).replace("{}", prompt)

            found = write(model, prompts, self._stop(how), form=form, progress=progress)
            written |= {(f"{how}:{prompt}", 0): text for (prompt, _), text in found.items()}
        return written

    def scores(self, cases: Sequence[Case], now: Writings, unedited: Writings | None = None) -> Scores:
        """RippleEdits' conditions are looked up in what the unedited model wrote; without, in what this one did."""
        return tally([(case.fact.id, _outcomes(case, now, now if unedited is None else unedited)) for case in cases])

    def texts(self, case: Case, observed: Writings) -> list[tuple[str, Completion]]:
        found: list[tuple[str, Completion]] = []
        for follow_up in case.follow_ups:
            if follow_up.scoring in _STOPS:
                asked = [(follow_up.name, one) for one in follow_up.questions]
                asked += [(f"{follow_up.name} condition", one) for one in follow_up.conditions]
                found += [(kind, observed[f"{follow_up.scoring}:{one.prompt}", 0]) for kind, one in asked]
        return found

    def _stop(self, how: str) -> Stop:
        stop = _STOPS[how]
        return stop if self.max_new_tokens is None else replace(stop, max_new_tokens=self.max_new_tokens)

    def _template(self, how: str) -> str:
        if how == "contains":
            return "{}"
        return INSTRUCTION if self.examples is None else f"{self.examples.rstrip()}\n\nQ: {{}}\nA:"


def _asked(case: Case) -> Iterator[tuple[str, str]]:
    """How each prompt of a case is scored, and the prompt."""
    for follow_up in case.follow_ups:
        if follow_up.scoring in _STOPS:
            yield from ((follow_up.scoring, one.prompt) for one in (*follow_up.questions, *follow_up.conditions))
            if follow_up.after_edit:
                yield follow_up.scoring, case.fact.text


def _outcomes(case: Case, now: Writings, unedited: Writings) -> dict[str, tuple[float, ...]]:
    found: dict[str, list[float]] = {}
    for follow_up in case.follow_ups:
        if follow_up.scoring == "overlap":
            for name, value in _overlaps(follow_up, now):
                found.setdefault(name, []).append(value)
        elif follow_up.scoring in ("start", "contains") and _counts(case, follow_up, now, unedited):
            held = [_holds(one, follow_up.scoring, now) for one in follow_up.questions]
            passed = any(held) if follow_up.need == "any" else all(held)
            found.setdefault(follow_up.name, []).append(float(passed))
    return {name: tuple(values) for name, values in found.items()}


def _counts(case: Case, follow_up: FollowUp, now: Writings, unedited: Writings) -> bool:
    """Whether a test is not left out."""
    edit = Question(case.fact.text, ((case.fact.target,),))
    took = not follow_up.after_edit or _holds(edit, follow_up.scoring, now)
    return took and all(_holds(one, follow_up.scoring, unedited) for one in follow_up.conditions)


def _holds(question: Question, how: str, written: Writings) -> bool:
    text = written[f"{how}:{question.prompt}", 0].text
    match: Match = "start" if how == "start" else "contains"
    # That a text must not repeat itself is a rule of WILD's, and of none of these data sets.
    return all(matches(text, names, match, repeating=True) for names in question.answers)


def _overlaps(follow_up: FollowUp, now: Writings) -> Iterator[tuple[str, float]]:
    """BLEU and ROUGE of one long answer; of a short one, ROUGE-L."""
    (question,) = follow_up.questions
    answer, text = question.answers[0][0], now[f"overlap:{question.prompt}", 0].text.strip()
    reference, said = words(answer), words(text)
    values = {"ROUGE-L": rouge_l_recall(reference, said)}
    if follow_up.name != "sub_question":
        values |= {"BLEU": bleu(reference, said), "BLEU-letters": bleu(list(answer), list(text))}
        values |= {f"ROUGE-{size}": rouge_recall(reference, said, size) for size in (1, 2)}
    yield from ((f"{follow_up.name}_{name}", value) for name, value in sorted(values.items()) if value is not None)
