"""Opening what `--model` names: a model, or a ledger, which is the model as its head has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bluedit.errors import LedgerError

if TYPE_CHECKING:
    from bluedit.edits import Ledger
    from bluedit.models import EditableModel

__all__ = ["ledger_model", "open_model"]


def open_model(name: str, **options: Any) -> EditableModel:
    """The model of a name, or of a ledger with the edits of its head; see :func:`~bluedit.models.load_model`."""
    from bluedit.edits import Ledger
    from bluedit.edits.ledger import is_ledger
    from bluedit.models import load_model

    if is_ledger(name):
        ledger = Ledger.open(name)
        model = ledger_model(ledger, **options)
        ledger.restore(model)
        return model
    return load_model(name, **options)


def ledger_model(ledger: Ledger, **options: Any) -> EditableModel:
    """The unedited model of a ledger, in the precision and with the prompts that the ledger was made with.

    **Raises** :class:`~bluedit.errors.LedgerError` where other ones are asked for.
    """
    from bluedit.models import load_model

    asked = options.pop("dtype", None)
    if asked not in (None, ledger.dtype):
        raise LedgerError(f"{ledger.folder} is of a model in {ledger.dtype}; leave --dtype out")
    options["chat"] = bool(options.get("chat")) or ledger.chat
    return load_model(ledger.model, dtype=ledger.dtype, **options)
