"""llama.cpp, as it is prebuilt in the package xllamacpp: a file's greedy answers, with an adapter beside it or without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["greedy", "probabilities"]


def greedy(
    path: Path, prompts: Sequence[Sequence[int]], tokens: int, adapter: Path | None = None, context: int = 256
) -> list[list[int]]:
    """What llama.cpp answers to prompts, as tokens: always the most likely one. At most `tokens` of them each."""
    return [[token for token, _ in answer] for answer in probabilities(path, prompts, tokens, adapter, context)]


def probabilities(
    path: Path,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    adapter: Path | None = None,
    context: int = 256,
    banned: Sequence[int] = (),
) -> list[list[tuple[int, float]]]:
    """The same with the log-probability of each token. Tokens that are `banned` are never answered.

    llama.cpp says nothing of tokens that end within a character.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = context, 1, 1
    params.warmup, params.verbosity, params.fit_params = False, -1, False
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server: Any = xllamacpp.Server(params)
    return [_answer(server, list(prompt), tokens, banned) for prompt in prompts]


def _answer(server: Any, prompt: list[int], tokens: int, banned: Sequence[int]) -> list[tuple[int, float]]:
    request: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1, "cache_prompt": False}
    request["logit_bias"] = [[token, False] for token in banned]
    answer = server.handle_completions(request)
    return [(int(one["id"]), float(one["logprob"])) for one in answer["choices"][0]["logprobs"]["content"]]
