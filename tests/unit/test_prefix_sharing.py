"""Rows that begin alike, and budgets of tokens: fewer tokens are run, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bluedit.errors import ResourceError
from bluedit.models import Batch, EditableModel, Row
from bluedit.models.forward.prefix_sharing import SharedBeginnings, common_beginnings
from bluedit.models.likelihood import answer_queries
from bluedit.models.memory import budget as budgets
from bluedit.models.memory.budget import TokenBudget, gradient_budget, in_batches, plain_budget

TEXTS = (
    "The mother tongue of Ezl is",
    "The mother tongue of Kvel & Co is",
    "The mother tongue of Kvel & Co was",
    "The mother of the person",
    "Zhara Vrelk was born in the town of",
    "x",
)


def _run(rows: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> int:
    """How many tokens are run."""
    beginnings = {row[:length] for row, length in zip(rows, lengths, strict=True) if length}
    return sum(len(row) for row in rows) - sum(lengths) + sum(map(len, beginnings))


def _fewest(rows: Sequence[tuple[int, ...]], limits: Sequence[int]) -> int:
    """The same for the best choice of groups, by trying where to split the sorted rows."""
    order = sorted(range(len(rows)), key=lambda index: rows[index][: limits[index]])
    cut = [rows[index][: limits[index]] for index in order]

    def common(start: int, end: int) -> int:
        return next(
            length
            for length in range(min(map(len, cut[start:end])), -1, -1)
            if len({one[:length] for one in cut[start:end]}) == 1
        )

    best = [0]
    for end in range(1, len(cut) + 1):
        best.append(
            max(
                best[start] + ((end - start - 1) * shared if (shared := common(start, end)) >= 3 else 0) for start in range(end)
            )
        )
    return sum(len(row) for row in rows) - best[-1]


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=7), st.integers(0, 7)), max_size=9))
def test_common_beginnings_leave_the_fewest_tokens_to_run(drawn: list[tuple[list[int], int]]) -> None:
    rows = [tuple(ids) for ids, _ in drawn]
    limits = [min(limit, len(ids)) for ids, limit in drawn]
    lengths = common_beginnings(rows, limits)
    assert all(length <= limit for length, limit in zip(lengths, limits, strict=True))
    assert _run(rows, lengths) == _fewest(rows, limits)


def test_a_chain_of_a_thousand_nested_rows_is_no_deeper_than_any_other() -> None:
    rows = [(0,) * length for length in range(1, 1500)]
    lengths = common_beginnings(rows, [len(row) for row in rows])
    assert _run(rows, lengths) < sum(map(len, rows)) / 1.5


@torch.no_grad()
def test_remainders_give_the_logits_of_whole_rows(tiny_models: EditableModel) -> None:
    rows = tiny_models.text.prompts(TEXTS)
    shared = SharedBeginnings(tiny_models, rows, [len(row) - 1 for row in rows], TokenBudget(16))
    assert max(shared.lengths) >= 3, "nothing was shared, and nothing is shown"
    assert min(shared.lengths) == 0, "every row shares, and the mask is not seen at work"
    chosen = [3, 0, 5, 2, 1, 4]
    remainders = shared.remainders(chosen)
    assert int(remainders.mask[:, -remainders.ids.shape[1] :].sum()) == sum(map(len, rows)) - sum(shared.lengths)
    found = remainders.run(tiny_models)
    for place, index in enumerate(chosen):
        whole = tiny_models.forward(Batch.of([Row(rows[index])], "cpu"))[0]
        before = shared.lengths[index]
        torch.testing.assert_close(found[place, : len(rows[index]) - before], whole[before:], atol=2e-5, rtol=1e-5)


def test_rows_that_share_nothing_are_run_whole(tiny_gpt2: EditableModel) -> None:
    rows = tiny_gpt2.text.prompts(["x", "The mother", "Zhara"])
    shared = SharedBeginnings(tiny_gpt2, rows, [len(row) - 1 for row in rows], TokenBudget(16))
    assert shared.lengths == [0, 0, 0]
    assert shared.remainders([0, 1, 2]).mask.shape[1] == max(map(len, rows))


def test_a_model_that_is_not_told_positions_runs_whole_rows(tiny_gpt2: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny_gpt2.text.prompts(TEXTS)
    monkeypatch.setattr(type(tiny_gpt2.model), "_is_stateful", True)
    model = EditableModel(tiny_gpt2.model, tiny_gpt2.tokenizer)
    assert not any(SharedBeginnings(model, rows, [len(row) - 1 for row in rows], TokenBudget(16)).lengths)


# -- budgets -------------------------------------------------------------------------------------------------------


def test_batches_keep_to_their_budget_longest_first() -> None:
    lengths = [3, 9, 1, 9, 4, 40, 2]
    done = [chosen for chosen, _ in in_batches(lengths, TokenBudget(20), lambda chosen: None)]
    assert sorted(index for chosen in done for index in chosen) == list(range(7))
    assert done[0] == [5], "a row above the budget goes alone"
    assert all(max(lengths[index] for index in chosen) * len(chosen) <= 20 for chosen in done[1:])
    longest = [lengths[chosen[0]] for chosen in done]
    assert all(one >= other for one, other in pairwise(longest))
    given_order = [chosen for chosen, _ in in_batches(lengths, TokenBudget(20), lambda chosen: None, order=range(7))]
    assert [index for chosen in given_order for index in chosen] == list(range(7))


def too_much() -> Exception:
    """What the CPU's allocator raises: more than any address space holds."""
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), too_much()])
def test_a_batch_that_runs_out_of_memory_is_halved_and_nothing_is_lost(kind: Exception) -> None:
    ran: list[int] = []

    def run(chosen: list[int]) -> int:
        if len(chosen) > 3:
            raise kind
        ran.extend(chosen)
        return len(chosen)

    budget = TokenBudget(100)
    results = list(in_batches([5] * 17, budget, run))
    assert sorted(ran) == list(range(17))
    assert sum(result for _, result in results) == 17
    assert budget.tokens <= 15


def test_an_error_that_says_nothing_is_named() -> None:
    def run(chosen: list[int]) -> None:
        raise MemoryError

    with pytest.raises(ResourceError, match=r"a single row of 5 tokens \(MemoryError\)"):
        list(in_batches([5], TokenBudget(100), run))


def test_a_single_row_that_runs_out_of_memory_is_an_error_with_a_fix() -> None:
    def run(chosen: list[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")

    with pytest.raises(ResourceError, match=r"a single row of 5 tokens .*1 GiB\).*bfloat16"):
        list(in_batches([5, 5], TokenBudget(100), run))


def test_other_errors_pass_through_budgets() -> None:
    def run(chosen: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches([5], TokenBudget(100), run))


def test_queries_are_answered_alike_whatever_the_budget(tiny_models: EditableModel) -> None:
    queries = [(text, target) for text in TEXTS for target in ("Rome", "a gardener of the town", "a gardener", "Rome and Rome")]
    plain = answer_queries(tiny_models, queries)
    for tokens in (1, 13, 100):
        seen: list[int] = []
        found = answer_queries(tiny_models, queries, token_budget=tokens, progress=seen.append)
        assert sum(seen) == len(queries)
        for query in queries:
            assert found[query].correct == plain[query].correct
            assert found[query].log_prob == pytest.approx(plain[query].log_prob, abs=1e-4)


def test_a_budget_follows_the_memory_that_is_free(tiny_gpt2: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain_budget(tiny_gpt2).tokens > gradient_budget(tiny_gpt2, 0).tokens > 1
    monkeypatch.setattr(type(tiny_gpt2), "device", torch.device("cuda:0"))
    monkeypatch.setattr(budgets.torch.cuda, "memory_reserved", lambda _: 30_000)
    monkeypatch.setattr(budgets.torch.cuda, "memory_allocated", lambda _: 10_000)
    found = []
    for free in (1_000_000, 10_000_000, 10**15):
        monkeypatch.setattr(budgets.torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        found.append([gradient_budget(tiny_gpt2, layer).tokens for layer in (0, 3)])
    # Three layers above layer 0, each of 12 x 32 + 6 x 48 numbers of 4 bytes; half of the memory is taken.
    assert found[0][0] == int(0.5 * 1_020_000 / (3 * (12 * 32 + 6 * 48) * 4))
    assert found[0][0] < found[0][1]
    assert found[0][0] < found[1][0] < found[2][0] == found[2][1], "a budget is bounded, however much is free"
