"""Causal tracing: which layers carry a fact, and from it which layers to edit."""
