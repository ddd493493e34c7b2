"""Editors: what turns facts into an edit of a model."""
