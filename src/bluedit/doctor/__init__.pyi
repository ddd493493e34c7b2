from .cost import plan_for, plan_line
from .examination import examine
from .report import Check, Examination, Status

__all__ = ["Check", "Examination", "Status", "examine", "plan_for", "plan_line"]
