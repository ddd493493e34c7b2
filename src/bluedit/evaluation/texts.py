"""Fluency and consistency of what a model writes about an edited subject (ROME, appendix; CounterFact's generation prompts).

    fluency      100 * mean over texts of (2/3 H_2 + 4/3 H_3) / 2,  H_n = - sum_g p_n(g) log2 p_n(g)
    consistency  100 * cos(tf-idf(texts, joined), tf-idf(reference texts for the relation and the new target, joined))

with p_n the frequencies of a text's word n-grams. Looping text has few different n-grams and a low fluency. A text is a prompt
with what the model wrote after it, up to 100 tokens, sampled from the 5 most likely. A word is a run of letters and digits, or
one other sign. The weights of words (idf) come from all reference texts.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bluedit.datasets.cases import Case
from bluedit.datasets.world import World
from bluedit.errors import BlueditError, DatasetError
from bluedit.evaluation.measures import Count, Writings, write
from bluedit.evaluation.scoring import Scores, tally
from bluedit.evaluation.wild import generation_tag
from bluedit.models import EditableModel
from bluedit.models.generation import Completion, Stop
from bluedit.models.respondent import Writer
from bluedit.storage.parsing import read_json, validation_problem

__all__ = ["ReferenceTexts", "TextQuality", "fluency", "read_references"]

_STOP = Stop(max_new_tokens=100)
_WORD = re.compile(r"\w+|[^\w\s]")


def fluency(text: str) -> float:
    """(2/3 H_2 + 4/3 H_3) / 2 of a text, in bits."""
    words = _WORD.findall(text)
    return (2 / 3 * _entropy(words, 2) + 4 / 3 * _entropy(words, 3)) / 2


def _entropy(words: Sequence[str], size: int) -> float:
    """The entropy in bits of the n-grams of so many words; 0 where there is none."""
    counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


class _Sample(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    text: str


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    relation_id: str
    target_id: str
    samples: tuple[_Sample, ...]


@dataclass(frozen=True)
class ReferenceTexts:
    """Texts about what holds a relation to an object, by (relation, object's id): what generated text should resemble."""

    texts: Mapping[tuple[str, str], tuple[str, ...]] = field(repr=False)

    @cached_property
    def _weights(self) -> Any:
        try:
            text: Any = importlib.import_module("sklearn.feature_extraction.text")
        except ImportError as error:
            raise BlueditError("consistency needs the package scikit-learn; pip install 'bluedit[scores]'") from error
        return text.TfidfVectorizer().fit([one for texts in self.texts.values() for one in texts])

    def of(self, case: Case) -> tuple[str, ...]:
        """The texts for a case's relation and new target; none where it does not say them, or there are none."""
        key = (case.fact.relation, case.extra.get("target_id"))
        return self.texts.get(cast("tuple[str, str]", key), ())

    def consistency(self, case: Case, texts: Iterable[str]) -> float | None:
        """The cosine of the texts with the reference texts of a case, in [0, 1]; None where there are none.

        **Raises** :class:`~bluedit.errors.BlueditError` where scikit-learn is missing.
        """
        references = self.of(case)
        if not references:
            return None
        vectors = self._weights.transform(["\n".join(texts), "\n".join(references)])
        # Rows have length 1, or 0 where no word of a text is known.
        return float((vectors[0] @ vectors[1].T).sum())


def read_references(source: str) -> ReferenceTexts:
    """Reference texts from a file in the schema of ROME's `attribute_snippets.json`, or those of the synthetic world.

    **Arguments**

    - `source`: a JSON list of objects with `relation_id`, `target_id` and `samples`, each with a `text`; or `world:SEED`.

    **Raises** :class:`~bluedit.errors.DatasetError` for a file that cannot be read, or holds something else.
    """
    if re.fullmatch(r"world(:[0-9]{1,18})?", source):
        document: Any = World(int(source.partition(":")[2] or 0)).reference_texts()
    else:
        try:
            document = read_json(Path(source))
        except OSError as error:
            raise DatasetError(source, [f"cannot be read: {error.strerror}"]) from error
        except ValueError as error:
            raise DatasetError(source, [f"is not JSON: {error}"]) from error
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(document)
    except ValidationError as error:
        raise DatasetError(source, [f"holds no reference texts: {validation_problem(error)}"]) from error
    texts: dict[tuple[str, str], tuple[str, ...]] = {}
    for entry in entries:
        key = (entry.relation_id, entry.target_id)
        texts[key] = texts.get(key, ()) + tuple(sample.text for sample in entry.samples if sample.text.strip())
    if not any(texts.values()):
        raise DatasetError(source, ["holds no reference texts; it should hold samples for relations and objects"])
    return ReferenceTexts({key: found for key, found in texts.items() if found})


@dataclass(frozen=True)
class TextQuality:
    """Fluency and consistency of sampled texts after the generation prompts of cases.

    **Arguments**

    - `references`: what consistency is measured against; it is absent without.
    - `seed`, `top_k`, `stop`: of the sampling.
    """

    references: ReferenceTexts | None = None
    seed: int = 0
    top_k: int = 5
    stop: Stop = _STOP
    name: str = "generation"

    @property
    def tag(self) -> Mapping[str, Any]:
        return {"scoring": ["generation"], "generation": generation_tag("continuation", "{}", self.stop, self.top_k)}

    def observe(self, model: EditableModel | Writer, cases: Sequence[Case], *, progress: Count | None = None) -> Writings:
        """**Raises** as :func:`~bluedit.models.generation.complete`."""
        prompts = [prompt for prompt, _ in dict.fromkeys(one for case in cases for one in _prompts(case))]
        return write(model, prompts, self.stop, top_k=self.top_k, seed=self.seed, progress=progress)

    def scores(self, cases: Sequence[Case], now: Writings, unedited: Writings | None = None) -> Scores:
        return tally([(case.fact.id, self._outcomes(case, now)) for case in cases])

    def texts(self, case: Case, observed: Writings) -> list[tuple[str, Completion]]:
        return [("generation", observed[key]) for key in _prompts(case)]

    def _outcomes(self, case: Case, now: Writings) -> dict[str, tuple[float, ...]]:
        texts = [prompt + now[prompt, occurrence].text for prompt, occurrence in _prompts(case)]
        if not texts:
            return {}
        found = {"fluency": tuple(map(fluency, texts))}
        likeness = None if self.references is None else self.references.consistency(case, texts)
        return found if likeness is None else {**found, "consistency": (likeness,)}


def _prompts(case: Case) -> list[tuple[str, int]]:
    """A case's generation prompts, each with how often it came before in the case: CounterFact asks some several times."""
    seen: Counter[str] = Counter()
    keys: list[tuple[str, int]] = []
    for prompt in case.generation:
        keys.append((prompt, seen[prompt]))
        seen[prompt] += 1
    return keys
