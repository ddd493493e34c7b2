"""The embedded models: small, real Hugging Face folders that ship inside the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EMBEDDED"]

EMBEDDED: dict[str, Path] = {"gpt2-mini": Path(__file__).parent / "gpt2-mini"}
"""Folders of the embedded models by name."""
