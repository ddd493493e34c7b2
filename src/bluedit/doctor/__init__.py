"""Looking a model over before it is edited (`bluedit doctor`): what it is, what is missing, what an edit would take.

Of weights nothing but the headers of files is read: the architecture is built without numbers (on PyTorch's meta device), so a
checkpoint of 70 billion parameters is looked over in seconds. Nothing is downloaded.
"""

from bluedit.doctor.cost import plan_for, plan_line
from bluedit.doctor.examine import examine
from bluedit.doctor.report import Check, Examination, Status

__all__ = ["Check", "Examination", "Status", "examine", "plan_for", "plan_line"]
