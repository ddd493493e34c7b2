"""Reference numbers of the published research code, replayed where `../shared/goldens` is at hand.

Two layers of proof. The closed form is checked on the reference's own keys and second moments, independent of any model. The
whole loop is replayed on the reference's model; that needs the very weights the reference was computed with, which is
looked at first: if the model folder holds others, the replay is skipped and says by how much they differ.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import metric_of
from safetensors.torch import load_file
from torch import Tensor

from bluedit.datasets import read_cases
from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.editors.closed_form.keys import fact_states
from bluedit.evaluation import score_cases
from bluedit.methods import METHODS
from bluedit.models import EditableModel, load_model
from bluedit.sessions import Session
from bluedit.statistics import SecondMoment, Statistics, read_corpus, second_moments
from bluedit.statistics.inverse import shrink

# Every run of the reference, `METHOD.STRATEGY`.
REPLAYED = (
    "memit.even",
    "memit.boundary",
    "memit-seq.boundary",
    "alphaedit.even",
    "alphaedit.boundary",
    "rect.even",
    "rect.boundary",
    "pmet.square-root",
    "pmet.boundary",
)
# Those whose change is R Q^T with a Q that the recorded keys determine. RECT's depends on the weights.
CLOSED_FORM = tuple(name for name in REPLAYED if not name.startswith("rect"))


class Goldens:
    """The reference's files, read once."""

    def __init__(self, shared: Path) -> None:
        document = json.loads((shared / "goldens" / "runs.json").read_text())
        self.runs: dict[str, Any] = document["runs"]
        self.templates: tuple[str, ...] = tuple(document["templates"])
        self.statistics: dict[str, Any] = document["second_moments"]
        self.tensors = load_file(shared / "goldens" / "runs.safetensors")
        moments = load_file(shared / "goldens" / "second_moments.safetensors")
        self.moments = {int(name.rsplit(".", 1)[1]): value.double() for name, value in moments.items()}


@pytest.fixture(scope="module")
def goldens(shared: Path) -> Goldens:
    return Goldens(shared)


@pytest.fixture(scope="module")
def model(shared: Path) -> EditableModel:
    return load_model(str(shared / "models" / "counterfact-gpt2-mini"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def same_weights(shared: Path, goldens: Goldens, model: EditableModel) -> None:
    """Skip unless the model makes the second moments that the reference took from it."""
    corpus = read_corpus(f"text:{shared / 'data' / 'text' / 'counterfact_mini_corpus.txt'}")
    # Documents were cut off at 128 tokens: that gives the reference's count of tokens.
    computed = second_moments(model, corpus.documents(goldens.statistics["lines"]), [0], max_length=128)[0]
    assert computed.tokens == goldens.statistics["tokens"]
    ours, theirs = shrink(computed.matrix_FF, goldens.statistics["shrinkage"]), goldens.moments[0]
    error = ((ours - theirs).norm() / theirs.norm()).item()
    if error > 1e-3:
        pytest.skip(f"the reference was computed with other weights: its second moment of layer 0 differs by {error:.0%}")


def float32_error(moment: SecondMoment, batches: Sequence[Tensor], rank: int, weight: float) -> float:
    """By how much, relative to its norm, a change of AlphaEdit differs where it is computed in float32, to first order.

    The reference decomposes C and solves (P K K^T + L2 I) X = P K, K being all keys so far, in float32 with unit roundoff u.

    - A backward stable decomposition is the exact one of C + E. In the eigenbasis the entries of E are about u |C|, and a
      direction i that is kept turns towards a direction j that is not by E_ij / (e_j - e_i), where e are the eigenvalues: few
      digits are left of directions close to the threshold, and as much of P K is wrong as the keys lie along such pairs.
    - The solution of a system is wrong by u times the system's condition number.
    """
    unit = torch.finfo(torch.float32).eps / 2
    values_F, vectors_FF = moment.eigenbasis
    keys_FN = torch.cat(list(batches), 1)
    along_F = (vectors_FF.T @ keys_FN).square().sum(1)
    gap_RF = values_F[None, rank:] - values_F[:rank, None]
    turned = ((along_F[:rank, None] + along_F[None, rank:]) / gap_RF**2).sum().sqrt() * unit * values_F[-1]
    projected_FN = vectors_FF[:, :rank] @ (vectors_FF[:, :rank].T @ keys_FN)
    system_FF = projected_FN @ keys_FN.T
    system_FF.diagonal().add_(weight)
    return (turned / along_F[:rank].sum().sqrt() + unit * torch.linalg.cond(system_FF)).item()


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_the_closed_form_gives_the_reference_changes(goldens: Goldens, name: str) -> None:
    """D P = R (Q^T P) for the recorded probe P: Q comes from recorded keys, and R is whatever fits best.

    With 32 probes and 10 facts a wrong Q cannot be fitted, and the norm of the fitted R Q^T must be the recorded one.
    """
    run, probe = goldens.runs[name], goldens.tensors["probe"].double()
    compared = 0
    for place, layer in enumerate(run["layers"]):
        moment = SecondMoment(goldens.moments[layer], 1)
        if run["L2"] is None:
            prior = metric_of(moment.matrix_FF, run["lambda"])
            compared += 1
        else:
            values, _ = moment.eigenbasis
            prior = InverseMetric.from_null_space(*moment.eigenbasis, run["L2"], threshold=run["nullspace_threshold"])
            assert prior.rank is not None
            if values[prior.rank] - values[prior.rank - 1] < 1e-6 * values[-1]:
                # Eigenvalues lie on both sides of the threshold closer together than the reference's float32 can tell
                # apart: which directions it took is a matter of its rounding.
                assert abs(prior.rank - run["null_space_rank"][place]) <= 1
                continue
            assert prior.rank == run["null_space_rank"][place]
            compared += 1
        past = name.startswith(("memit-seq", "alphaedit"))
        batches = [goldens.tensors[f"{name}.keys.batch{b}.{layer}"].T.double() for b in range(10 // run["batch_size"])]
        gains = []
        for keys in batches:
            gains.append(prior.gain(keys))
            if past:
                prior.absorb(keys)
        gain = torch.cat(gains, 1)
        expected = goldens.tensors[f"{name}.change_times_probe.{layer}"].double()
        residual = torch.linalg.lstsq((gain.T @ probe).T, expected.T).solution.T
        allowed = 1e-5
        if prior.rank is not None:
            allowed += float32_error(moment, batches, prior.rank, run["L2"])
            # It is no tolerance for another formula: without the projection Q spans the keys themselves.
            plain = torch.cat(batches, 1)
            fitted = torch.linalg.lstsq((plain.T @ probe).T, expected.T).solution.T @ plain.T @ probe
            assert (fitted - expected).norm() > 10 * allowed * expected.norm()
        assert (residual @ gain.T @ probe - expected).norm() <= allowed * expected.norm()
        assert (residual @ gain.T).norm().item() == pytest.approx(run["change_norm"][str(layer)], rel=1e-4)
    assert compared >= len(run["layers"]) - 1


@pytest.mark.usefixtures("same_weights")
def test_alphaedit_stores_the_reference_residuals(shared: Path, goldens: Goldens, model: EditableModel) -> None:
    """With R fitted, L2 and past keys could be anything. At the first layer of BLUE it is known: z - h, of the model itself."""
    name, layer = "alphaedit.boundary", 0
    run, moment = goldens.runs[name], SecondMoment(goldens.moments[0], 1)
    facts = [case.fact for case in read_cases(shared / "data" / "counterfact" / "counterfact_200.json", limit=10)]
    size, probe = run["batch_size"], goldens.tensors["probe"].double()
    batches = [goldens.tensors[f"{name}.keys.batch{b}.{layer}"].T.double() for b in range(len(facts) // size)]
    targets_ND = goldens.tensors[f"{name}.targets.{layer}"].double()
    expected = goldens.tensors[f"{name}.change_times_probe.{layer}"].double()
    rank = run["null_space_rank"][0]

    def error(weight: float, *, past: bool = True, projected: bool = True) -> float:
        prior = InverseMetric.from_null_space(*moment.eigenbasis, weight, threshold=run["nullspace_threshold"])
        if not projected:
            prior = InverseMetric(torch.eye(len(probe), dtype=torch.float64) / weight)
        total = torch.zeros_like(model.matrix(layer), dtype=torch.float64)
        with model.restoring([layer]):
            for number, keys in enumerate(batches):
                chosen = slice(number * size, (number + 1) * size)
                residual = targets_ND[chosen].T - fact_states(model, facts[chosen], layer)
                change = residual @ prior.gain(keys).T
                total += change
                model.matrix(layer).add_(change.float())
                if past:
                    prior.absorb(keys)
        return ((total @ probe - expected).norm() / expected.norm()).item()

    allowed = 1e-5 + float32_error(moment, batches, rank, run["L2"])
    assert error(run["L2"]) <= allowed
    assert error(1.1 * run["L2"]) > allowed
    assert error(1e-6 * run["L2"]) > 10 * allowed
    assert error(run["L2"], past=False) > 5 * allowed
    assert error(run["L2"], projected=False) > 10 * allowed


@pytest.mark.parametrize("name", REPLAYED)
@pytest.mark.usefixtures("same_weights")
def test_the_loop_replays_the_reference(shared: Path, goldens: Goldens, model: EditableModel, name: str) -> None:
    run, (method, _, strategy) = goldens.runs[name], name.partition(".")
    cases = read_cases(shared / "data" / "counterfact" / "counterfact_200.json", limit=10)
    names = (
        "v_lr",
        "clamp_norm_factor",
        "v_num_grad_steps",
        "kl_factor",
        "v_weight_decay",
        "lambda",
        "L2",
        "nullspace_threshold",
    )
    session = Session(
        model,
        method=METHODS[method],
        strategy=strategy,
        layers=(0, 1, 2),
        settings={key: run[key] for key in names if run[key] is not None and key in METHODS[method].uses},
        corpus=Statistics(precomputed={layer: SecondMoment(moment, 1) for layer, moment in goldens.moments.items()}),
        templates=goldens.templates,
    )
    for start in range(0, len(cases), run["batch_size"]):
        session.apply([case.fact for case in cases[start : start + run["batch_size"]]])
    patch, scores = session.finish(), score_cases(model, cases)
    session.undo(len(session))
    ids = [case.fact.id for case in cases]
    for record in patch.manifest.optimisation:
        expected = {str(case): count for layer, case, count, _ in run["evaluations"] if layer == record.layer}
        assert all(abs(count - expected[case]) <= 1 for case, count in zip(ids, record.evaluations, strict=True))
    for weight, record in patch.manifest.weights.items():
        ours = patch.changes[weight].dense() @ goldens.tensors["probe"]
        theirs = goldens.tensors[f"{name}.change_times_probe.{record.layer}"]
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()
        assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.999
        assert record.norm == pytest.approx(run["change_norm"][str(record.layer)], rel=1e-2)
    for key, value in run["scores"].items():
        assert scores[key].value == pytest.approx(value, abs=0.1), key
