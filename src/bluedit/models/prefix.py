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
import inspect
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bluedit.models.editable import EditableModel, Site
from bluedit.models.tokens import Batch, Row
from bluedit.precision import wide

__all__ = ["Injection", "SuffixBatch"]


class SuffixBatch:
    """Rows cut at their subject's last token, ready to be rerun from above layer `layer`; -1 stands for the embeddings.

    **Attributes**

    - `states_BSD`: output of the layer from the subject's last token on. Empty for -1.
    - `first_B`: the column of that token: 0, unless whole rows are run.
    """

    def __init__(self, model: EditableModel, rows: Sequence[Row], layer: int) -> None:
        self._model = model
        self._layer = layer
        self.rows = tuple(rows)
        prefix = max(row.subject for row in rows)
        suffix = max(len(row.ids) - row.subject for row in rows)
        batch = Batch.of(self.rows, model.device)
        self._cutting = _keeps_keys_and_values(model.model) and (
            _takes_positions(model.model) or (layer >= 0 and prefix + suffix <= model.context_length)
        )
        states_BTD, cached = self._plain_pass(batch)
        device = states_BTD.device
        subjects_B = torch.tensor([row.subject for row in rows], device=device)
        lengths_B = torch.tensor([len(row.ids) for row in rows], device=device)
        self.first_B = torch.zeros_like(subjects_B)
        if not self._cutting:
            self.first_B, subjects_B = subjects_B, self.first_B
            prefix, suffix = 0, max(len(row.ids) for row in rows)
        # Prefixes are moved next to their suffixes, so that distances between tokens stay what they were.
        prefix_BP = subjects_B[:, None] - prefix + torch.arange(prefix, device=device)
        suffix_BS = subjects_B[:, None] + torch.arange(suffix, device=device)
        self._mask = torch.cat([prefix_BP >= 0, suffix_BS < lengths_B[:, None]], 1).long()
        last = int(lengths_B.max()) - 1
        self._positions = suffix_BS.clamp_max(last)
        self.states_BSD = _gather(states_BTD, self._positions) if layer >= 0 else states_BTD
        # What is embedded does not matter where the layers that would read it are cut out.
        read = layer < 0 or not self._cutting
        self._ids = _gather(batch.ids, self._positions) if read else torch.zeros_like(self._positions, device=model.device)
        self._cached = [
            (layer, *(_gather(part.transpose(1, 2), prefix_BP.clamp_min(0)).transpose(1, 2) for part in pair))
            for layer, *pair in cached
        ]

    @torch.no_grad()
    def _plain_pass(self, batch: Batch) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
        model, layer = self._model, self._layer
        seen: list[Tensor] = []
        cache = DynamicCache() if self._cutting else None
        nowhere = torch.zeros(0, dtype=torch.long, device=model.device)
        # What a layer returns (a tensor, or a tuple that starts with it) differs between architectures.
        forms: list[bool] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(model.head_at(nowhere, nowhere))
            if layer >= 0:
                stack.enter_context(model.hooked(layer, "layer", seen.append))
                stack.enter_context(
                    model.layer(layer).register_forward_hook(lambda _, __, output: forms.append(isinstance(output, tuple)))
                )
            model.model(input_ids=batch.ids, attention_mask=batch.mask, past_key_values=cache, use_cache=self._cutting)
        self._as_tuple = bool(forms and forms[0])
        nothing = torch.zeros(len(self.rows), 0, model.structure.d_model, device=model.device)
        states_BTD = seen[0] if seen else nothing
        kept = cache.layers if cache is not None else []
        # A model without a cache, or with layers that have no entry in it, leaves nothing to go on from.
        self._cutting = self._cutting and len(kept) == model.structure.depth
        above = range(layer + 1, model.structure.depth) if self._cutting else ()
        return states_BTD, [(index, kept[index].keys, kept[index].values) for index in above]  # type: ignore[misc]

    def select(self, keep: Tensor) -> None:
        """Go on with these rows only, in this order."""
        self.rows = tuple(self.rows[index] for index in keep.tolist())
        self._mask, self._positions, self.states_BSD = self._mask[keep], self._positions[keep], self.states_BSD[keep]
        self.first_B = self.first_B[keep]
        self._ids = self._ids[keep.to(self._ids.device)]
        self._cached = [
            (layer, keys[keep.to(keys.device)], values[keep.to(values.device)]) for layer, keys, values in self._cached
        ]

    def logits(self, states_BSD: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (n, V) at n pairs of row and position from the subject on, with `states_BSD` as output of the layer."""
        positions = positions + self.first_B[rows]
        with self._cut(lambda: states_BSD), self._model.head_at(rows, positions):
            output = self._model.model(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache() if self._cutting else None,
                use_cache=self._cutting,
            )
        return output.logits[0]

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
    """Rows in which vectors can be added at sites of one layer, at the subject's last token, again and again.

    Adding to the layer's output needs that layer no more: its stored output is changed. Adding inside the layer (at its
    MLP's or its attention's output) reruns it, from the stored output of the layer below.
    """

    def __init__(self, model: EditableModel, rows: Sequence[Row], layer: int, sites: tuple[Site, ...]) -> None:
        self._model, self._layer, self._sites = model, layer, sites
        self._above = sites == ("layer",)
        self._suffixes = SuffixBatch(model, rows, layer if self._above else layer - 1)

    @property
    def rows(self) -> tuple[Row, ...]:
        return self._suffixes.rows

    def initial(self, chosen: Sequence[int]) -> Tensor:
        """What stands at the sites before anything is added, (sites, chosen, D), for some of the rows."""
        if self._above:
            return wide(self._suffixes.states_BSD[list(chosen), self._suffixes.first_B[list(chosen)]])[None]
        rows = [self.rows[index] for index in chosen]
        return torch.stack([self._model.subject_states(rows, self._layer, site) for site in self._sites])

    def logits(self, added_VBD: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits (n, V) at n pairs of row and position from the subject on, with `added_VBD[v]` added at site v."""
        states_BSD, first_B = self._suffixes.states_BSD, self._suffixes.first_B
        if self._above:
            return self._suffixes.logits(_plus_at(states_BSD, first_B, added_VBD[0]), rows, positions)
        with contextlib.ExitStack() as stack:
            for site, added_BD in zip(self._sites, added_VBD, strict=True):
                stack.enter_context(
                    self._model.hooked(self._layer, site, partial(_plus_at, first_B=first_B, added_BD=added_BD))
                )
            return self._suffixes.logits(states_BSD, rows, positions)

    def select(self, keep: Tensor) -> None:
        """Go on with these rows only, in this order."""
        self._suffixes.select(keep)


def _plus_at(states_BSD: Tensor, first_B: Tensor, added_BD: Tensor) -> Tensor:
    """The states with something added at one token of each row, in `added`'s precision, rounded once."""
    places = torch.arange(len(first_B), device=first_B.device), first_B
    return states_BSD.index_put(places, (wide(states_BSD[places]) + added_BD).to(states_BSD.dtype))


def _keeps_keys_and_values(model: nn.Module) -> bool:
    """Whether all that a model remembers of earlier tokens are keys and values; recurrent layers remember a state."""
    return not getattr(model, "_is_stateful", False)


def _takes_positions(model: nn.Module) -> bool:
    """Whether tokens can be told their position. A model that does not take any (BLOOM, MPT) places them where it embeds
    them, or by their distances."""
    return "position_ids" in inspect.signature(model.forward).parameters


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
