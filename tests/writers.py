"""Writers without a model: what they say is known, so scores can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bluedit.models.generation import Completion, Stop

__all__ = ["Says"]


class Says:
    """Says a known text after each prompt, cut by the stop rule; tokens are numbers of words.

    `said`: by prompt, or a function of it. A prompt that is not in it is answered with nothing.
    """

    def __init__(self, said: Mapping[str, str] | Callable[[str], str]) -> None:
        self._said = said if callable(said) else lambda prompt: said.get(prompt, "")
        self.asked: list[str] = []
        self._words: dict[str, int] = {}

    def complete(
        self,
        prompts: Sequence[str],
        stop: Stop,
        *,
        top_k: int | None = None,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> list[Completion]:
        self.asked += prompts
        if progress is not None:
            progress(len(prompts))
        return [self._completion(prompt, stop) for prompt in prompts]

    def _completion(self, prompt: str, stop: Stop) -> Completion:
        text, stopped = stop.cut(self._said(prompt))
        words = text.split()[: stop.max_new_tokens]
        ids = tuple(self._words.setdefault(word, len(self._words)) for word in words)
        if len(text.split()) > stop.max_new_tokens:
            return Completion(prompt, " " + " ".join(words), ids, "length")
        return Completion(prompt, text, ids, "text" if stopped else "end")
