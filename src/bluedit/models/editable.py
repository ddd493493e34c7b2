"""A model that can be looked into and changed for a moment: scoped hooks, trial weights, fingerprints.

Everything that touches the model does so in a context manager that puts the model back bit for bit, on exceptions
too. :class:`EditableModel` itself holds no state but what it found in the model.

Shapes: B rows, T tokens, D d_model, F d_ff, N facts, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import AccurateGELUActivation, NewGELUActivation

from bluedit.errors import ModelError, NumericsError, did_you_mean, excerpt
from bluedit.models.inputs.tokens import Batch, PromptTokenizer, Row
from bluedit.models.layout.maps import MODULE_MAPS, ModuleMap, read_module_map
from bluedit.models.layout.structure import Structure, discover
from bluedit.models.memory.budget import TokenBudget, in_batches, plain_budget
from bluedit.precision import all_finite, upcast

__all__ = ["Component", "EditableModel", "StopForward", "context_length", "takes_positions", "tensor_fingerprint"]

Component = str
"""A place in a layer: `key` (input of the MLP's output projection, F), `mlp` (its output, D), `attention` (output of the
attention's output projection, D) or `layer` (the hidden state after the whole layer, D). Where a norm, a gate or a scale
stands between a projection and the residual, `mlp` and `attention` are before it."""

_PLACES = ("key", "mlp", "attention", "layer")
_COMPONENT_NAMES = {"layer": "hidden state", "mlp": "output of the MLP", "attention": "output of the attention"}
_SPELLED_OUT = (NewGELUActivation, AccurateGELUActivation)
_fused_gelu = partial(nn.functional.gelu, approximate="tanh")


def tensor_fingerprint(tensor: Tensor) -> str:
    """A hash of a tensor's values as float32 (float64 where it is that): half-precision values hash alike however they are
    held."""
    return hashlib.sha256(upcast(tensor.detach()).contiguous().cpu().numpy().data).hexdigest()[:32]


def context_length(config: Any) -> int:
    """See :attr:`EditableModel.context_length`."""
    config = config.get_text_config()
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
    return int(next(filter(None, lengths), 2048))


def takes_positions(model: PreTrainedModel) -> bool:
    """See :attr:`EditableModel.takes_positions`."""
    return "position_ids" in inspect.signature(model.forward).parameters


def _check_resident(model: nn.Module) -> None:
    """Raises :class:`~bluedit.errors.ModelError` for weights that are offloaded: what is added to a stand-in is lost."""
    if (away := next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)) is not None:
        raise ModelError(
            f"{away} is offloaded: a placeholder without data is in its place, and a change of it would be lost; load the "
            "model where all of it fits: in bfloat16, on more GPUs (--device auto), or on the CPU (--device cpu)"
        )


def _check_finite(name: str, weight: Tensor) -> None:
    """Raises :class:`~bluedit.errors.ModelError` for a weight that holds NaN or infinities."""
    if weight.is_floating_point() and not all_finite(weight):
        bad = int((~torch.isfinite(weight)).sum())
        raise ModelError(
            f"the weight {name} is not finite (NaN or infinite: {bad:,} of {weight.numel():,} numbers). The checkpoint is "
            "damaged, or does not fit the type it is loaded in: fetch it again, or load it with --dtype float32"
        )


class StopForward(Exception):  # noqa: N818 (a signal, not an error)
    """Raised inside a forward pass once everything that was asked for has been seen."""


class EditableModel:
    """A Hugging Face causal language model, its tokenizer, and what :func:`~bluedit.models.layout.structure.discover` found.

    The model is neither copied nor changed. Wrapping is cheap; two wrappers of one model are interchangeable. A layout that
    is not recognised is described by a `module_map`, or a file of one. With `chat`, every prompt goes into the model's chat
    template: see :class:`~bluedit.models.inputs.tokens.PromptTokenizer`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        module_map: ModuleMap | str | Path | None = None,
        chat: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        named = read_module_map(module_map) if isinstance(module_map, (str, Path)) else module_map
        self.structure: Structure = discover(model, named)
        _check_resident(model)
        rows = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[arg-type]
        self.text = PromptTokenizer(tokenizer, chat=chat, context_length=self.context_length, vocabulary=rows)

    @classmethod
    def wrap(cls, model: PreTrainedModel | EditableModel, tokenizer: PreTrainedTokenizerBase | None = None) -> EditableModel:
        """The wrapper of a model; a wrapper is returned as it is."""
        if isinstance(model, EditableModel):
            return model
        if tokenizer is None:
            raise TypeError("a transformers model needs its tokenizer: pass both")
        return cls(model, tokenizer)

    def in_chat(self, chat: bool) -> EditableModel:
        """The same model, with prompts in its chat template or without one.

        **Raises** :class:`~bluedit.errors.ModelError` where it has no chat template.
        """
        if (self.text.chat is not None) == chat:
            return self
        return EditableModel(self.model, self.tokenizer, module_map=self.structure.map, chat=chat)

    # -- places ----------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.dtype

    @property
    def context_length(self) -> int:
        """The longest row the model takes, in tokens; 2048 where positions are relative and nothing bounds them."""
        return context_length(self.model.config)

    @property
    def takes_positions(self) -> bool:
        """Whether tokens can be told their position. A model that does not take any (BLOOM, MPT) places them where it embeds
        them, or by their distances."""
        return takes_positions(self.model)

    @cached_property
    def caches_keys(self) -> bool:
        """Whether keys and values, one entry a layer, are all that the model remembers of earlier tokens.

        Recurrent layers remember a state, and some layers take their keys and values from others. Cost: a pass over one token.
        """
        if getattr(self.model, "_is_stateful", False):
            return False
        cache, token = DynamicCache(), torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with torch.no_grad(), self.frozen():
            self.model(input_ids=token, past_key_values=cache, use_cache=True)
        return len(cache.layers) == self.structure.depth

    def layer(self, layer: int) -> nn.Module:
        return self.model.get_submodule(self.structure.layer_path(layer))

    def projection(self, layer: int) -> nn.Module:
        """The MLP output projection of a layer."""
        return self.layer(layer).get_submodule(self.structure.map.projection)

    def weight(self, layer: int) -> nn.Parameter:
        """The stored weight of :meth:`projection`; see :meth:`Structure.oriented` for W, d_model x d_ff."""
        return self.model.get_parameter(self.structure.weight_name(layer))

    def matrix(self, layer: int) -> Tensor:
        """W of a layer, d_model x d_ff: a detached view of the stored weight."""
        return self.structure.oriented(self.weight(layer).detach())

    def check_finite(self) -> None:
        """Look at every weight once.

        **Raises** :class:`~bluedit.errors.ModelError` naming the first that holds NaN or infinities.
        **Cost** one pass over the weights, 50 ms a GiB.
        """
        for name, parameter in self.model.named_parameters():
            _check_finite(name, parameter.detach())

    # -- looking in ------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, **kwargs: Any) -> Tensor:
        """Logits of a batch, (B, T, V) unless :meth:`head_at` narrows them."""
        return self.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **kwargs).logits

    @contextlib.contextmanager
    def hooked(self, layer: int, component: Component, function: Callable[[Tensor], Tensor | None]) -> Generator[None]:
        """Call `function` with the tensor at a component, (B, T, F) or (B, T, D), in every forward pass; what it returns, if
        anything, replaces it.

        **Raises** :class:`~bluedit.errors.ModelError` for a layer that has no such component.
        """
        block = self.layer(layer)
        if component not in _PLACES:
            raise ModelError(did_you_mean(component, _PLACES, what="place in a layer"))
        paths = {"layer": "", "attention": self.structure.map.attention_projection}
        path = paths.get(component, self.structure.map.projection)
        try:
            module = block.get_submodule(path)
        except AttributeError as error:
            raise ModelError(f"layer {layer} has no {path}, and so no {component} to look at; choose another layer") from error
        shape: list[int] = []

        def enter(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            shape[:] = next(iter((*inputs, *named.values()))).shape[:2]

        def call(hidden: Tensor) -> Tensor | None:
            if hidden.ndim == 3:
                return function(hidden)
            if hidden.ndim != 2 or component == "layer":
                raise ModelError(
                    f"layer {layer} outputs a hidden state of shape {tuple(hidden.shape)}, not one vector per token"
                )
            # Some layers (OPT's) hand the tokens of all rows to their MLP as if they were one row.
            replaced = function(hidden.unflatten(0, shape))
            return None if replaced is None else replaced.flatten(0, 1)

        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            replaced = call(inputs[0])
            return None if replaced is None else (replaced, *inputs[1:])

        def after(_: nn.Module, __: Any, output: Any) -> Any:
            replaced = call(output[0] if isinstance(output, (tuple, list)) else output)
            if replaced is None:
                return None
            return (replaced, *output[1:]) if isinstance(output, (tuple, list)) else replaced

        with contextlib.ExitStack() as stack:
            if component != "layer":
                stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hook = module.register_forward_pre_hook(before) if component == "key" else module.register_forward_hook(after)
            stack.callback(hook.remove)
            yield

    @contextlib.contextmanager
    def head_at(self, rows: Tensor, positions: Tensor, *, last_mlp: bool = False) -> Generator[None]:
        """Inside, logits are computed only where asked: (1, n, V) for n pairs of row and position.

        The head is the most expensive matrix of a small model. Gathering its *input* leaves whatever an architecture
        does to its logits (scaling, soft caps) in force. With `last_mlp` the last layer's MLP runs only there as well: what it
        would say elsewhere is read by nobody, unless something else in that layer is being looked at.
        """

        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = inputs[0]
            return (hidden[rows.to(hidden.device), positions.to(hidden.device)][None], *inputs[1:])

        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[assignment]
        with contextlib.ExitStack() as stack:
            stack.callback(head.register_forward_pre_hook(before).remove)
            if last_mlp:
                stack.enter_context(self._last_mlp_at(rows, positions))
            yield

    @contextlib.contextmanager
    def _last_mlp_at(self, rows: Tensor, positions: Tensor) -> Generator[None]:
        """Inside, the last layer's MLP, where it is a module of its own, sees the tokens at these places, and its output is
        0 elsewhere."""
        last = self.structure.depth - 1
        path = self.structure.map.projection.rpartition(".")[0]
        # Of layouts that come from elsewhere it is not known that what holds the projection looks at one token at a time.
        if not path or last not in self.structure.dense or self.structure.map not in MODULE_MAPS:
            yield
            return
        # Each place once: of several writes to one place the last stays, but all of them would hand its gradient on.
        rows, positions = torch.stack([rows, positions]).unique(dim=1) if len(rows) else (rows, positions)
        shapes: list[tuple[int, int]] = []

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            shapes.clear()
            if not inputs or inputs[0].ndim != 3:
                return None
            batch, length = inputs[0].shape[:2]
            shapes.append((batch, length))
            # Some MLPs (BLOOM's) are handed the residual stream as well.
            return tuple(
                one[rows.to(one.device), positions.to(one.device)][None]
                if isinstance(one, Tensor) and one.shape[:2] == (batch, length)
                else one
                for one in inputs
            )

        def after(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
            if not shapes:
                return None
            whole = output.new_zeros(*shapes[0], output.shape[-1])
            return whole.index_put((rows.to(output.device), positions.to(output.device)), output[0])

        module = self.layer(last).get_submodule(path)
        with contextlib.ExitStack() as stack:
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
            yield

    @contextlib.contextmanager
    def frozen(self, *, fuse: bool = True) -> Generator[None]:
        """Inside, the model is in evaluation mode, no parameter asks for a gradient, and activation functions are fused (unless
        `fuse` is False); all is put back afterwards."""
        training = [module for module in self.model.modules() if module.training]
        asking = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in asking:
            parameter.requires_grad_(False)
        self.model.eval()
        fused = self._fuse_activations() if fuse else []
        try:
            yield
        finally:
            for module in fused:
                del module.forward
            for parameter in asking:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True

    def _fuse_activations(self) -> list[nn.Module]:
        """Let one kernel compute what some activation modules spell out in eight; the modules that were changed.

        Only in full precision, where both round alike to the last digit or two: in half precision the spelled-out form
        rounds after every operation, and measurements should be those of the model as it is served.
        """
        if self.dtype not in (torch.float32, torch.float64):
            return []
        chosen = [module for module in self.model.modules() if type(module) in _SPELLED_OUT and "forward" not in vars(module)]
        for module in chosen:
            module.forward = _fused_gelu
        return chosen

    @torch.no_grad()
    def subject_states(self, rows: Sequence[Row], layer: int, component: Component, token_budget: int | None = None) -> Tensor:
        """What stands at the subject's last token, (rows, F) for keys, (rows, D) otherwise; float32 (float64 in float64
        models).

        What lies above `layer` or after the subject is not computed. `token_budget`: padded tokens in one pass, at most;
        found from the memory there is when left out.

        **Raises** :class:`~bluedit.errors.NumericsError` naming the text where it is not finite.
        """
        budget = plain_budget(self) if token_budget is None else TokenBudget(token_budget)
        results: list[Tensor | None] = [None] * len(rows)

        def run(chosen: list[int]) -> Tensor:
            batch = Batch.of(
                [Row(rows[index].ids[: rows[index].subject + 1], rows[index].subject) for index in chosen], self.device
            )
            seen: list[Tensor] = []

            def keep(hidden: Tensor) -> None:
                subjects = batch.subjects.to(hidden.device)
                seen.append(upcast(hidden[torch.arange(len(subjects), device=hidden.device), subjects]))
                raise StopForward

            with self.frozen(), self.hooked(layer, component, keep), contextlib.suppress(StopForward):
                self.forward(batch)
            return seen[0]

        for chosen, states in in_batches([row.subject + 1 for row in rows], budget, run):
            for index, state, finite in zip(chosen, states, torch.isfinite(states).all(1).tolist(), strict=True):
                if not finite:
                    text = excerpt(str(self.tokenizer.decode(list(rows[index].ids))))
                    raise NumericsError(
                        f"the {_COMPONENT_NAMES.get(component, component)} of layer {layer} is not finite for the text {text}: "
                        "the model's numbers overflow; load it in float32 or bfloat16 (--dtype)"
                    )
                results[index] = state
        width = self.structure.d_ff if component == "key" else self.structure.d_model
        return torch.stack(results) if results else torch.zeros(0, width)  # type: ignore[arg-type]

    # -- changing for a moment -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def restoring(self, layers: Iterable[int]) -> Generator[dict[int, Tensor]]:
        """Inside, the weights of `layers` may be written; afterwards they hold their original bits, come what may.

        Gives the originals by layer, as stored.
        """
        originals = {layer: self.weight(layer).detach().clone() for layer in set(layers)}
        try:
            yield originals
        finally:
            with torch.no_grad():
                for layer, original in originals.items():
                    self.weight(layer).copy_(original)

    # -- identity --------------------------------------------------------------------------------------------

    def fingerprint(self, through: int | None = None, without: Collection[str] = ()) -> str:
        """A hash of the configuration and of the weights, to tell models apart.

        **Arguments**

        - `through`: leave out the weights of layers above this one, and the head: what a hidden state of that layer does
          not depend on.
        - `without`: names of weights to leave out.

        Values are hashed in float32 at least, so a half-precision checkpoint has one fingerprint whether it was loaded in half
        or in single precision. Cost: one pass over the weights read.

        **Raises** :class:`~bluedit.errors.ModelError` for a weight that is not finite.
        """
        digest = hashlib.sha256(self._config_bytes())
        embedded = set(map(id, self.model.get_input_embeddings().parameters()))
        head = {id(parameter) for parameter in self.model.get_output_embeddings().parameters()} - embedded  # type: ignore[union-attr]
        for name, parameter in self.model.named_parameters():
            if name in without:
                continue
            if through is None or (self._at_or_below(name, through) and id(parameter) not in head):
                _check_finite(name, parameter.detach())
                digest.update(f"{name}{tuple(parameter.shape)}".encode())
                digest.update(upcast(parameter.detach()).contiguous().cpu().numpy().data)
        return digest.hexdigest()[:32]

    def weight_fingerprint(self, layer: int) -> str:
        """A hash of one layer's edited weight, as :meth:`fingerprint` hashes it, and refuses it."""
        _check_finite(self.structure.weight_name(layer), self.weight(layer).detach())
        return tensor_fingerprint(self.weight(layer))

    def configuration_fingerprint(self) -> str:
        """A hash of the configuration alone."""
        return hashlib.sha256(self._config_bytes()).hexdigest()[:32]

    def _config_bytes(self) -> bytes:
        return json.dumps(self._config(), sort_keys=True, default=str).encode()

    def _config(self) -> dict[str, Any]:
        """The part of the configuration that determines the function: not where it came from, nor its storage dtype."""
        volatile = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
        return {key: value for key, value in self.model.config.to_dict().items() if key not in volatile}

    def _at_or_below(self, name: str, through: int) -> bool:
        prefix = f"{self.structure.map.layers}."
        if name.startswith(prefix):
            return int(name[len(prefix) :].split(".", 1)[0]) <= through
        norm = self.structure.map.norm
        return not norm or not name.startswith(f"{norm}.")
