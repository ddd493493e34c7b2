from .cases import Case, FollowUp, Question, fingerprint
from .reading import read_cases, read_dataset, read_known
from .world import World

__all__ = ["Case", "FollowUp", "Question", "World", "fingerprint", "read_cases", "read_dataset", "read_known"]
