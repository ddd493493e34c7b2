"""EditableModel: hooks see what they are said to see, and whatever is changed for a moment is put back bit for bit."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bluedit.errors import ModelError
from bluedit.facts import Fact
from bluedit.models import Batch, EditableModel, Row

COMPONENTS = ["key", "mlp", "layer"]
LAYERS = [0, 2, 3]


class StoppedError(Exception):
    """Raised by tests inside a block that has to clean up."""


@pytest.fixture
def batch(tiny_models: EditableModel, world_facts: tuple[Fact, ...]) -> Batch:
    return Batch.of([tiny_models.text.row(fact, with_target=True) for fact in world_facts], "cpu")


def _hooks(model: EditableModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules())


def _seen(model: EditableModel, batch: Batch, layer: int, component: str) -> Tensor:
    seen: list[Tensor] = []
    with torch.no_grad(), model.hooked(layer, component, lambda hidden: seen.append(hidden.clone())):
        model.forward(batch)
    (state,) = seen
    return state


# -- wrapping --------------------------------------------------------------------------------------------------------


def test_wrap_returns_a_wrapper_as_it_is(tiny_gpt2: EditableModel) -> None:
    assert EditableModel.wrap(tiny_gpt2) is tiny_gpt2
    assert EditableModel.wrap(tiny_gpt2.model, tiny_gpt2.tokenizer).model is tiny_gpt2.model


def test_wrap_asks_for_the_tokenizer(tiny_gpt2: EditableModel) -> None:
    with pytest.raises(TypeError, match="needs its tokenizer"):
        EditableModel.wrap(tiny_gpt2.model)


def test_context_length_is_the_configurations(tiny_models: EditableModel) -> None:
    assert tiny_models.context_length == 96


# -- hooks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_key_is_the_input_of_the_projection_and_mlp_its_output(tiny_models: EditableModel, batch: Batch, layer: int) -> None:
    keys, mlp = _seen(tiny_models, batch, layer, "key"), _seen(tiny_models, batch, layer, "mlp")
    assert keys.shape == (*batch.ids.shape, tiny_models.structure.d_ff)
    with torch.no_grad():
        torch.testing.assert_close(tiny_models.projection(layer)(keys), mlp, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_layer_is_the_hidden_state_after_it(tiny_models: EditableModel, batch: Batch, layer: int) -> None:
    copied = copy.deepcopy(tiny_models.model)  # transformers leaves hooks of its own behind
    with torch.no_grad():
        states = copied(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True).hidden_states
    torch.testing.assert_close(_seen(tiny_models, batch, layer, "layer"), states[layer + 1], atol=1e-6, rtol=1e-6)


def test_last_layers_state_is_what_the_norm_and_the_head_read(tiny_models: EditableModel, batch: Batch) -> None:
    """transformers reports the last hidden state after the norm, so it is checked by way of the logits."""
    state = _seen(tiny_models, batch, 3, "layer")
    norm = tiny_models.model.get_submodule(tiny_models.structure.map.norm)
    with torch.no_grad():
        expected = tiny_models.forward(batch)
        torch.testing.assert_close(tiny_models.model.get_output_embeddings()(norm(state)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("component", COMPONENTS)
def test_what_a_hook_returns_replaces_the_state(tiny_models: EditableModel, batch: Batch, component: str) -> None:
    with torch.no_grad():
        plain = tiny_models.forward(batch)
        with tiny_models.hooked(2, component, lambda hidden: hidden * 1.5):
            injected = tiny_models.forward(batch)
        with tiny_models.hooked(2, component, lambda hidden: hidden + 0):
            unchanged = tiny_models.forward(batch)
    assert (injected - plain).abs().max() > 0.01
    torch.testing.assert_close(unchanged, plain, atol=0, rtol=0)


def test_change_of_one_token_reaches_no_earlier_one(tiny_models: EditableModel) -> None:
    def change(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[:, 4] *= 1.5
        return changed

    tokens = Batch.of([Row(tuple(range(1, 9))), Row(tuple(range(20, 28)))], "cpu")
    with torch.no_grad():
        plain = tiny_models.forward(tokens)
        with tiny_models.hooked(1, "layer", change):
            injected = tiny_models.forward(tokens)
    torch.testing.assert_close(injected[:, :4], plain[:, :4], atol=1e-5, rtol=1e-5)
    assert (injected[:, 4:] - plain[:, 4:]).abs().amax(-1).min() > 1e-3


def test_a_place_that_does_not_exist_is_refused(tiny_gpt2: EditableModel) -> None:
    """A slip of the pen must not read another place in silence."""
    with pytest.raises(ModelError, match=r"unknown place in a layer 'atention'\. Did you mean 'attention'"):
        tiny_gpt2.subject_states([Row((1, 2, 3), 1)], 2, "atention")


@pytest.mark.parametrize("component", COMPONENTS)
def test_hooks_go_when_the_block_ends(tiny_models: EditableModel, component: str) -> None:
    with tiny_models.hooked(1, component, lambda hidden: None):
        assert _hooks(tiny_models) >= 1
    assert _hooks(tiny_models) == 0


@pytest.mark.parametrize("component", COMPONENTS)
def test_hooks_go_when_the_block_or_the_hook_fails(tiny_models: EditableModel, batch: Batch, component: str) -> None:
    def fail(_: Tensor) -> None:
        raise StoppedError

    with pytest.raises(StoppedError), tiny_models.hooked(1, component, fail), torch.no_grad():
        tiny_models.forward(batch)
    assert _hooks(tiny_models) == 0
    with pytest.raises(StoppedError), tiny_models.head_at(torch.zeros(1).long(), torch.zeros(1).long(), last_mlp=True):
        raise StoppedError
    assert _hooks(tiny_models) == 0


# -- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_mlp", [False, True])
def test_head_gives_the_plain_logits_where_asked(tiny_models: EditableModel, batch: Batch, last_mlp: bool) -> None:
    rows_T, positions_T, _ = batch.target_index()
    with torch.no_grad():
        plain = tiny_models.forward(batch)
        with tiny_models.head_at(rows_T, positions_T, last_mlp=last_mlp):
            narrowed = tiny_models.forward(batch)
    assert narrowed.shape == (1, len(rows_T), plain.shape[-1])
    torch.testing.assert_close(narrowed[0], plain[rows_T, positions_T], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("last_mlp", [False, True])
def test_gradients_are_the_plain_ones_where_a_place_is_read_twice(
    tiny_models: EditableModel, batch: Batch, last_mlp: bool
) -> None:
    rows_T, positions_T, tokens_T = (torch.cat([one, one]) for one in batch.target_index())

    def gradient(narrowed: bool) -> torch.Tensor:
        added = torch.zeros(tiny_models.structure.d_model, requires_grad=True)
        context = tiny_models.head_at(rows_T, positions_T, last_mlp=last_mlp) if narrowed else contextlib.nullcontext()
        with tiny_models.hooked(0, "layer", lambda hidden: hidden + added), context:
            logits = tiny_models.forward(batch)
        read = logits[0] if narrowed else logits[rows_T, positions_T]
        loss = read.log_softmax(-1).gather(1, tokens_T[:, None]).sum()
        return torch.autograd.grad(loss, added)[0]

    torch.testing.assert_close(gradient(True), gradient(False), atol=1e-4, rtol=1e-4)


def test_the_last_mlp_sees_the_places_that_are_read_and_no_others(tiny_models: EditableModel, batch: Batch) -> None:
    rows_T, positions_T, _ = batch.target_index()
    last, seen = tiny_models.structure.depth - 1, list[int]()
    projection = tiny_models.layer(last).get_submodule(tiny_models.structure.map.projection)
    with tiny_models.head_at(rows_T, positions_T, last_mlp=True), torch.no_grad():
        hook = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2).shape[0]))
        tiny_models.forward(batch)
        hook.remove()
    # OPT's is no module of its own: its layer calls the two matrices itself.
    assert seen == [
        len({*zip(rows_T.tolist(), positions_T.tolist(), strict=True)})
        if "." in tiny_models.structure.map.projection
        else batch.ids.numel()
    ]


def test_head_nowhere_gives_no_logits(tiny_gpt2: EditableModel) -> None:
    nowhere = torch.zeros(0, dtype=torch.long)
    with torch.no_grad(), tiny_gpt2.head_at(nowhere, nowhere):
        assert tiny_gpt2.forward(Batch.of([Row((1, 2))], "cpu")).numel() == 0


# -- subject states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_subject_states_are_those_at_the_subjects_last_token(
    tiny_models: EditableModel, world_facts: tuple[Fact, ...], component: str, layer: int
) -> None:
    rows = [tiny_models.text.row(fact) for fact in world_facts]
    whole = _seen(tiny_models, Batch.of(rows, "cpu"), layer, component)
    expected = whole[range(len(rows)), [row.subject for row in rows]]
    states = tiny_models.subject_states(rows, layer, component)
    assert states.dtype == torch.float32
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("component", COMPONENTS)
def test_subject_states_stop_at_the_layer(tiny_models: EditableModel, component: str) -> None:
    counts = [0] * 4

    def counting(layer: int) -> None:
        counts[layer] += 1

    with contextlib.ExitStack() as stack:
        for layer in range(4):
            # Counted on the way into a layer: its own hook may never see the way out.
            handle = tiny_models.layer(layer).register_forward_pre_hook(lambda *_, layer=layer: counting(layer))
            stack.callback(handle.remove)
        tiny_models.subject_states([Row((1, 2, 3), 1), Row((4,), 0)], 1, component, token_budget=1)
    assert counts == [2, 2, 0, 0]


def test_subject_states_of_no_rows(tiny_gpt2: EditableModel) -> None:
    assert tiny_gpt2.subject_states([], 1, "key").shape == (0, 48)
    assert tiny_gpt2.subject_states([], 1, "layer").shape == (0, 32)


def test_subject_states_of_a_half_precision_model_are_float32(own_gpt2: EditableModel) -> None:
    own_gpt2.model.to(torch.bfloat16)
    states = own_gpt2.subject_states([Row((1, 2, 3), 1)], 1, "key")
    assert states.dtype == torch.float32


def test_subject_states_do_not_depend_on_the_training_mode(own_gpt2: EditableModel) -> None:
    rows = [Row((1, 2, 3, 4), 2)]
    expected = own_gpt2.subject_states(rows, 2, "layer")
    own_gpt2.model.train()  # dropout would change every state
    torch.testing.assert_close(own_gpt2.subject_states(rows, 2, "layer"), expected, atol=0, rtol=0)
    assert own_gpt2.model.training


# -- frozen ----------------------------------------------------------------------------------------------------------


def _asking(model: EditableModel) -> list[str]:
    return [name for name, parameter in model.model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [False, True])
def test_frozen_puts_gradients_and_mode_back(own_gpt2: EditableModel, training: bool, error: bool) -> None:
    own_gpt2.model.train(training)
    own_gpt2.weight(1).requires_grad_(False)
    asking = _asking(own_gpt2)
    with contextlib.suppress(StoppedError), own_gpt2.frozen():
        assert not _asking(own_gpt2)
        assert not any(module.training for module in own_gpt2.model.modules())
        if error:
            raise StoppedError
    assert _asking(own_gpt2) == asking
    assert "transformer.h.1.mlp.c_proj.weight" not in asking
    assert "transformer.h.2.mlp.c_proj.weight" in asking
    assert own_gpt2.model.training is training


def test_frozen_puts_a_mixed_mode_back(own_gpt2: EditableModel) -> None:
    """Fine-tuning often keeps parts of a model in evaluation mode; they stay in it."""
    own_gpt2.model.train()
    own_gpt2.layer(0).eval()
    modes = {name: module.training for name, module in own_gpt2.model.named_modules()}
    with own_gpt2.frozen():
        pass
    assert {name: module.training for name, module in own_gpt2.model.named_modules()} == modes


# -- restoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("error", [None, StoppedError, KeyboardInterrupt])
def test_restoring_puts_the_bits_back(own_gpt2: EditableModel, dtype: torch.dtype, error: type[BaseException] | None) -> None:
    own_gpt2.model.to(dtype)
    before = {name: parameter.detach().clone() for name, parameter in own_gpt2.model.named_parameters()}
    places = {name: parameter.data_ptr() for name, parameter in own_gpt2.model.named_parameters()}
    with contextlib.suppress(StoppedError, KeyboardInterrupt), own_gpt2.restoring([1, 3, 1]):
        for layer in (1, 3):
            own_gpt2.matrix(layer).mul_(1.1).add_(0.5)
            assert not torch.equal(own_gpt2.weight(layer), before[own_gpt2.structure.weight_name(layer)])
        own_gpt2.matrix(3).fill_(float("nan"))
        if error is not None:
            raise error
    for name, parameter in own_gpt2.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.data_ptr() == places[name], f"{name} is another tensor now"


# -- fingerprints ----------------------------------------------------------------------------------------------------


def _nudge(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] += 1


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("through", [None, 1])
def test_fingerprint_does_not_depend_on_how_values_are_held(
    own_gpt2: EditableModel, half: torch.dtype, through: int | None
) -> None:
    own_gpt2.model.to(half)
    single = EditableModel(copy.deepcopy(own_gpt2.model).float(), own_gpt2.tokenizer)
    assert own_gpt2.fingerprint(through) == single.fingerprint(through)
    assert own_gpt2.weight_fingerprint(1) == single.weight_fingerprint(1)


def test_fingerprint_does_not_depend_on_where_a_model_came_from(tiny_gpt2: EditableModel, saved_tiny_gpt2: Path) -> None:
    from bluedit import load_model

    loaded = load_model(str(saved_tiny_gpt2))
    assert loaded.fingerprint() == tiny_gpt2.fingerprint()
    assert loaded.configuration_fingerprint() == tiny_gpt2.configuration_fingerprint()


def test_fingerprint_tells_seeds_and_configurations_apart(own_gpt2: EditableModel, other_gpt2: EditableModel) -> None:
    assert own_gpt2.fingerprint() != other_gpt2.fingerprint()
    assert own_gpt2.fingerprint(through=0) != other_gpt2.fingerprint(through=0)
    assert own_gpt2.configuration_fingerprint() == other_gpt2.configuration_fingerprint()
    other_gpt2.model.config.activation_function = "relu"
    assert own_gpt2.configuration_fingerprint() != other_gpt2.configuration_fingerprint()


ABOVE = ["transformer.h.2.mlp.c_proj.weight", "transformer.h.3.attn.c_attn.bias", "transformer.ln_f.weight"]
BELOW = ["transformer.h.1.mlp.c_proj.weight", "transformer.h.0.ln_1.bias", "transformer.wte.weight", "transformer.wpe.weight"]


@pytest.mark.parametrize("name", [*ABOVE, *BELOW])
def test_fingerprint_through_a_layer_is_of_what_its_state_depends_on(own_gpt2: EditableModel, name: str) -> None:
    whole, part = own_gpt2.fingerprint(), own_gpt2.fingerprint(through=1)
    _nudge(own_gpt2.model.get_parameter(name))
    assert own_gpt2.fingerprint() != whole
    assert (own_gpt2.fingerprint(through=1) == part) == (name in ABOVE)


@pytest.mark.parametrize("tiny_models", ["gptj", "llama", "gpt-neox"], indirect=True)
def test_fingerprint_through_a_layer_leaves_an_untied_head_out(tiny_models: EditableModel) -> None:
    network = copy.deepcopy(tiny_models.model)
    own = EditableModel(network, tiny_models.tokenizer)
    whole, part = own.fingerprint(), own.fingerprint(through=1)
    for parameter in network.get_output_embeddings().parameters():
        _nudge(parameter)
    assert own.fingerprint() != whole
    assert own.fingerprint(through=1) == part


def test_fingerprint_sees_a_transposed_weight(own_gpt2: EditableModel) -> None:
    """Equal values in another order are other values."""
    before = own_gpt2.weight_fingerprint(0)
    weight = own_gpt2.weight(0)
    own_gpt2.projection(0).weight = nn.Parameter(weight.detach().T.reshape(weight.shape).clone())
    assert own_gpt2.weight_fingerprint(0) != before
