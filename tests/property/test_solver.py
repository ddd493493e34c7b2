"""The recursive update equals the textbook normal equations, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import dense_change, metric_of

from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.errors import NumericsError
from bluedit.statistics.inverse import shrink


def problem(size: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A second moment, keys and residuals; the residuals are manufactured by a true map."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(4 * size, size, generator=generator, dtype=torch.float64)
    keys = torch.randn(size, count, generator=generator, dtype=torch.float64)
    truth = torch.randn(size // 2 + 1, size, generator=generator, dtype=torch.float64)
    return samples.T @ samples / len(samples), keys, truth @ keys


@given(size=st.integers(2, 24), count=st.integers(1, 30), seed=st.integers(0, 10**6), weight=st.sampled_from([0.01, 1.0, 1e4]))
def test_one_batch_equals_the_dense_solution(size: int, count: int, seed: int, weight: float) -> None:
    moment, keys, residual = problem(size, count, seed)
    gain = metric_of(moment, weight).gain(keys)
    expected = dense_change(moment, weight, keys, residual)
    assert (residual @ gain.T - expected).norm() <= 1e-8 * expected.norm()


@given(seed=st.integers(0, 10**6), batches=st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_absorbed_keys_are_past_keys(seed: int, batches: list[int]) -> None:
    moment, keys, residual = problem(16, sum(batches) + 1, seed)
    prior = metric_of(moment, 3.0)
    start = 0
    for count in batches:
        batch = keys[:, start : start + count]
        prior.absorb(batch)
        start += count
    gain = prior.gain(keys[:, start:])
    expected = dense_change(moment, 3.0, keys[:, start:], residual[:, start:], past=keys[:, :start])
    assert (residual[:, start:] @ gain.T - expected).norm() <= 1e-8 * expected.norm()
    assert torch.equal(prior.matrix_FF, prior.matrix_FF.T)


def test_without_noise_residuals_are_met_exactly() -> None:
    moment, keys, residual = problem(20, 5, 0)
    gain = metric_of(moment, 1.0).gain(keys, noise=0.0)
    torch.testing.assert_close(residual @ gain.T @ keys, residual, rtol=1e-9, atol=1e-9)


def test_without_noise_alike_keys_are_refused_by_name() -> None:
    moment, keys, _ = problem(20, 5, 0)
    keys[:, 3] = keys[:, 1]
    with pytest.raises(NumericsError, match=r"'b' and 'd' nearly coincide"):
        metric_of(moment, 1.0).gain(keys, noise=0.0, names=tuple("abcde"))
    assert torch.isfinite(metric_of(moment, 1.0).gain(keys)).all()


def test_a_singular_moment_names_what_would_help_and_shrinkage_does() -> None:
    keys = torch.randn(8, 20, dtype=torch.float64)
    moment = keys.T @ keys / 8
    with pytest.raises(NumericsError, match=r"8 tokens leave directions of the 20.*at least 200 .*shrinkage"):
        metric_of(moment, 1.0, tokens=8)
    assert metric_of(moment, 1.0, shrinkage=0.1).condition < 1e4


@pytest.mark.parametrize(
    ("relative", "shrinkage", "advice"),
    [
        (False, 0.0, "raise nullspace_threshold, or count it in mean eigenvalues with nullspace_scale=relative"),
        (False, 0.1, "raise nullspace_threshold, or lower shrinkage, which lifts every eigenvalue"),
        (True, 0.0, "raise nullspace_threshold"),
        (True, 0.1, "raise nullspace_threshold, or lower shrinkage, which lifts every eigenvalue"),
    ],
)
def test_an_empty_null_space_is_refused_with_what_is_left_to_do(relative: bool, shrinkage: float, advice: str) -> None:
    values, vectors = torch.linalg.eigh(problem(12, 1, 1)[0])
    with pytest.raises(NumericsError) as caught:
        InverseMetric.from_null_space(values, vectors, 1.0, threshold=1e-9, relative=relative, shrinkage=shrinkage)
    message = str(caught.value)
    assert message.startswith("the null space of the keys is empty")
    assert message.endswith(f"none is below the threshold 1e-09; {advice}")


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
def test_shrinkage_keeps_the_trace_and_moves_eigenvalues_to_their_mean(amount: float) -> None:
    moment, _, _ = problem(12, 1, 1)
    before, after = torch.linalg.eigvalsh(moment), torch.linalg.eigvalsh(shrink(moment, amount))
    torch.testing.assert_close(after, (1 - amount) * before + amount * before.mean())
    torch.testing.assert_close(shrink(moment, amount).trace(), moment.trace())


def test_the_condition_number_is_right_to_two_digits() -> None:
    moment, _, _ = problem(30, 1, 2)
    assert metric_of(moment, 7.0).condition == pytest.approx(torch.linalg.cond(moment).item(), rel=0.02)
