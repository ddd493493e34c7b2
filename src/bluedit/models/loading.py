"""Load a model by folder, GGUF file, hub name, or the name of a model that is embedded or got."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bluedit.errors import ModelError, excerpt, first_line, shortened
from bluedit.models.configuration import read_configuration
from bluedit.models.editable import EditableModel
from bluedit.models.embedded import DOWNLOADS, EMBEDDED
from bluedit.models.getting import get_model, model_got
from bluedit.models.gguf import is_gguf
from bluedit.models.layout.maps import ModuleMap
from bluedit.models.opening import open_model
from bluedit.models.weight_files import read_weight_files
from bluedit.progress import Progress, silent

__all__ = ["load_model", "locate", "model_folder", "resolve_model"]

_LONGEST_NAME = 4000
"""Characters of a path; systems take no longer ones."""


def resolve_model(name: str, progress: Progress = silent) -> str:
    """The folder, GGUF file or hub name behind a model's name.

    An existing folder or file wins over an embedded model, that over one that bluedit gets (which is done now, if it is not
    here), and that over a hub name.

    **Raises** :class:`~bluedit.errors.ModelError` for a folder without a model in it, for a path that is not there, and for a
    model that cannot be got.
    """
    source = locate(name)
    if source in DOWNLOADS:
        source = get_model(name, progress=progress)
    if isinstance(source, Path) and source.is_dir():
        _check_folder(source)
    return str(source)


def locate(name: str) -> Path | str:
    """The folder or GGUF file behind a model's name, whatever is in it, or else the name, of a model to get or of the hub.

    **Raises** :class:`~bluedit.errors.ModelError` for any other file, and for a path that is not there.
    """
    path = Path(name).expanduser()
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise ModelError(f"{excerpt(name)} is not the name of a model")
    if path.is_dir():
        return path
    if path.is_file():
        if is_gguf(path):
            return path
        raise ModelError(
            f"{shortened(name)} is a file, but not a GGUF file; --model takes the folder that holds config.json and the weights"
        )
    if name in EMBEDDED:
        return EMBEDDED[name]
    if name in DOWNLOADS:
        return model_got(name) or name
    # A hub name is "owner/name" or a bare name; anything that looks like a path was meant as one.
    if name.lower().endswith(".gguf"):
        raise ModelError(f"the GGUF file {excerpt(name)} does not exist")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise ModelError(f"the model folder {excerpt(name)} does not exist")
    return name


def model_folder(name: str) -> Path | None:
    """The folder that a model is loaded from; for a hub name the one in the local cache, once the model was loaded.

    None for a GGUF file.

    **Raises** :class:`~bluedit.errors.ModelError` where there is none.
    """
    source = locate(name)
    if isinstance(source, Path):
        return source if source.is_dir() else None
    from transformers.utils.hub import cached_file

    try:
        config = cached_file(source, "config.json", local_files_only=True)
    except OSError as error:
        raise ModelError(f"the files of {name!r} are not in the local cache: {first_line(error)}") from error
    assert config is not None
    return Path(config).parent


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{path} is not a model folder: it has no config.json; give a folder written by save_pretrained, "
            f"a hub name, or an embedded model ({', '.join(sorted(EMBEDDED))})"
        )
    read_configuration(path / "config.json")
    if broken := read_weight_files(path).broken:
        name, problem = next(iter(broken.items()))
        raise ModelError(f"the model {str(path)!r} could not be loaded: {name} {problem}; fetch the folder again")
    if not any(path.glob("*.safetensors")):
        pickled = any(path.glob("*.bin"))
        raise ModelError(
            f"{path} holds no .safetensors weights"
            + (
                "; its .bin files are pickles, which bluedit does not open: convert them with save_pretrained"
                if pickled
                else ""
            )
        )


def load_model(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    module_map: ModuleMap | str | Path | None = None,
    trust_remote_code: bool = False,
    chat: bool = False,
    progress: Progress = silent,
    **kwargs: Any,
) -> EditableModel:
    """Load a causal language model and its tokenizer, ready to edit.

    **Arguments**

    - `name`: a folder written by `save_pretrained`, a GGUF file, a hub name, an embedded model such as `gpt2-mini`, or one that
      is got when it is first used, such as `smollm2-135m-instruct`.
    - `device`: where the model goes; a GPU when there is one. `auto`: spread over all GPUs, and refused where they do not
      hold all of it.
    - `dtype`: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own. Left out: float32 on a CPU, `auto` on
      a GPU. The numbers of a GGUF file are float32 once they are dequantised.
    - `module_map`: where the parts of the model are, or a file that says so; for layouts that are not recognised.
    - `trust_remote_code`: run code that comes with the checkpoint. Off unless you say so.
    - `chat`: put every prompt into the model's chat template; see :class:`~bluedit.models.inputs.tokens.PromptTokenizer`.
    - `progress`: told what takes long, see :class:`~bluedit.progress.Progress`: getting a model, dequantising.
    - `kwargs`: passed to `AutoModelForCausalLM.from_pretrained`; with a `device_map` among them the model stays where that
      puts it.

    **Raises** :class:`~bluedit.errors.ModelError` when there is no such model or it cannot be edited.
    """
    source = resolve_model(str(name), progress)
    return open_model(
        source,
        name=name,
        device=device,
        dtype=dtype,
        module_map=module_map,
        trust_remote_code=trust_remote_code,
        chat=chat,
        progress=progress,
        **kwargs,
    )
