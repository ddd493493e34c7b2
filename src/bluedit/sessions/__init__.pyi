from .files import SESSION, SESSION_MARKER, describe_session
from .sequence import edit_in_sequence
from .session import Session

__all__ = ["SESSION", "SESSION_MARKER", "Session", "describe_session", "edit_in_sequence"]
