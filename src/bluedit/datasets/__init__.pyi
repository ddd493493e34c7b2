from .cases import Case
from .reading import read_cases, read_dataset, read_known
from .world import World

__all__ = ["Case", "World", "read_cases", "read_dataset", "read_known"]
