"""Models with random weights, from configurations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

__all__ = ["random_model"]


def random_model(config: Any, seed: int = 0) -> PreTrainedModel:
    """A causal language model with the weights that the configuration draws, in float32 and evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms start at constants, which would hide that they are used
                torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.1)
    return model.float().eval()
