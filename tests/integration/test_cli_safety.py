"""What a command may never cost: files that are not bluedit's, bits of a checkpoint, a session."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from command_line import Run
from safetensors.torch import load_file, save_file


@pytest.fixture
def patch(edit: Run, facts: Path, tmp_path: Path) -> Path:
    path = tmp_path / "patch"
    assert edit("--facts", facts, "--out", path).code == 0
    return path


@pytest.fixture
def model(saved_tiny_gpt2: Path, tmp_path: Path) -> Path:
    """A model's folder with files in it that transformers does not know, as people have them."""
    folder = tmp_path / "model"
    shutil.copytree(saved_tiny_gpt2, folder)
    (folder / "README.md").write_text("Trained by us.\n")
    (folder / "runs").mkdir()
    (folder / "runs" / "log.txt").write_text("step 1\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"note": "kept as it is"}, indent=7))
    (folder / "elsewhere").symlink_to("/nowhere/at/all")
    (folder / "older").symlink_to("runs")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- what is replaced ------------------------------------------------------------------------------------------------


def test_folder_with_a_config_and_a_thesis_is_not_replaced(run: Run, patch: Path, model: Path, tmp_path: Path) -> None:
    project = tmp_path / "proj"
    project.mkdir()
    (project / "config.json").write_text("{}")
    (project / "thesis.tex").write_text("x")
    before = contents(tmp_path)
    outcome = run("patch", "apply", patch, "--model", model, "--out", project, "--force")
    assert outcome.code == 2
    assert (
        "proj is not a checkpoint that bluedit patched (it holds config.json, thesis.tex), and is not replaced"
        in outcome.stderr
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["apply", "revert"])
@pytest.mark.parametrize("out", ["model", "model/inner", "."])
def test_the_model_is_never_the_output(run: Run, patch: Path, model: Path, tmp_path: Path, command: str, out: str) -> None:
    source = tmp_path / "model"
    if command == "revert":
        assert run("patch", "apply", patch, "--model", model, "--out", tmp_path / "patched").code == 0
        shutil.rmtree(model)
        (tmp_path / "patched").rename(source)
    before = contents(tmp_path)
    arguments = ("patch", command, *((patch,) if command == "apply" else ()), "--model", source, "--out", tmp_path / out)
    outcome = run(*arguments, "--force")
    assert outcome.code == 2
    assert "choose" in outcome.stderr
    assert contents(tmp_path) == before


def test_checkpoint_is_replaced_only_while_nothing_else_is_in_it(run: Run, patch: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "patched"
    apply = ("patch", "apply", patch, "--model", model, "--out", out)
    assert run(*apply).code == 0
    first = contents(out)
    assert "exists already" in run(*apply).stderr
    assert run(*apply, "--force").code == 0
    assert contents(out) == first
    (out / "thesis.tex").write_text("mine")
    outcome = run(*apply, "--force")
    assert (outcome.code, "thesis.tex" in outcome.stderr) == (2, True)
    assert contents(out) == first | {"thesis.tex": b"mine"}


@pytest.mark.parametrize("kind", ["patch folder", "patch file"])
def test_an_edit_replaces_patches_only(edit: Run, facts: Path, tmp_path: Path, saved_tiny_gpt2: Path, kind: str) -> None:
    out = tmp_path / ("out" if kind == "patch folder" else "out.safetensors")
    if kind == "patch folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        shutil.copyfile(saved_tiny_gpt2 / "model.safetensors", out)
    before = contents(tmp_path)
    outcome = edit("--facts", facts, "--out", out, "--force")
    assert outcome.code == 2
    assert "is not a patch that bluedit wrote" in outcome.stderr
    assert contents(tmp_path) == before


@pytest.mark.parametrize("option", ["stats --export", "tune --out", "trace --out", "run --out"])
def test_other_outputs_replace_their_own_only(
    run: Run, saved_tiny_gpt2: Path, corpus_file: Path, facts: Path, tmp_path: Path, option: str
) -> None:
    out = tmp_path / "thesis.tex"
    out.write_text("mine")
    model = ("--model", saved_tiny_gpt2)
    arguments: dict[str, tuple[Any, ...]] = {
        "stats --export": ("stats", *model, "--corpus", f"text:{corpus_file}", "--layers", "1", "--export", out),
        "tune --out": ("tune", *model, "--facts", facts, "--corpus", f"text:{corpus_file}", "--layers", "1,2", "--out", out),
        "trace --out": ("trace", *model, "--facts", facts, "--out", out),
        "run --out": ("run", "mini/sequential", "--facts", "2", "--out", out),
    }
    outcome = run(*arguments[option], "--force")
    assert outcome.code == 2, outcome.stderr
    assert "is not replaced" in outcome.stderr
    assert out.read_text() == "mine"


# -- byte for byte ---------------------------------------------------------------------------------------------------


def test_apply_and_revert_give_the_folder_again_byte_for_byte(run: Run, patch: Path, model: Path, tmp_path: Path) -> None:
    before = contents(model)
    assert run("patch", "apply", patch, "--model", model, "--out", tmp_path / "patched").code == 0
    assert contents(model) == before
    patched = contents(tmp_path / "patched")
    differing = {name for name in before if patched.get(name) != before[name]}
    assert differing == {".git/HEAD", "model.safetensors"}, "all else is copied; .git is left out"
    assert len(patched["model.safetensors"]) == len(before["model.safetensors"])
    assert run("patch", "revert", "--model", tmp_path / "patched", "--out", tmp_path / "back").code == 0
    assert contents(tmp_path / "back") == {name: content for name, content in before.items() if name != ".git/HEAD"}


def test_links_to_folders_and_to_nothing_stay_links(run: Run, patch: Path, model: Path, tmp_path: Path) -> None:
    assert run("patch", "apply", patch, "--model", model, "--out", tmp_path / "patched").code == 0
    assert run("patch", "revert", "--model", tmp_path / "patched", "--out", tmp_path / "back").code == 0
    for name in ("elsewhere", "older"):
        assert (tmp_path / "back" / name).readlink() == (model / name).readlink()


def test_sharded_checkpoint_keeps_its_shards(run: Run, patch: Path, model: Path, tmp_path: Path) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-1-of-2.safetensors": names[: len(names) // 2], "model-2-of-2.safetensors": names[len(names) // 2 :]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, model / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    before = contents(model)
    assert run("patch", "apply", patch, "--model", model, "--out", tmp_path / "patched").code == 0
    assert run("patch", "revert", "--model", tmp_path / "patched", "--out", tmp_path / "back").code == 0
    del before[".git/HEAD"]
    assert contents(tmp_path / "back") == before
    assert (tmp_path / "patched" / "model-1-of-2.safetensors").is_file()


def test_another_precision_is_written_by_transformers_and_keeps_the_other_files(
    run: Run, patch: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "half"
    assert run("patch", "apply", patch, "--model", model, "--out", out, "--dtype", "bfloat16", "--no-check").code == 0
    written = contents(out)
    assert written["README.md"] == b"Trained by us.\n"
    assert written["tokenizer_config.json"] == (model / "tokenizer_config.json").read_bytes()
    assert {tensor.element_size() for tensor in load_file(out / "model.safetensors").values()} == {2}


def test_weights_in_other_formats_are_copied_and_named(run: Run, patch: Path, model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"old weights")
    outcome = run("patch", "apply", patch, "--model", model, "--out", tmp_path / "patched")
    assert outcome.code == 0
    assert "without the patch: pytorch_model.bin" in outcome.stderr
    assert (tmp_path / "patched" / "pytorch_model.bin").read_bytes() == b"old weights"


def test_every_file_has_the_mode_that_the_umask_gives(run: Run, patch: Path, model: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run("patch", "apply", patch, "--model", model, "--out", tmp_path / "patched").code == 0
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "patched").rglob("*") if not path.is_symlink()}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o640}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o750}


# -- damage ----------------------------------------------------------------------------------------------------------


def test_one_flipped_bit_of_a_patch_is_refused_by_the_name_of_its_file(
    run: Run, patch: Path, model: Path, tmp_path: Path
) -> None:
    file = patch / "patch.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x40
    file.write_bytes(content)
    outcome = run("patch", "apply", patch, "--model", model, "--out", tmp_path / "patched")
    assert outcome.code == 2
    assert f"error: {file} is damaged: transformer.h." in outcome.stderr
    assert not (tmp_path / "patched").exists()


# -- sessions --------------------------------------------------------------------------------------------------------


def test_session_is_shown_and_its_last_batch_undone(
    edit: Run, run: Run, facts: Path, saved_tiny_gpt2: Path, tmp_path: Path
) -> None:
    session = tmp_path / "session"
    options = ("--facts", facts, "--batch-size", 2, "--session", session)
    whole = edit(*options, "--out", tmp_path / "whole", "--json").document
    assert run("session", "show", session, "--json").document["batches"] == [2, 2, 2]
    undone = run("session", "undo", session, "--model", saved_tiny_gpt2, "--batches", 2, "--json").document
    assert undone["batches"] == [2]
    assert "1 batches, 2 facts: 2" in run("session", "show", session).stdout
    again = edit(*options, "--out", tmp_path / "again", "--json").document
    assert again["weights"] == whole["weights"]
    assert run("session", "undo", session, "--model", saved_tiny_gpt2, "--batches", 9).code == 2
    assert run("session", "show", tmp_path).code == 2


@pytest.mark.parametrize("change", ["corpus", "samples"])
def test_session_is_not_gone_on_with_other_text(edit: Run, facts: Path, tmp_path: Path, corpus_file: Path, change: str) -> None:
    session = tmp_path / "session"
    options = ("--facts", facts, "--batch-size", 2, "--session", session)
    assert edit(*options, "--limit", 4, "--out", tmp_path / "first").code == 0
    before = contents(session)
    other = tmp_path / "other.txt"
    other.write_text("another text\n")
    changed = ("--corpus", f"text:{other}") if change == "corpus" else ("--samples", 20)
    outcome = edit(*options, *changed, "--out", tmp_path / "second")
    assert outcome.code == 2
    assert f"holds a session with other {change} (" in outcome.stderr
    assert contents(session) == before
    assert edit(*options, "--out", tmp_path / "second").code == 0
