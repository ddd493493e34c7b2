from .files import SESSION, SESSION_MARKER, describe_session
from .recording import drop_from_ledger, edit_into_ledger
from .resolving import drop_facts, merge_edits
from .sequence import edit_in_sequence
from .session import Session

__all__ = [
    "SESSION",
    "SESSION_MARKER",
    "Session",
    "describe_session",
    "drop_facts",
    "drop_from_ledger",
    "edit_in_sequence",
    "edit_into_ledger",
    "merge_edits",
]
