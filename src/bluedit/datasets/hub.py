"""Rows of data sets of the Hugging Face hub, or of a local folder of data files, through the package `datasets`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from bluedit.datasets.containers import Row
from bluedit.errors import DatasetError, first_line

__all__ = ["HubName", "hub_rows"]

_DATA_FILES = (".json", ".jsonl", ".csv", ".parquet")
_SPLITS = ("test", "validation", "train")


@dataclass(frozen=True, kw_only=True)
class HubName:
    """What `NAME[:CONFIG[:SPLIT]][@REVISION]` says. CONFIG may be a data file inside the data set: `test_cf.json`."""

    name: str
    config: str = ""
    split: str = ""
    revision: str = ""

    @classmethod
    def of(cls, text: str) -> HubName:
        """**Raises** :class:`~bluedit.errors.DatasetError` for a text of another form."""
        address, _, revision = text.partition("@")
        parts = address.split(":")
        if not parts[0].strip() or len(parts) > 3:
            raise DatasetError(f"hub:{text}", ["names no data set; write hub:NAME[:CONFIG[:SPLIT]][@REVISION]"])
        name, config, split = [*parts, "", ""][:3]
        return cls(name=name, config=config, split=split, revision=revision)


def hub_rows(spec: str) -> Iterator[Row]:
    """The rows of a data set, streamed: nothing is downloaded beyond what is read.

    The split is `test`, `validation` or `train`, the first that there is, unless one is named. A revision pins what the hub
    holds under a name.

    **Raises** :class:`~bluedit.errors.DatasetError` where the package is missing, or the data set cannot be read.
    """
    wanted = HubName.of(spec)
    source = f"hub:{spec}"
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DatasetError(source, ["needs the package datasets; pip install 'bluedit[hub]'"]) from error
    file = wanted.config if PurePosixPath(wanted.config).suffix.lower() in _DATA_FILES else None
    options: dict[str, Any] = {"data_files": file} if file else {"name": wanted.config or None}
    try:
        splits = datasets.load_dataset(wanted.name, streaming=True, revision=wanted.revision or None, **options)
        chosen = wanted.split or next((split for split in _SPLITS if split in splits), next(iter(splits), ""))
        if chosen not in splits:
            raise DatasetError(source, [f"has no split {chosen!r}; it has {', '.join(splits)}"])
        for number, record in enumerate(splits[chosen], start=1):
            yield Row(place=f"{chosen}, record {number}", record=record)
    except DatasetError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        # What the package says of a file that does not fit names classes of its own; the place is what helps.
        reason = re.sub(r"\s+", " ", first_line(error))
        raise DatasetError(source, [f"cannot be read: {reason}; check the name, and that there is a network"]) from error
