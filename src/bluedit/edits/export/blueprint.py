"""The model that an export belongs to, looked at without its weights: names, shapes and orientation, from headers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bluedit.edits.base import Edit
from bluedit.errors import ModelError, PatchError, first_line
from bluedit.models.configuration import check_sizes
from bluedit.models.getting import origin_of, original_file
from bluedit.models.gguf import GgufHeader, read_gguf, read_gguf_config
from bluedit.models.loading import resolve_model
from bluedit.progress import Progress, silent

__all__ = ["Blueprint", "read_blueprint", "with_original_file"]

_RECORD = "bluedit/applied.json"
"""In a checkpoint that holds patches already."""


@dataclass(frozen=True)
class Blueprint:
    """A model without numbers.

    - `name`: what the user called it; `source`: the folder, GGUF file or hub name behind that.
    - `config`: of transformers; `network`: the modules, on the meta device.
    - `gguf`: the header of its GGUF file: the model's own, or the one that its folder was dequantised from.
    """

    name: str
    source: str
    config: Any
    network: Any
    gguf: GgufHeader | None

    @property
    def base_name(self) -> str:
        """What loads exactly this model elsewhere: a hub name where it is from there, else the path."""
        folder = Path(self.source)
        if not folder.exists():
            return self.source
        origin = origin_of(folder) if folder.is_dir() else None
        return str(origin["from"]) if origin and origin.get("source") == "hub" else str(folder.absolute())

    def check(self, edit: Edit) -> None:
        """**Raises** :class:`~bluedit.errors.PatchError` for an edit that changes no weights, or others than this model has."""
        if not edit.changes:
            raise PatchError(
                f"an edit of kind {edit.kind!r} that changes no weights cannot be exported; keep its own file, and apply that "
                "to the model when it is loaded"
            )
        edit.check_fit(self.network, check=False)


def read_blueprint(name: str, *, trust_remote_code: bool = False, progress: Progress = silent) -> Blueprint:
    """Look a model over by its name, as :func:`~bluedit.models.load_model` takes it. Nothing but headers is read.

    **Raises** :class:`~bluedit.errors.ModelError` where there is no such model, or transformers cannot build it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

    source = resolve_model(name, progress)
    path = Path(source)
    header = read_gguf(path) if path.is_file() else None
    try:
        if header is None:
            check_sizes(PretrainedConfig.get_config_dict(source)[0], f"the configuration of {name}")
            config: Any = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        else:
            config = read_gguf_config(header)
        with torch.device("meta"):
            network: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ModelError:
        raise
    except Exception as error:  # the architecture's own code runs here
        raise ModelError(f"the model {name!r} cannot be built from its configuration: {first_line(error)}") from error
    return Blueprint(name, source, config, network, header)


def with_original_file(blueprint: Blueprint, progress: Progress = silent) -> Blueprint:
    """The blueprint with the header of the GGUF file that the model's folder was dequantised from, if it was.

    A checkpoint that holds patches is not what its file was any more: it has none.
    """
    folder = Path(blueprint.source)
    if blueprint.gguf is not None or not folder.is_dir() or (folder / _RECORD).is_file():
        return blueprint
    file = original_file(folder, progress)
    return blueprint if file is None else replace(blueprint, gguf=read_gguf(file))
