"""Where to start value optimisation: predicted from facts that were optimised before.

*Concept.* What has to be added to a hidden state to make a model say a target depends, to a good part linearly, on that state
and on the target's unembedding. A ridge regression on a hundred facts says it well enough to save half of the evaluations for
others.

    delta / ||h0|| = M x,    x = (h0 / ||h0||, u / ||u||, 1),    M = Y^T (X X^T + I)^-1 X

with u the unembedding of the target's first token, X the features and Y the relative deltas of the facts that were optimised.
The dual form is solved: as many unknowns as facts.

Shapes: D d_model, N facts, X features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bluedit.facts import Fact
from bluedit.models import EditableModel

__all__ = ["predict_deltas", "spread"]


def predict_deltas(
    model: EditableModel,
    optimised: Sequence[Fact],
    initial_DN: Tensor,
    delta_DN: Tensor,
    others: Sequence[Fact],
    initial_DM: Tensor,
) -> Tensor:
    """Deltas for other facts, (D, M), from those of optimised ones.

    **Arguments**

    - `initial_DN`, `delta_DN`: hidden states of the optimised facts before, and what was found for them.
    - `initial_DM`: hidden states of the others.

    **Cost** O(N^3 + N M D) for N optimised facts.
    """
    known_NX, new_MX = _features(model, optimised, initial_DN), _features(model, others, initial_DM)
    relative_ND = (delta_DN / initial_DN.norm(dim=0)).T.double()
    kernel_NN = known_NX @ known_NX.T
    kernel_NN.diagonal().add_(1.0)
    weights_ND = torch.cholesky_solve(relative_ND, torch.linalg.cholesky(kernel_NN))
    relative_MD = (new_MX @ known_NX.T) @ weights_ND
    return (relative_MD.T * initial_DM.norm(dim=0)).to(delta_DN)


def _features(model: EditableModel, facts: Sequence[Fact], initial_DN: Tensor) -> Tensor:
    head: Tensor = model.model.get_output_embeddings().weight.detach()  # type: ignore[union-attr, assignment]
    first = [model.text.target(fact.target, fact.text)[0] for fact in facts]
    parts = (initial_DN.T, head[torch.tensor(first, device=head.device)].to(initial_DN.device))
    units = [torch.nn.functional.normalize(part.double(), dim=1) for part in parts]
    return torch.cat([*units, torch.ones_like(units[0][:, :1])], 1)


def spread(count: int, total: int) -> list[int]:
    """`count` of `total` places, evenly: facts that lie side by side in a file are often alike."""
    return [place * total // count for place in range(count)]
