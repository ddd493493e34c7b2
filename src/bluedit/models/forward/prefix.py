"""Forward passes that rerun only what a change at one layer and one token can reach.

*Concept.* When a hidden state is changed at layer l and at the subject's last token, nothing changes in the tokens before
it (a decoder does not look right) nor in the layers up to l. Value optimisation evaluates such a change dozens of times.

*Mechanism.* One plain pass stores, for every row, the keys and values of the tokens before the subject's last one, and
the output of layer l from there on. Afterwards the model is run with those keys and values as its cache, on the
remaining tokens alone, with the layers up to l replaced by the stored output. Only public parts of a transformers
model are used (its cache, its attention mask, its position ids), so whatever an architecture does with positions stays its own.
Where that cannot be (a layer remembers more than keys and values, or takes them from another layer; tokens cannot be told
their position), whole rows are run through all layers, and the stored output takes the place of the layer's own.

Shapes: B rows, P longest prefix, S longest suffix, D d_model, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bluedit.models.editable import Component, EditableModel
from bluedit.models.forward.prefix_sharing import SharedBeginnings
from bluedit.models.inputs.tokens import Batch, Row
from bluedit.models.memory.budget import TokenBudget, in_batches, plain_budget
from bluedit.precision import upcast

__all__ = ["Injection", "SuffixBatch"]


class SuffixBatch:
    """Rows cut at their subject's last token, ready to be rerun from above layer `layer`; -1 stands for the embeddings.

    **Arguments**

    - `share`: run common beginnings of the rows once. False where rows of the same tokens differ in something else,
      such as noise that is added to their embeddings.

    **Attributes**

    - `states_BSD`: output of the layer from the subject's last token on. Empty for -1.
    - `first_B`: the column of that token: 0, unless whole rows are run.
    """

    def __init__(
        self, model: EditableModel, rows: Sequence[Row], layer: int, budget: TokenBudget | None = None, *, share: bool = True
    ) -> None:
        self._model = model
        self._layer = layer
        self._share = share
        self.rows = tuple(rows)
        budget = plain_budget(model) if budget is None else budget
        subjects_B = torch.tensor([row.subject for row in rows])
        lengths_B = torch.tensor([len(row.ids) for row in rows])
        prefix, suffix = int(subjects_B.max()), int((lengths_B - subjects_B).max())
        self._cutting = model.caches_keys and (
            model.takes_positions or (layer >= 0 and prefix + suffix <= model.context_length)
        )
        starts_B = subjects_B
        if not self._cutting:
            starts_B, prefix, suffix = torch.zeros_like(subjects_B), 0, int(lengths_B.max())
        # Prefixes are moved next to their suffixes, so that distances between tokens stay what they were.
        prefix_BP = starts_B[:, None] - prefix + torch.arange(prefix)
        suffix_BS = starts_B[:, None] + torch.arange(suffix)
        mask = torch.cat([prefix_BP >= 0, suffix_BS < lengths_B[:, None]], 1).long()
        positions = suffix_BS.clamp_max(int(lengths_B.max()) - 1)
        states_BSD, self._cached = self._plain_pass(prefix_BP, positions, starts_B, budget)
        self.states_BSD, device = states_BSD, states_BSD.device
        self._mask, self._positions = mask.to(device), positions.to(device)
        self.first_B = (subjects_B - starts_B).to(device)
        self._ids = torch.zeros_like(self._positions, device=model.device)
        # What is embedded does not matter where the layers that would read it are cut out.
        if layer < 0 or not self._cutting:
            self._ids = _gather(Batch.of(self.rows, model.device).ids, self._positions)

    @torch.no_grad()
    def _plain_pass(
        self, prefix_BP: Tensor, positions_BS: Tensor, starts_B: Tensor, budget: TokenBudget
    ) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
        """The layer's output at the suffixes' positions, and the keys and values of the prefixes at the layers above it."""
        model, layer = self._model, self._layer
        limits = starts_B.tolist() if self._share else [0] * len(self.rows)
        shared = SharedBeginnings(model, [row.ids for row in self.rows], limits, budget)
        above = range(layer + 1, model.structure.depth) if self._cutting else ()
        # What a layer returns (a tensor, or a tuple that starts with it) differs between architectures.
        forms: list[bool] = []

        def run(chosen: list[int]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
            remainders, seen = shared.remainders(chosen), list[Tensor]()
            cache = remainders.cache if remainders.cache is not None or not self._cutting else DynamicCache()
            nowhere = torch.zeros(0, dtype=torch.long, device=model.device)
            with contextlib.ExitStack() as stack:
                stack.enter_context(model.head_at(nowhere, nowhere, last_mlp=layer < model.structure.depth - 1))
                if layer >= 0:
                    stack.enter_context(model.hooked(layer, "layer", seen.append))
                    keep_form = model.layer(layer).register_forward_hook(
                        lambda _, __, out: forms.append(isinstance(out, tuple))
                    )
                    stack.callback(keep_form.remove)
                remainders.run(model, cache)
            before_B1 = remainders.lengths_B.cpu()[:, None]
            columns_BP = (prefix_BP[chosen] - before_B1 + remainders.shared).clamp_min(0)
            columns_BS = (positions_BS[chosen] - before_B1).clamp_max(remainders.ids.shape[1] - 1)
            states_BSD = (
                _gather(seen[0], columns_BS)
                if seen
                else torch.zeros(len(chosen), 0, model.structure.d_model, device=model.device)
            )
            kept = [] if cache is None else cache.layers
            return states_BSD, [
                (_gather_cached(kept[index].keys, columns_BP), _gather_cached(kept[index].values, columns_BP))  # type: ignore[arg-type]
                for index in above
            ]

        rests = [len(row.ids) - length for row, length in zip(self.rows, shared.lengths, strict=True)]
        parts = [part for _, part in in_batches(rests, budget, run, order=range(len(rests)))]
        self._as_tuple = bool(forms and forms[0])
        return torch.cat([states for states, _ in parts]), [
            (index, *(torch.cat([cached[place][side] for _, cached in parts]) for side in (0, 1)))  # type: ignore[misc]
            for place, index in enumerate(above)
        ]

    def select(self, keep: Tensor) -> None:
        """Continue with these rows only, in this order."""
        self.rows = tuple(self.rows[index] for index in keep.tolist())
        self._mask, self._positions, self.states_BSD = self._mask[keep], self._positions[keep], self.states_BSD[keep]
        self.first_B = self.first_B[keep]
        self._ids = self._ids[keep.to(self._ids.device)]
        self._cached = [
            (layer, keys[keep.to(keys.device)], values[keep.to(values.device)]) for layer, keys, values in self._cached
        ]

    def logits(self, states_BSD: Tensor, rows: Tensor, positions: Tensor, *, last_mlp: bool = True) -> Tensor:
        """Logits (n, V) at n pairs of row and position from the subject on, with `states_BSD` as output of the layer.

        `last_mlp`: run the last layer's MLP only there; False where that layer is looked into.
        """
        positions = positions + self.first_B[rows]
        with self._cut(lambda: states_BSD), self._model.head_at(rows, positions, last_mlp=last_mlp):
            output = self._model.model(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache() if self._cutting else None,
                use_cache=self._cutting,
            )
        return output.logits.squeeze(0)

    def _cache(self) -> DynamicCache:
        cache = DynamicCache()
        rows, prefix = len(self.rows), self._mask.shape[1] - self._positions.shape[1]
        if not prefix:
            return cache
        # The length of a cache is read off its first layer, which must be there though it is never attended to.
        hollow = torch.zeros(1, 1, 1, 1, device=self._mask.device).expand(rows, 1, prefix, 1)
        for layer in range(self._layer + 1):
            cache.update(hollow, hollow, layer)
        for layer, keys, values in self._cached:
            cache.update(keys, values, layer)
        return cache

    @contextlib.contextmanager
    def _cut(self, states: Callable[[], Tensor]) -> Generator[None]:
        """Inside, the layers up to this batch's own are stand-ins that hand its states on; in whole rows, their last one's
        output is replaced."""
        if not self._cutting:
            given = (
                self._model.hooked(self._layer, "layer", lambda _: states()) if self._layer >= 0 else contextlib.nullcontext()
            )
            with given:
                yield
            return
        layers = self._model.model.get_submodule(self._model.structure.map.layers)
        assert isinstance(layers, nn.ModuleList)
        originals = [layers[index] for index in range(self._layer + 1)]
        try:
            for index, original in enumerate(originals):
                layers[index] = _StandIn(original, states if index == self._layer else None, self._as_tuple)
            yield
        finally:
            for index, original in enumerate(originals):
                layers[index] = original


class Injection:
    """Rows in which vectors can be added at components of one layer, at the subject's last token, again and again.

    Adding to the layer's output needs that layer no more: its stored output is changed. Adding inside the layer (at its
    MLP's or its attention's output) reruns it, from the stored output of the layer below.
    """

    def __init__(self, model: EditableModel, rows: Sequence[Row], layer: int, components: tuple[Component, ...]) -> None:
        self._model, self._layer, self._components = model, layer, components
        self._above = components == ("layer",)
        self._suffixes = SuffixBatch(model, rows, layer if self._above else layer - 1)

    @property
    def rows(self) -> tuple[Row, ...]:
        return self._suffixes.rows

    def initial(self, chosen: Sequence[int]) -> Tensor:
        """What stands at the components before anything is added, (components, chosen, D), for some of the rows."""
        if self._above:
            return upcast(self._suffixes.states_BSD[list(chosen), self._suffixes.first_B[list(chosen)]])[None]
        rows = [self.rows[index] for index in chosen]
        return torch.stack([self._model.subject_states(rows, self._layer, component) for component in self._components])

    def logits(self, added_VBD: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (n, V) at n pairs of row and position from the subject on, with `added_VBD[v]` added at component v."""
        states_BSD, first_B = self._suffixes.states_BSD, self._suffixes.first_B
        if self._above:
            return self._suffixes.logits(_plus_at(states_BSD, first_B, added_VBD[0]), rows, positions)
        with contextlib.ExitStack() as stack:
            for component, added_BD in zip(self._components, added_VBD, strict=True):
                stack.enter_context(
                    self._model.hooked(self._layer, component, partial(_plus_at, first_B=first_B, added_BD=added_BD))
                )
            inside = self._layer == self._model.structure.depth - 1
            return self._suffixes.logits(states_BSD, rows, positions, last_mlp=not inside)

    def select(self, keep: Tensor) -> None:
        """Continue with these rows only, in this order."""
        self._suffixes.select(keep)


def _plus_at(states_BSD: Tensor, first_B: Tensor, added_BD: Tensor) -> Tensor:
    """The states with something added at one token of each row, in `added`'s precision, rounded once."""
    places = torch.arange(len(first_B), device=first_B.device), first_B
    return states_BSD.index_put(places, (upcast(states_BSD[places]) + added_BD).to(states_BSD.dtype))


class _StandIn(nn.Module):
    """Takes a decoder layer's place: hands the hidden state on, or gives the one it was told to."""

    def __init__(self, original: nn.Module, states: Callable[[], Tensor] | None, as_tuple: bool) -> None:
        super().__init__()
        # Not registered as a submodule: the original stays where it is, and some models read attributes of their layers.
        object.__setattr__(self, "_original", original)
        self._states = states
        self._as_tuple = as_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_original"), name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        hidden = self._states() if self._states is not None else hidden_states
        return (hidden,) if self._as_tuple else hidden


def _gather(tensor_BTX: Tensor, positions_BK: Tensor) -> Tensor:
    """tensor[b, positions[b, k]] for every row b."""
    rows = torch.arange(tensor_BTX.shape[0], device=tensor_BTX.device)[:, None]
    return tensor_BTX[rows, positions_BK.to(tensor_BTX.device)]


def _gather_cached(part_BHTK: Tensor, columns_BP: Tensor) -> Tensor:
    """Keys or values of chosen columns, (B, H, P, K)."""
    return _gather(part_BHTK.transpose(1, 2), columns_BP).transpose(1, 2)
