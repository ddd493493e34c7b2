"""Sequences of edits: the session, and its files."""

from bluedit.sessions.files import SESSION, SESSION_MARKER, describe_session
from bluedit.sessions.sequence import edit_in_sequence
from bluedit.sessions.session import Session

__all__ = ["SESSION", "SESSION_MARKER", "Session", "describe_session", "edit_in_sequence"]
