"""Rows that begin alike: the tokens they have in common are run once.

*Concept.* Prompts about like things begin alike ("The mother tongue of ..."), every fact is put into the same few contexts,
and targets of one prompt share all of it. A decoder does not look right, so keys and values of common first tokens are the
same in all rows.

*Mechanism.* Rows are sorted by their tokens, so that those that begin alike are neighbours; each common beginning is run
once, and its keys and values are the cache that a row's remaining tokens are run on. Beginnings of unlike lengths are
aligned at their ends, next to the tokens that follow, and what is left free before them is masked.

Shapes: B rows, P longest common beginning, T longest remainder, H heads, K their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from bluedit.models.editable import EditableModel
from bluedit.models.inputs.tokens import Batch, Row
from bluedit.models.memory.budget import TokenBudget, in_batches

__all__ = ["Remainders", "SharedBeginnings", "common_beginnings"]

_LEAST = 3
"""A beginning shorter than this is run again sooner than it is fetched."""


def common_beginnings(rows: Sequence[tuple[int, ...]], limits: Sequence[int]) -> list[int]:
    """How many of each row's first tokens, at most `limits`, to run once for all rows that begin with them.

    0 where nothing is gained. Of all ways to put rows into groups, each with one beginning, this is the one that leaves the
    fewest tokens to run: neighbours in sorted order with L tokens in common are a node of a tree, which n rows share for a
    gain of (n - 1) L tokens, or leave to its children if those gain more. O(n log n) comparisons.
    """
    order = sorted(range(len(rows)), key=lambda index: rows[index][: limits[index]])
    beginnings = [rows[index][: limits[index]] for index in order]
    lengths = [0] * len(rows)
    open_nodes: list[_Node] = []
    for place, beginning in enumerate(beginnings):
        following = beginnings[place + 1] if place + 1 < len(order) else ()
        common = next(
            (at for at, pair in enumerate(zip(beginning, following, strict=False)) if pair[0] != pair[1]),
            min(len(beginning), len(following)),
        )
        inner = _Node(common, place)
        while open_nodes and open_nodes[-1].common > common:
            node = open_nodes.pop()
            node.take(inner)
            gain = (place - node.start) * node.common
            whole = node.common >= _LEAST and gain >= node.gain
            inner = _Node(common, node.start, gain, [node.closed(place + 1)]) if whole else node.renamed(common)
        if open_nodes and open_nodes[-1].common == common:
            open_nodes[-1].take(inner)
        else:
            open_nodes.append(inner)
    for node in open_nodes:
        for start, end, common in node.groups:
            for place in range(start, end):
                lengths[order[place]] = common
    return lengths


@dataclass
class _Node:
    """Neighbours from `start` on with `common` tokens in common, and the groups in them that gain most."""

    common: int
    start: int
    gain: int = 0
    groups: list[tuple[int, int, int]] = field(default_factory=list)

    def take(self, inner: _Node) -> None:
        self.gain += inner.gain
        self.groups += inner.groups

    def closed(self, end: int) -> tuple[int, int, int]:
        return self.start, end, self.common

    def renamed(self, common: int) -> _Node:
        return _Node(common, self.start, self.gain, self.groups)


@dataclass(frozen=True)
class Remainders:
    """What is left of rows after their common beginnings, ready to be run.

    - `ids`, `positions`: (B, T), padded on the right.
    - `mask`: (B, P + T), 1 where a token is real.
    - `lengths_B`: how many tokens of each row are in the cache; they end at column P.
    - `cache`: keys and values of the beginnings, (B, H, P, K) a layer; None where P = 0.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    lengths_B: Tensor
    cache: DynamicCache | None

    @property
    def shared(self) -> int:
        """P."""
        return self.mask.shape[1] - self.ids.shape[1]

    def run(self, model: EditableModel, cache: DynamicCache | None = None) -> Tensor:
        """One forward pass; the logits, (B, T, V) unless :meth:`EditableModel.head_at` narrows them.

        Adds keys and values of the remaining tokens to the cache; where rows share nothing, to `cache`, if there is one.
        """
        if self.cache is None:
            kept = {"past_key_values": cache, "use_cache": cache is not None}
        else:
            kept = {"past_key_values": self.cache, "use_cache": True, "position_ids": self.positions}
        return model.model(input_ids=self.ids, attention_mask=self.mask, **kept).logits


class SharedBeginnings:
    """Common beginnings of rows, run once; none where rows have none, or where the model cannot continue from a cache.

    **Arguments**

    - `limits`: at most this many first tokens of each row are taken for common.
    - `budget`: padded tokens in one pass.

    **Attributes**

    - `lengths`: of each row, the number of its tokens that were run here.
    """

    def __init__(
        self, model: EditableModel, rows: Sequence[tuple[int, ...]], limits: Sequence[int], budget: TokenBudget
    ) -> None:
        self._model = model
        self._rows = tuple(rows)
        self.lengths = common_beginnings(rows, limits) if model.takes_positions and model.caches_keys else [0] * len(rows)
        distinct = {row[:length]: 0 for row, length in zip(rows, self.lengths, strict=True) if length}
        self._layers: list[tuple[Tensor, Tensor]] = []
        if distinct:
            self._run(distinct, budget)
        self._offsets = [distinct.get(row[:length], 0) for row, length in zip(rows, self.lengths, strict=True)]

    @torch.no_grad()
    def _run(self, distinct: dict[tuple[int, ...], int], budget: TokenBudget) -> None:
        """Fill the keys and values, tokens of all beginnings in one row, and where each beginning starts."""
        model, names, total = self._model, list(distinct), 0
        nowhere = torch.zeros(0, dtype=torch.long, device=model.device)

        def run(chosen: list[int]) -> list[tuple[Tensor, Tensor]]:
            batch = Batch.of([Row(names[index]) for index in chosen], model.device)
            cache, real = DynamicCache(), batch.mask.bool()
            with model.head_at(nowhere, nowhere, last_mlp=True):
                model.model(input_ids=batch.ids, attention_mask=batch.mask, past_key_values=cache, use_cache=True)
            return [(_flat(layer.keys, real), _flat(layer.values, real)) for layer in cache.layers]  # type: ignore[arg-type]

        parts: list[list[tuple[Tensor, Tensor]]] = []
        for chosen, part in in_batches([len(name) for name in names], budget, run):
            parts.append(part)
            for index in chosen:
                distinct[names[index]] = total
                total += len(names[index])
        self._layers = [
            (torch.cat([part[layer][0] for part in parts]), torch.cat([part[layer][1] for part in parts]))
            for layer in range(len(parts[0]))
        ]

    def remainders(self, chosen: Sequence[int]) -> Remainders:
        """The rest of some rows, in this order, with the cache that they are run on."""
        device = self._model.device
        lengths = [self.lengths[index] for index in chosen]
        shared, rest = max(lengths), max(len(self._rows[index]) - self.lengths[index] for index in chosen)
        ids = torch.zeros(len(chosen), rest, dtype=torch.long)
        mask = torch.zeros(len(chosen), shared + rest, dtype=torch.long)
        for place, index in enumerate(chosen):
            tail = self._rows[index][self.lengths[index] :]
            ids[place, : len(tail)] = torch.tensor(tail)
            mask[place, shared - self.lengths[index] : shared + len(tail)] = 1
        lengths_B = torch.tensor(lengths)
        last_B = torch.tensor([len(self._rows[index]) - 1 for index in chosen])
        positions = torch.minimum(lengths_B[:, None] + torch.arange(rest), last_B[:, None])
        # Columns before a shorter beginning are masked; what stands there does not matter.
        tokens_BP = (torch.arange(shared) - shared + lengths_B[:, None]).clamp_min(0)
        tokens_BP += torch.tensor([self._offsets[index] for index in chosen])[:, None]
        cache = DynamicCache() if shared else None
        if cache is not None:
            for layer, pair in enumerate(self._layers):
                keys, values = (part[tokens_BP.to(part.device)].transpose(1, 2) for part in pair)
                cache.update(keys, values, layer)
        return Remainders(ids.to(device), positions.to(device), mask.to(device), lengths_B.to(device), cache)


def _flat(part_BHTK: Tensor, real_BT: Tensor) -> Tensor:
    """Keys or values of all real tokens, (tokens, H, K)."""
    return part_BHTK.transpose(1, 2)[real_BT.to(part_BHTK.device)]
