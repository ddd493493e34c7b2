"""Second moments of keys, C = E[k k^T], for several layers in one pass over a text.

The uncentred second moment of the inputs of an MLP output projection stands for what the matrix already
stores (Meng et al. 2022, ROME, section 3.1; MEMIT eq. 15): an update is small in the metric C where the text has keys.

Shapes: B rows, T tokens, F d_ff.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bluedit.errors import NumericsError, StatisticsError
from bluedit.files import atomic_file
from bluedit.models import Batch, EditableModel, Row
from bluedit.models.editable import StopForward
from bluedit.solvers.shrinkage import shrink

__all__ = ["SecondMoment", "second_moments"]

_BATCH_TOKENS = 4096
_WINDOW_ROWS = 512


@dataclass(frozen=True)
class SecondMoment:
    """C of one layer (F x F, float64, symmetric) and how many tokens it is the mean over.

    - `basis_file`: where the eigenbasis is kept; only in memory when None.
    """

    matrix_FF: Tensor
    tokens: int
    basis_file: Path | None = None

    @cached_property
    def eigenbasis(self) -> tuple[Tensor, Tensor]:
        """C's eigenvalues (F,), rising, and eigenvectors (F x F, as columns), float64: computed once, then read from its file.

        Every threshold of a null space reads the same file. Cost: one eigendecomposition, O(F^3).
        """
        path = self.basis_file
        if path is not None and path.exists():
            try:
                with safe_open(path, "pt") as file:
                    return file.get_tensor("eigenvalues"), file.get_tensor("eigenvectors")
            except (SafetensorError, OSError) as error:
                raise StatisticsError(
                    f"the stored eigenbasis {path} cannot be read ({error}); remove it and run again"
                ) from error
        eigenvalues_F, eigenvectors_FF = torch.linalg.eigh(self.matrix_FF)
        if path is not None:
            tensors = {"eigenvalues": eigenvalues_F.cpu().contiguous(), "eigenvectors": eigenvectors_FF.cpu().contiguous()}
            with atomic_file(path) as temporary:
                save_file(tensors, temporary)
        return eigenvalues_F, eigenvectors_FF

    def condition_number(self, shrinkage: float = 0.0) -> float:
        """Largest over smallest eigenvalue, infinite when C is singular. Cost: one eigendecomposition, O(F^3)."""
        eigenvalues = torch.linalg.eigvalsh(shrink(self.matrix_FF, shrinkage))
        smallest, largest = eigenvalues[0].item(), eigenvalues[-1].item()
        return largest / smallest if smallest > 0 else float("inf")


def second_moments(
    model: EditableModel,
    texts: Iterable[str],
    layers: Sequence[int],
    *,
    max_length: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> dict[int, SecondMoment]:
    """E[k k^T] over every token of `texts`, for all `layers` in one pass that stops after the last of them.

    **Arguments**

    - `texts`: documents; each is one row, cut off at `max_length` tokens.
    - `max_length`: the model's context length when left out.
    - `progress`: called with the number of documents done, after each batch.

    **Returns** a moment per layer. Products are taken in float32 and summed in float64.

    **Raises** :class:`~bluedit.errors.StatisticsError` when there is no text,
    :class:`~bluedit.errors.NumericsError` when a key is not finite.

    **Cost** per token: a forward pass through `max(layers)` layers and F^2 multiply-adds per layer.
    """
    wanted = sorted(set(layers))
    length = max_length or model.context_length
    size = model.structure.d_ff
    totals = {layer: torch.zeros(size, size, dtype=torch.float64, device=model.weight(layer).device) for layer in wanted}
    tokens = 0
    with model.frozen(), torch.no_grad():
        for batch in _text_batches(model, texts, length):
            mask = batch.mask.bool()
            with contextlib.ExitStack() as stack:
                for layer in wanted:
                    stack.enter_context(model.hooked(layer, "key", _accumulate(totals[layer], mask, layer == wanted[-1])))
                stack.enter_context(contextlib.suppress(StopForward))
                model.forward(batch)
            tokens += int(mask.sum())
            if progress is not None:
                progress(len(batch.rows))
    if not tokens:
        raise StatisticsError("the corpus holds no text to take second moments over; give a file with one document per line")
    for layer, total in totals.items():
        if not torch.isfinite(total).all():
            raise NumericsError(f"keys of layer {layer} are not finite; load the model in float32 or bfloat16")
    return {layer: SecondMoment(total / tokens, tokens) for layer, total in totals.items()}


def _accumulate(total: Tensor, mask: Tensor, last: bool) -> Callable[[Tensor], None]:
    def add(hidden: Tensor) -> None:
        keys_TF = hidden[mask.to(hidden.device)].float()
        total.add_(keys_TF.T @ keys_TF)
        if last:
            raise StopForward

    return add


def _text_batches(model: EditableModel, texts: Iterable[str], length: int) -> Iterator[Batch]:
    """Batches of documents of similar length, from a window of the stream: little padding, bounded memory."""
    from itertools import islice

    from bluedit.models import batches

    stream = (text for text in texts if text.strip())
    while window := list(islice(stream, _WINDOW_ROWS)):
        rows = [Row(ids[:length]) for ids in model.text.prompts(window) if ids]
        yield from batches(rows, model.device, _BATCH_TOKENS)
