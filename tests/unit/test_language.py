"""Perplexity, divergence and agreement on held-out text equal what full logits of both models give."""

from __future__ import annotations

import math

import pytest
import torch

from bluedit.errors import DatasetError
from bluedit.evaluation.intervals import pooled_share, share
from bluedit.evaluation.language import HeldOutText, TextScores, draw_rows
from bluedit.models import EditableModel


def edited(model: EditableModel, layer: int = 1, scale: float = 0.3) -> torch.Tensor:
    """A change to one layer's weight."""
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(model.weight(layer).shape, generator=generator)


def naive(before: list[torch.Tensor], after: list[torch.Tensor], rows: list[tuple[int, ...]]) -> dict[str, float]:
    """Token by token, from full logits of both models."""
    nll: list[float] = []
    old: list[float] = []
    kl: list[float] = []
    agreed: list[bool] = []
    for one, other, row in zip(before, after, rows, strict=True):
        for place, token in enumerate(row[1:]):
            p, q = one[place].double().softmax(-1), other[place].double().softmax(-1)
            old.append(-math.log(p[token]))
            nll.append(-math.log(q[token]))
            kl.append(float((p * (p.log() - q.log())).sum()))
            agreed.append(bool(p.argmax() == q.argmax()))
    count = len(nll)
    return {
        "perplexity": math.exp(sum(nll) / count),
        "perplexity_before": math.exp(sum(old) / count),
        "perplexity_change": 100 * math.expm1((sum(nll) - sum(old)) / count),
        "kl": sum(kl) / count,
        "top1": 100 * sum(agreed) / count,
    }


def logits(model: EditableModel, rows: list[tuple[int, ...]]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model.model(torch.tensor([row])).logits[0] for row in rows]


def test_scores_equal_those_of_full_logits(tiny_models: EditableModel, corpus_texts: list[str]) -> None:
    model = tiny_models
    rows = draw_rows(model, corpus_texts, 120)
    text = HeldOutText(model, rows, token_budget=64)
    before = logits(model, rows)
    with model.restoring([1]):
        with torch.no_grad():
            model.weight(1).add_(edited(model))
        found = text.scores(model)
        expected = naive(before, logits(model, rows), rows)
    assert found.tokens == text.tokens == 120
    assert found.documents == len(rows)
    for name, value in expected.items():
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert estimate.low <= estimate.value <= estimate.high
    assert expected["kl"] > 0.01


def test_an_unedited_model_has_no_divergence(tiny_gpt2: EditableModel, corpus_texts: list[str]) -> None:
    text = HeldOutText(tiny_gpt2, draw_rows(tiny_gpt2, corpus_texts, 60))
    found = text.scores(tiny_gpt2)
    assert found.kl.value == pytest.approx(0, abs=1e-6)
    assert found.perplexity_change.value == pytest.approx(0, abs=1e-4)
    assert found.perplexity == found.perplexity_before
    assert found.top1.value == 100
    assert found.top1.low < 100  # so many documents show no more


def test_two_predictions_by_hand() -> None:
    """Two tokens, p = (1/2, 1/4, 1/4) then (1, 0, 0) nearly, q uniform: KL and perplexity in closed form."""
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.full((3,), 1 / 3)
    found = naive([p.log()[None]], [q.log()[None]], [(0, 0)])
    assert found["kl"] == pytest.approx(0.5 * math.log(1.5) + 0.5 * math.log(0.75))
    assert found["perplexity"] == pytest.approx(3)
    assert found["perplexity_before"] == pytest.approx(2)
    assert found["perplexity_change"] == pytest.approx(50)


def test_rows_hold_as_many_tokens_as_asked(tiny_gpt2: EditableModel, corpus_texts: list[str]) -> None:
    rows = draw_rows(tiny_gpt2, corpus_texts, 100)
    assert sum(len(row) - 1 for row in rows) == 100
    assert rows == draw_rows(tiny_gpt2, corpus_texts, 100)
    assert rows[:-1] == draw_rows(tiny_gpt2, corpus_texts, 200)[: len(rows) - 1]
    assert max(map(len, draw_rows(tiny_gpt2, corpus_texts, 100, longest=5))) == 5
    whole = draw_rows(tiny_gpt2, corpus_texts[:4], 10_000)
    assert len(whole) == 4


def test_text_without_two_tokens_is_refused(tiny_gpt2: EditableModel) -> None:
    with pytest.raises(DatasetError, match="two tokens"):
        draw_rows(tiny_gpt2, ["", "  "], 10)


def test_intervals_count_documents_not_tokens(tiny_gpt2: EditableModel, corpus_texts: list[str]) -> None:
    # Outcomes of one document are alike: no more is known than from one token each.
    hits, counts = [10.0, 0.0, 10.0, 10.0], [10, 10, 10, 10]
    pooled = pooled_share(hits, counts)
    assert (pooled.value, pooled.n) == (75.0, 4)
    assert pooled.low == pytest.approx(share([[1.0], [0.0], [1.0], [1.0]]).low)
    # Unlike clusters weigh by what they hold.
    assert pooled_share([1, 0], [1, 3]).value == 25.0


def test_scores_as_json(tiny_gpt2: EditableModel, corpus_texts: list[str]) -> None:
    found = HeldOutText(tiny_gpt2, draw_rows(tiny_gpt2, corpus_texts, 30)).scores(tiny_gpt2)
    document = found.as_dict()
    assert document["tokens"] == 30
    assert set(document) == {"documents", "tokens", *(name for name in vars(found) if name not in ("documents", "tokens"))}
    assert set(document["kl"]) == {"value", "low", "high", "n"}
    assert isinstance(found, TextScores)
