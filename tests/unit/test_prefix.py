"""SuffixBatch: rerunning only what a change can reach gives what a whole forward pass gives, gradients included.

Truth is the plain model with a hook that adds the same delta at the subject's last token. Rows are of mixed lengths;
one has its subject at position 0, so that nothing is before it, and one ends with its subject.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from random_models import random_model
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, MptConfig, PreTrainedConfig

from bluedit.facts import Fact
from bluedit.models import Batch, EditableModel, Row
from bluedit.models.forward.prefix import Injection, SuffixBatch

LAYERS = [0, 1, 2, 3]
CLOSE = {"atol": 2e-5, "rtol": 1e-5}

FACTS = (
    Fact("q was born in", "q", "Rome"),  # one token: the subject's last is at position 0
    Fact("The mother of the person called {} was born in the town of", "Zhara Vrelk", "the river"),
    Fact("{} is", "Ezl", "a gardener"),
    Fact("The name is {}", "Kvel & Co", "x"),  # the subject ends the prompt
)


@pytest.fixture
def rows(tiny_models: EditableModel) -> list[Row]:
    made = [tiny_models.text.row(fact, with_target=True) for fact in FACTS]
    assert made[0].subject == 0
    assert len(made[3].ids) - len(made[3].target) == made[3].subject
    return made


@pytest.fixture(name="delta_BD")
def random_deltas() -> Tensor:
    return torch.randn(len(FACTS), 32, generator=torch.Generator().manual_seed(3))


def _everywhere(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Every row's positions from its subject on, counted from the subject."""
    places = [(index, place) for index, row in enumerate(rows) for place in range(len(row.ids) - row.subject)]
    return tuple(torch.tensor(places).T)  # type: ignore[return-value]


def _plain(model: EditableModel, rows: Sequence[Row], layer: int, delta_BD: Tensor) -> Tensor:
    """The logits at all these places by one whole forward pass per row, nothing padded and nothing cached."""

    def logits(row: Row, delta_D: Tensor) -> Tensor:
        def inject(hidden: Tensor) -> Tensor:
            return hidden.index_add(1, torch.tensor([row.subject]), delta_D[None, None])

        with model.hooked(layer, "layer", inject):
            return model.forward(Batch.of([row], "cpu"))[0, row.subject :]

    return torch.cat([logits(row, delta_D) for row, delta_D in zip(rows, delta_BD, strict=True)])


def _changed(suffixes: SuffixBatch, delta_BD: Tensor) -> Tensor:
    states_BSD = suffixes.states_BSD
    return torch.cat([(states_BSD[:, 0] + delta_BD)[:, None], states_BSD[:, 1:]], 1)


@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_unchanged_states_give_the_plain_logits(tiny_models: EditableModel, rows: list[Row], layer: int) -> None:
    suffixes = SuffixBatch(tiny_models, rows, layer)
    expected = _plain(tiny_models, rows, layer, torch.zeros(len(rows), tiny_models.structure.d_model))
    torch.testing.assert_close(suffixes.logits(suffixes.states_BSD, *_everywhere(rows)), expected, **CLOSE)


@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_changed_states_give_the_logits_of_an_injection(
    tiny_models: EditableModel, rows: list[Row], delta_BD: Tensor, layer: int
) -> None:
    suffixes = SuffixBatch(tiny_models, rows, layer)
    unchanged = suffixes.logits(suffixes.states_BSD, *_everywhere(rows))
    changed = suffixes.logits(_changed(suffixes, delta_BD), *_everywhere(rows))
    assert (changed - unchanged).abs().max() > 0.1
    torch.testing.assert_close(changed, _plain(tiny_models, rows, layer, delta_BD), **CLOSE)


@torch.no_grad()
def test_states_are_the_layers_output_from_the_subject_on(tiny_models: EditableModel, rows: list[Row]) -> None:
    suffixes = SuffixBatch(tiny_models, rows, 2)
    torch.testing.assert_close(suffixes.states_BSD[:, 0], tiny_models.subject_states(rows, 2, "layer"), **CLOSE)


@pytest.mark.parametrize("chosen", [[3, 1], [0], [2, 2, 0]], ids=str)
@pytest.mark.parametrize("layer", [0, 2, 3])
@torch.no_grad()
def test_selected_rows_go_on_alone(
    tiny_models: EditableModel, rows: list[Row], delta_BD: Tensor, layer: int, chosen: list[int]
) -> None:
    suffixes = SuffixBatch(tiny_models, rows, layer)
    suffixes.logits(suffixes.states_BSD, *_everywhere(rows))  # an evaluation before it leaves nothing behind
    suffixes.select(torch.tensor(chosen))
    kept = [rows[index] for index in chosen]
    assert list(suffixes.rows) == kept
    logits = suffixes.logits(_changed(suffixes, delta_BD[chosen]), *_everywhere(kept))
    torch.testing.assert_close(logits, _plain(tiny_models, kept, layer, delta_BD[chosen]), **CLOSE)


@torch.no_grad()
def test_rows_with_nothing_before_their_subject(tiny_models: EditableModel, rows: list[Row], delta_BD: Tensor) -> None:
    """No row has a prefix: the cache is empty."""
    bare = [rows[0], rows[0]]
    suffixes = SuffixBatch(tiny_models, bare, 1)
    logits = suffixes.logits(_changed(suffixes, delta_BD[:2]), *_everywhere(bare))
    torch.testing.assert_close(logits, _plain(tiny_models, bare, 1, delta_BD[:2]), **CLOSE)


@torch.no_grad()
def test_rows_as_long_as_the_context(tiny_models: EditableModel, delta_BD: Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    length = tiny_models.context_length
    full = [
        Row(tuple(torch.randint(1, 500, (length,), generator=generator).tolist()), subject=length - 2),
        Row(tuple(torch.randint(1, 500, (length,), generator=generator).tolist()), subject=3),
    ]
    suffixes = SuffixBatch(tiny_models, full, 1)
    logits = suffixes.logits(_changed(suffixes, delta_BD[:2]), *_everywhere(full))
    torch.testing.assert_close(logits, _plain(tiny_models, full, 1, delta_BD[:2]), **CLOSE)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_gradients_are_those_of_an_injection(tiny_models: EditableModel, rows: list[Row], delta_BD: Tensor, layer: int) -> None:
    with tiny_models.frozen():
        ours = delta_BD.clone().requires_grad_()
        suffixes = SuffixBatch(tiny_models, rows, layer)
        logits = suffixes.logits(_changed(suffixes, ours), *_everywhere(rows))
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4)) / len(logits)
        (got,) = torch.autograd.grad((logits.log_softmax(-1) * weights).sum(), ours)
        theirs = delta_BD.clone().requires_grad_()
        plain = _plain(tiny_models, rows, layer, theirs)
        (expected,) = torch.autograd.grad((plain.log_softmax(-1) * weights).sum(), theirs)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_evaluations_do_not_depend_on_one_another(tiny_models: EditableModel, rows: list[Row], delta_BD: Tensor) -> None:
    """A cache that grew with each evaluation would show here."""
    suffixes = SuffixBatch(tiny_models, rows, 1)
    with torch.no_grad():
        first = suffixes.logits(_changed(suffixes, delta_BD), *_everywhere(rows))
        suffixes.logits(_changed(suffixes, -delta_BD), *_everywhere(rows))
        again = suffixes.logits(_changed(suffixes, delta_BD), *_everywhere(rows))
    torch.testing.assert_close(again, first, atol=0, rtol=0)


_SMALL = {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(MistralConfig(**_SMALL, intermediate_size=40, sliding_window=5), id="sliding window"),
        pytest.param(Gemma2Config(**_SMALL, intermediate_size=40, head_dim=8, sliding_window=5), id="mixed windows, soft caps"),
        pytest.param(LlamaConfig(**_SMALL, intermediate_size=40, attn_implementation="eager"), id="eager attention"),
    ],
)
@torch.no_grad()
def test_kinds_of_attention(tiny_gpt2: EditableModel, delta_BD: Tensor, config: PreTrainedConfig) -> None:
    """What an architecture does with distances and masks stays its own: the window is shorter than the prompts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = EditableModel(AutoModelForCausalLM.from_config(config).float().eval(), tiny_gpt2.tokenizer)
    rows = [model.text.row(fact, with_target=True) for fact in FACTS]
    suffixes = SuffixBatch(model, rows, 1)
    logits = suffixes.logits(_changed(suffixes, delta_BD), *_everywhere(rows))
    torch.testing.assert_close(logits, _plain(model, rows, 1, delta_BD), **CLOSE)


@torch.no_grad()
def test_half_precision(own_gpt2: EditableModel) -> None:
    """States, cache and masks keep the model's own type; the tolerance is that of eight bits."""
    own_gpt2.model.to(torch.bfloat16)
    rows = [own_gpt2.text.row(fact, with_target=True) for fact in FACTS]
    suffixes = SuffixBatch(own_gpt2, rows, 1)
    assert suffixes.states_BSD.dtype == torch.bfloat16
    logits = suffixes.logits(suffixes.states_BSD, *_everywhere(rows))
    expected = _plain(own_gpt2, rows, 1, torch.zeros(len(rows), 32, dtype=torch.bfloat16))
    assert (logits - expected).norm() < 0.05 * expected.norm()


# -- the model is as before --------------------------------------------------------------------------------------------


def _modules(model: EditableModel) -> list[tuple[str, int, int]]:
    return [(name, id(module), len(module._forward_hooks)) for name, module in model.model.named_modules()]


def test_model_is_as_before(tiny_models: EditableModel, rows: list[Row]) -> None:
    before = _modules(tiny_models)
    suffixes = SuffixBatch(tiny_models, rows, 1)
    assert _modules(tiny_models) == before
    suffixes.logits(suffixes.states_BSD, *_everywhere(rows))
    assert _modules(tiny_models) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_model_is_as_before_when_a_pass_fails(tiny_models: EditableModel, rows: list[Row], error: type[BaseException]) -> None:
    suffixes = SuffixBatch(tiny_models, rows, 1)
    before = _modules(tiny_models)

    def fail(_: Tensor) -> None:
        raise error("stopped")

    with tiny_models.hooked(3, "mlp", fail):
        with pytest.raises(error, match="stopped"):
            suffixes.logits(suffixes.states_BSD, *_everywhere(rows))
        with pytest.raises(error, match="stopped"):
            SuffixBatch(tiny_models, rows, 1)
    assert _modules(tiny_models) == before
    with torch.no_grad():  # and still usable
        expected = _plain(tiny_models, rows, 1, torch.zeros(len(rows), 32))
        torch.testing.assert_close(suffixes.logits(suffixes.states_BSD, *_everywhere(rows)), expected, **CLOSE)


@torch.no_grad()
def test_moved_rows_that_a_model_without_positions_could_not_hold(tiny_gpt2: EditableModel, delta_BD: Tensor) -> None:
    """A long prefix beside a long suffix is longer than the context; MPT's distances end there."""
    config = MptConfig(d_model=32, n_heads=4, n_layers=4, max_seq_len=24, vocab_size=500, expansion_ratio=2)
    model = EditableModel(random_model(config), tiny_gpt2.tokenizer)
    generator = torch.Generator().manual_seed(5)
    ids = [tuple(torch.randint(1, 500, (24,), generator=generator).tolist()) for _ in range(2)]
    full = [Row(ids[0], subject=22), Row(ids[1], subject=3)]
    logits = Injection(model, full, 1, ("layer",)).logits(delta_BD[None, :2], *_everywhere(full))
    torch.testing.assert_close(logits, _plain(model, full, 1, delta_BD[:2]), **CLOSE)
