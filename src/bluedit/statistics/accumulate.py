"""A pass over a text that can be stopped at any block and resumed: it accumulates the second moments of several layers.

The state after a block is determined by the documents alone, so a pass that was interrupted ends with the same bits as one that
was not: totals are float64 and saved as they are, and blocks are formed again in the same order.

Shapes: B rows, T tokens, F d_ff, P probed keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice

import torch
from pydantic import BaseModel
from torch import Tensor

from bluedit.errors import NumericsError, StatisticsError
from bluedit.models import Batch, EditableModel, Row
from bluedit.models.editable import StopForward
from bluedit.statistics.batching import BLOCK_KEYS, Block, blocks, windows
from bluedit.statistics.convergence import PROBES, Point, is_due, measure
from bluedit.statistics.moments import SecondMoment

__all__ = ["Cursor", "Pass", "second_moments"]


class Cursor(BaseModel):
    """How far a pass has come.

    - `windows`, `documents`: how many windows of documents are done, and how many documents they held.
    - `blocks`, `block_documents`: how many blocks of the window after them are done, and how many documents they held.
    - `tokens`, `even_tokens`: keys added up, and how many of them are from documents with even numbers.
    - `padded`: tokens that the model ran on, padding counted in.
    - `curve`: the points measured, by layer.
    """

    windows: int = 0
    documents: int = 0
    blocks: int = 0
    block_documents: int = 0
    tokens: int = 0
    even_tokens: int = 0
    padded: int = 0
    curve: dict[int, list[Point]] = {}


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
    - `progress`: called with the number of documents done, after each block of them.

    **Returns** a moment per layer. Products are taken in float32 and summed in float64.

    **Raises** :class:`~bluedit.errors.StatisticsError` when there is no text,
    :class:`~bluedit.errors.NumericsError` when a key is not finite.

    **Cost** per token: a forward pass through `max(layers)` layers and F^2 multiply-adds per layer.
    """
    running = Pass(model, layers, max_length=max_length or model.context_length)
    running.run(texts, progress=progress)
    return running.moments()


class Pass:
    """Totals of k k^T for several layers, and how far they have come.

    **Arguments**

    - `layers`: whose keys are taken; the forward passes stop at the highest.
    - `max_length`: documents are truncated to this many tokens.
    - `measured`: keep a second total per layer, over every other document, and measure how well the moments have converged
      (:mod:`~bluedit.statistics.convergence`). The moments are the same bits with it or without.

    `cursor` says how far it has come; while `whole` is false something is half done, and the state is not one to resume from.

    Keys are multiplied in float32, a block of some thousands at a time, and the products are summed in float64.
    **Memory**: F^2 x 8 bytes per layer, twice as much when measured; see :meth:`memory`.
    """

    def __init__(self, model: EditableModel, layers: Sequence[int], *, max_length: int, measured: bool = False) -> None:
        self.model = model
        self.layers = tuple(sorted(set(layers)))
        self.max_length = max_length
        self.measured = measured
        self.whole = True
        self.cursor = Cursor(curve={layer: [] for layer in self.layers} if measured else {})
        self._totals = {layer: self._zeros(layer) for layer in self.layers}
        self._evens = {layer: self._zeros(layer) for layer in self.layers} if measured else {}
        self._probes = {layer: torch.zeros(0, model.structure.d_ff) for layer in self.layers} if measured else {}

    @staticmethod
    def memory(model: EditableModel, layers: Sequence[int], *, measured: bool) -> int:
        """The bytes a pass needs in addition to the model and its activations: totals, keys of one block, and one layer's
        product or measurement."""
        size, count = model.structure.d_ff, len(set(layers))
        totals, keys = count * (2 if measured else 1) * 8 * size**2, count * 4 * BLOCK_KEYS * size
        return totals + keys + (5 * 8 if measured else 4) * size**2

    def run(
        self,
        texts: Iterable[str],
        *,
        until: float | None = None,
        progress: Callable[[int], object] | None = None,
        after_block: Callable[[], object] | None = None,
    ) -> bool:
        """Go through the texts, from where the cursor stands to the end, or until all moments have converged: whether they
        had.

        **Arguments**

        - `texts`: the whole text again, also when the pass is resumed; what is done is skipped.
        - `until`: stop once the estimated relative error of an edit's change is not above this at any layer. Looked at after
          whole windows only: the result is that of a pass over that many documents.
        - `progress`: called with the number of documents done, after each block.
        - `after_block`: called when the state is whole and may be saved.

        **Raises** :class:`~bluedit.errors.StatisticsError` when there is no text,
        :class:`~bluedit.errors.NumericsError` when a key is not finite.
        """
        cursor = self.cursor
        if self._converged(until):
            return True
        for window in windows(texts, cursor.documents):
            rows = [Row(ids) for ids in self.model.text.documents(window, self.max_length)]
            for block in islice(blocks(rows), cursor.blocks, None):
                self._add(block)
                if after_block is not None:
                    after_block()
                if progress is not None:
                    progress(block.documents)
            self._close(len(window))
            if self._converged(until):
                return True
        if not cursor.tokens:
            raise StatisticsError(
                "the corpus holds no text to compute second moments over; give a file with one document per line"
            )
        if self.measured and not is_due(cursor.windows):
            self.whole = False
            self._measure()
        return False

    def moments(self) -> dict[int, SecondMoment]:
        """E[k k^T] of each layer over the keys so far. The totals become the moments: the pass is over then."""
        cursor = self.cursor
        self.whole = False
        return {
            layer: SecondMoment(
                total_FF.div_(cursor.tokens),
                cursor.tokens,
                documents=cursor.documents,
                curve=tuple(cursor.curve.get(layer, ())),
            )
            for layer, total_FF in self._totals.items()
        }

    # -- saving ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Everything but the cursor, as it is, for a file."""
        kinds = {"total": self._totals, "even": self._evens, "probes": self._probes}
        return {f"{kind}.{layer}": tensor.cpu() for kind, tensors in kinds.items() for layer, tensor in tensors.items()}

    def restore(self, cursor: Cursor, state: Mapping[str, Tensor]) -> None:
        """Resume from a state that :meth:`state` gave. **Raises** KeyError or RuntimeError for one of another shape."""
        for layer in self.layers:
            self._totals[layer].copy_(state[f"total.{layer}"])
            if self.measured:
                self._evens[layer].copy_(state[f"even.{layer}"])
                self._probes[layer] = state[f"probes.{layer}"]
        self.cursor = cursor

    # -- one block -------------------------------------------------------------------------------------------

    def _add(self, block: Block) -> None:
        # The two halves are multiplied apart also where nothing is measured: the sums should be the same bits.
        keys: dict[tuple[int, bool], list[Tensor]] = {(layer, even): [] for layer in self.layers for even in (True, False)}
        probes = dict(self._probes)
        with self.model.frozen(), torch.no_grad():
            for pairs in block.batches:
                self._forward([row for row, _ in pairs], torch.tensor([even for _, even in pairs]), keys, probes)
        self.whole = False  # until all layers have it
        self._probes = probes
        for layer, even in list(keys):
            keys_TF = torch.cat(keys.pop((layer, even)))
            product_FF = keys_TF.T @ keys_TF
            if not torch.isfinite(product_FF.diagonal()).all():
                raise NumericsError(f"keys of layer {layer} are not finite; load the model in float32 or bfloat16")
            self._totals[layer].add_(product_FF)
            if even and self.measured:
                self._evens[layer].add_(product_FF)
        self.cursor.blocks += 1
        self.cursor.block_documents += block.documents
        self.cursor.tokens += block.tokens
        self.cursor.even_tokens += sum(len(row.ids) for pairs in block.batches for row, even in pairs if even)
        self.cursor.padded += block.padded
        self.whole = True

    def _close(self, documents: int) -> None:
        """End a window, and measure after it if that is due."""
        cursor = self.cursor
        self.whole = False
        cursor.documents += documents
        cursor.windows += 1
        cursor.blocks = cursor.block_documents = 0
        if self.measured and is_due(cursor.windows):
            self._measure()
        self.whole = True

    def _forward(
        self,
        rows: Sequence[Row],
        even_B: Tensor,
        keys: Mapping[tuple[int, bool], list[Tensor]],
        probes: dict[int, Tensor],
    ) -> None:
        """Run one batch up to the last layer; put its keys (T, F) to those of its documents' half, and one per document to
        the probes (P, F) while there are few.
        """
        batch = Batch.of(rows, self.model.device)
        mask_BT = batch.mask.bool()
        masks = {even: mask_BT & (even_B == even).to(mask_BT.device)[:, None] for even in (True, False)}

        def keep(layer: int, hidden_BTF: Tensor) -> None:
            for even, half_BT in masks.items():
                keys[layer, even].append(hidden_BTF[half_BT.to(hidden_BTF.device)].float())
            if self.measured and len(probes[layer]) < PROBES:
                middle_B = mask_BT.sum(1).to(hidden_BTF.device) // 2
                chosen_PF = hidden_BTF[torch.arange(len(rows), device=hidden_BTF.device), middle_B].float().cpu()
                probes[layer] = torch.cat([probes[layer], chosen_PF])[:PROBES]
            if layer == self.layers[-1]:
                raise StopForward

        with contextlib.ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(self.model.hooked(layer, "key", partial(keep, layer)))
            stack.enter_context(contextlib.suppress(StopForward))
            self.model.forward(batch)

    # -- convergence -----------------------------------------------------------------------------------------

    def _converged(self, until: float | None) -> bool:
        """Whether it was measured where the cursor stands that no layer's error is above `until`."""
        cursor = self.cursor
        if until is None or cursor.blocks or not is_due(cursor.windows):
            return False
        last = [points[-1].change if points else None for points in cursor.curve.values()]
        return all(change is not None and change <= until for change in last)

    def _measure(self) -> None:
        cursor = self.cursor
        odd_tokens = cursor.tokens - cursor.even_tokens
        if not cursor.even_tokens or not odd_tokens:
            return
        for layer, points in cursor.curve.items():
            even_FF = self._evens[layer] / cursor.even_tokens
            odd_FF = (self._totals[layer] - self._evens[layer]).div_(odd_tokens)
            moment, change = measure(even_FF, odd_FF, self._probes[layer].T.to(even_FF))
            points.append(Point(documents=cursor.documents, tokens=cursor.tokens, moment=moment, change=change))

    def _zeros(self, layer: int) -> Tensor:
        size = self.model.structure.d_ff
        return torch.zeros(size, size, dtype=torch.float64, device=self.model.weight(layer).device)
