"""How likely a model finds texts after prompts: teacher-forced log-probabilities, and whether each token is the greedy one.

A prompt and a target make a query; all queries are answered together, in batches of like length, each distinct one once, and
targets of one prompt from the same row where they can be.

Shapes: T target tokens over a batch's rows, P positions whose logits are read, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from bluedit.errors import DatasetError, FactError, NumericsError, excerpt
from bluedit.models.editable import EditableModel
from bluedit.models.forward.prefix_sharing import Remainders, SharedBeginnings
from bluedit.models.generation import no_logits
from bluedit.models.memory.budget import TokenBudget, in_batches, plain_budget

__all__ = ["Answer", "Query", "answer_queries"]

Query = tuple[str, str]
"""A prompt, and a target after it."""

_CHUNK = 32
"""Batches whose common beginnings are cached at once."""


class Answer(NamedTuple):
    """How a model answers a prompt with a target, teacher forced.

    - `log_prob`: mean log-probability per target token, in nats.
    - `correct`: for each target token, whether it is the argmax.
    - `argmax`: for each target token, the id of the token that is.
    """

    log_prob: float
    correct: tuple[bool, ...]
    argmax: tuple[int, ...] = ()


def answer_queries(
    model: EditableModel,
    queries: Sequence[Query],
    *,
    share_prefixes: bool = True,
    token_budget: int | None = None,
    progress: Callable[[int], object] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[Query, Answer]:
    """Answer (prompt, target) pairs, each distinct one once.

    **Arguments**

    - `share_prefixes`: run what several prompts begin with in common once. That needs a model in which a token depends on the
      tokens before it alone. Say False where anything else counts: a hook that acts on some prompts, or that looks at whole
      rows. Every row then goes through all of the model, from its first token.
    - `token_budget`: padded tokens in one forward pass, at most; found from the memory there is when left out.
    - `progress`: called with the number of queries answered, after each batch.
    - `names`: what a prompt is called in messages, such as its case.

    **Raises** :class:`~bluedit.errors.DatasetError` for a prompt or target that is too long, and
    :class:`~bluedit.errors.NumericsError` naming the prompt after which the logits are not finite.

    **Cost**: one forward pass over each distinct prompt with all but the last token of a target, which targets of one token
    share, and over common beginnings of prompts once where they are shared; logits where a target token is predicted, once.
    """
    names = names or {}
    distinct = list(dict.fromkeys(queries))
    for query in distinct:
        for text in query:
            try:
                model.text.check_length(text)
            except FactError as error:
                raise DatasetError("evaluation", [f"{names.get(query[0], 'a query')}: {error}"]) from error
    rows = _shared_rows(model, distinct)
    longest = max(rows, key=lambda row: len(row.ids), default=None)
    if longest is not None and len(longest.ids) > model.context_length:
        prompt = next(iter(longest.answers))[0]
        where = f"{names[prompt]}: " if prompt in names else ""
        raise DatasetError(
            "evaluation",
            [
                f"{where}the prompt {excerpt(prompt)} takes {len(longest.ids)} tokens with its target; "
                f"the model takes {model.context_length}: shorten it"
            ],
        )
    answers: dict[Query, Answer] = {}
    budget = plain_budget(model) if token_budget is None else TokenBudget(token_budget)
    # Rows that begin alike are neighbours then; a chunk of them bounds what is cached of beginnings.
    rows.sort(key=lambda row: row.ids)
    with model.frozen(), torch.no_grad():
        for chunk in _chunks(rows, _CHUNK * budget.tokens):
            limits = [row.start if share_prefixes else 0 for row in chunk]
            beginnings = SharedBeginnings(model, [row.ids for row in chunk], limits, budget)
            rests = [len(row.ids) - length for row, length in zip(chunk, beginnings.lengths, strict=True)]

            def run(
                chosen: list[int], chunk: list[_SharedRow] = chunk, shared: SharedBeginnings = beginnings
            ) -> dict[Query, Answer]:
                return _answer(model, [chunk[index] for index in chosen], shared.remainders(chosen), narrow=share_prefixes)

            for _, found in in_batches(rests, budget, run):
                answers |= found
                if progress is not None:
                    progress(len(found))
    return answers


def _answer(model: EditableModel, rows: Sequence[_SharedRow], remainders: Remainders, *, narrow: bool) -> dict[Query, Answer]:
    """The answers that one batch of rows gives. `narrow`: run the last MLP only where logits are wanted."""
    before = remainders.lengths_B.tolist()
    # Every position that some target needs, once; and of each target's tokens the place among those.
    places = {
        place: index
        for index, place in enumerate(
            dict.fromkeys((number, position) for number, row in enumerate(rows) for position in row.positions)
        )
    }
    asked = [
        (places[number, row.start + offset], token)
        for number, row in enumerate(rows)
        for tokens in row.answers.values()
        for offset, token in enumerate(tokens)
    ]
    rows_P, positions_P = torch.tensor(
        [(number, position - before[number]) for number, position in places], device=model.device
    ).T
    places_T, tokens_T = torch.tensor(asked, device=model.device).T
    # A hook that tells rows apart would not find them in what the last MLP sees when it is narrowed.
    with model.head_at(rows_P, positions_P, last_mlp=narrow):
        log_probs_PV = remainders.run(model).squeeze(0).float().log_softmax(-1)
    log_probs_T = log_probs_PV[places_T, tokens_T].tolist()
    argmax_T = log_probs_PV.argmax(-1)[places_T]
    correct_T, likeliest_T = (argmax_T == tokens_T).tolist(), argmax_T.tolist()
    answers: dict[Query, Answer] = {}
    start = 0
    for query, tokens in (pair for row in rows for pair in row.answers.items()):
        end = start + len(tokens)
        if not all(map(math.isfinite, log_probs_T[start:end])):
            raise NumericsError(no_logits(query[0]))
        mean = sum(log_probs_T[start:end]) / len(tokens)
        answers[query] = Answer(mean, tuple(correct_T[start:end]), tuple(likeliest_T[start:end]))
        start = end
    return answers


def _chunks(rows: Sequence[_SharedRow], tokens: int) -> Iterator[list[_SharedRow]]:
    """The rows in order, in lists of at most so many tokens (or one row)."""
    chunk: list[_SharedRow] = []
    size = 0
    for row in rows:
        if chunk and size + len(row.ids) > tokens:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row.ids)
    if chunk:
        yield chunk


class _SharedRow(NamedTuple):
    """One row that answers several targets of one prompt: each but for its last token is a beginning of what follows the
    prompt.

    - `start`: the position whose logits predict a target's first token.
    - `answers`: the queries, with their targets' tokens.
    """

    ids: tuple[int, ...]
    start: int
    answers: dict[Query, tuple[int, ...]]

    @property
    def positions(self) -> range:
        """The positions whose logits are wanted."""
        return range(self.start, len(self.ids))


def _shared_rows(model: EditableModel, queries: Sequence[Query]) -> list[_SharedRow]:
    """As few rows as answer all queries: targets of one token need the prompt alone, whatever they are."""
    prompts = dict(zip(names := list(dict.fromkeys(prompt for prompt, _ in queries)), model.text.prompts(names), strict=True))
    targets = {(prompt, target): model.text.target(target, prompt) for prompt, target in queries}
    by_prompt: dict[str, list[_SharedRow]] = {}
    for prompt, target in sorted(queries, key=lambda query: -len(targets[query])):
        ids = prompts[prompt] + targets[prompt, target][:-1]
        rows = by_prompt.setdefault(prompt, [])
        # The longest targets come first: a row that serves is there already.
        row = next((one for one in rows if one.ids[: len(ids)] == ids), None)
        if row is None:
            row = _SharedRow(ids, len(prompts[prompt]) - 1, {})
            rows.append(row)
        row.answers[prompt, target] = targets[prompt, target]
    return [row for rows in by_prompt.values() for row in rows]
