"""Texts that models write, and layers chosen from a trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from bluedit.models import EditableModel
from bluedit.models.generation import generate
from bluedit.models.respondent import ModelRespondent
from bluedit.tracing.choice import choose_layers

PROMPTS = ("I", "The mother tongue of Zhara Vrelk is", "You", "Zhara Vrelk was born in the town of")


def test_a_text_does_not_depend_on_the_prompts_beside_it(tiny_models: EditableModel) -> None:
    together = generate(tiny_models, PROMPTS, max_new_tokens=6)
    assert together == [generate(tiny_models, [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    for prompt, text in zip(PROMPTS, together, strict=True):
        assert text.startswith(prompt)
        assert len(text) > len(prompt)


def test_sampled_texts_are_those_of_the_seed(tiny_gpt2: EditableModel) -> None:
    def texts(**options: Any) -> list[str]:
        return generate(tiny_gpt2, PROMPTS, max_new_tokens=8, **options)

    assert texts(top_k=20, seed=1) == texts(top_k=20, seed=1) != texts(top_k=20, seed=2)
    assert texts(top_k=20, seed=1) != texts()
    assert texts(top_k=1, seed=1) == texts(), "of one token to choose from it is the greedy text"


def test_a_respondent_samples_with_its_seed(tiny_gpt2: EditableModel) -> None:
    respondent = ModelRespondent(tiny_gpt2)
    one, other = (respondent.generate(PROMPTS, max_new_tokens=8, top_k=20, seed=seed) for seed in (1, 2))
    assert one != other
    assert list(other) == generate(tiny_gpt2, PROMPTS, max_new_tokens=8, top_k=20, seed=2)


def test_the_first_critical_layer_is_where_mlps_write_and_the_last_where_the_state_holds() -> None:
    """MLPs have at least half of their largest effect from layer 1 on, hidden states up to layer 2."""
    effects = {"mlp": np.array([[0.1, 1.0, 0.2, 0.1]] * 4), "layer": np.array([[0.8, 1.0, 0.6, 0.1]] * 4)}
    trace: Any = SimpleNamespace(settings=SimpleNamespace(components=("layer", "mlp")), effects=effects.__getitem__)
    choice = choose_layers(trace)
    assert (choice.layers, choice.peak) == ((1, 2), 1)
