"""Files that the version before hashes wrote are read, with a word about what could not be checked; damaged ones are refused.

The files are in `tests/fixtures/formats`, with the commands that made them.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bluedit.datasets import read_known
from bluedit.editors.layer_cache import Choice
from bluedit.edits import Patch
from bluedit.edits.checkpoint import CHECKPOINT, read_applied
from bluedit.edits.manifest import FORMAT_VERSION
from bluedit.errors import InputError, PatchError, SessionError, StatisticsError
from bluedit.models import EditableModel, load_model
from bluedit.models.inputs.chat import Chat
from bluedit.sessions import Session, describe_session
from bluedit.statistics import SharedStatistics, Statistics, read_corpus
from bluedit.storage.files import writable_target
from bluedit.tracing.restoring import TraceSettings
from bluedit.tracing.trace import Trace, trace_cases
from bluedit.tuning import read_tuning

FORMATS = Path(__file__).parents[1] / "fixtures" / "formats"
PATCHES = {
    "patch-memit": "low rank",
    "patch-memit.safetensors": "low rank",
    "patch-rect.safetensors": "masked",
    "patch-ft-l.safetensors": "dense",
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
OLD = "of an earlier version, without"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the current folder: corpora are named by relative paths."""
    shutil.copytree(FORMATS, tmp_path / "formats")
    monkeypatch.chdir(tmp_path / "formats")
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "formats" / "cache"))
    return tmp_path / "formats"


@pytest.fixture
def model(folder: Path) -> EditableModel:
    return load_model(str(folder / "model"))


def _bits(model: EditableModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATCHES)
def test_patch_is_read_applied_reverted_and_saved_with_hashes(folder: Path, model: EditableModel, name: str) -> None:
    with pytest.warns(UserWarning, match=OLD):
        patch = Patch.load(folder / name)
    assert {change.kind for change in patch.changes.values()} == {PATCHES[name]}
    assert len(patch.facts) == 4
    before = _bits(model)
    with patch.applied(model):
        assert not _same(_bits(model), before)
    assert _same(_bits(model), before)

    patch.save(folder / f"again-{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Patch.load(folder / f"again-{name}")
    assert again.digest == patch.digest
    for weight, change in patch.changes.items():
        assert torch.equal(again.changes[weight].dense(), change.dense())


@pytest.mark.parametrize("name", PATCHES)
def test_patch_whose_change_has_another_norm_is_refused(folder: Path, name: str) -> None:
    """A flipped bit of an exponent, say."""
    file = folder / name / "patch.safetensors" if (folder / name).is_dir() else folder / name
    tensors = load_file(file)
    with (folder / name).open("rb") if (folder / name).is_file() else (folder / name / "patch.json").open("rb") as stream:
        start = stream.read()
    chosen = next(key for key in tensors if key.endswith(("gain", "change")))
    tensors[chosen].view(-1)[3] *= 2.0**60
    metadata: dict[str, str] = {}
    if file == folder / name:
        header = json.loads(start[8 : 8 + int.from_bytes(start[:8], "little")])
        metadata = header["__metadata__"]
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(PatchError, match=r"is damaged: the change of transformer\.h\.\d\.mlp\.c_proj\.weight has norm"):
        Patch.load(folder / name)


# -- sessions --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memit", "alphaedit"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def _facts(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "facts.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in ("id", "prompt", "subject", "target")} for row in rows]


def test_session_resumes_to_the_bits_that_the_earlier_version_gave(folder: Path, model: EditableModel, method: str) -> None:
    with pytest.warns(UserWarning, match=OLD):
        session = Session.resume(folder / f"session-{method}", model)
        expected = Patch.load(folder / f"finished-{method}.safetensors")
    session.apply(_facts(folder)[6:])
    merged = session.finish()
    assert merged.facts == expected.facts
    for weight, change in expected.changes.items():
        # Products are rounded as the machine's kernels round them.
        torch.testing.assert_close(merged.changes[weight].dense(), change.dense(), rtol=1e-5, atol=1e-7)


@pytest.fixture
def chatting(folder: Path) -> EditableModel:
    """The model with the chat template that the chat's patch and session were made with."""
    tokenizer = folder / "model" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"chat_template": CHAT_TEMPLATE}))
    return load_model(str(folder / "model"), chat=True)


def test_chat_is_read_by_the_names_it_was_stored_with(folder: Path, chatting: EditableModel) -> None:
    """In earlier versions its `separator` was called `joint`; what is saved again has the present name."""
    patch = Patch.load(folder / "patch-chat.safetensors")
    session = Session.resume(folder / "session-chat", chatting)
    assert patch.manifest.chat == chatting.text.chat == Chat("user: ", "\nassistant:", " ")
    session.save(folder / "session-chat")
    patch.save(folder / "again")
    for file in ("session-chat/session.json", "again/patch.json"):
        assert json.loads((folder / file).read_text())["chat"].keys() == {"before", "after", "separator"}
    assert Patch.load(folder / "again").manifest == patch.manifest.model_copy(update={"format_version": FORMAT_VERSION})
    assert session.finish().manifest.chat == patch.manifest.chat


def test_chat_has_the_hash_that_it_had(chatting: EditableModel) -> None:
    """By which tunings resume, and stored layers and values are found."""
    chat = chatting.text.chat
    assert chat and chat.identity == {"before": "user: ", "after": "\nassistant:", "joint": " "}


def test_session_gets_hashes_when_it_is_saved_again(folder: Path, model: EditableModel, method: str) -> None:
    place = folder / f"session-{method}"
    with pytest.warns(UserWarning, match=OLD):
        session = Session.resume(place, model)
    session.save(place)
    session.undo(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Session.resume(place, model)
    assert len(again) == 2
    saved = json.loads((place / "session.json").read_text())
    assert sorted([*saved["digests"], "session.json"]) == sorted(path.name for path in place.iterdir())


# -- statistics, tunings, traces, checkpoints ------------------------------------------------------------------------


def test_stored_moments_and_what_was_derived_from_them_are_used(
    folder: Path, model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bluedit.statistics.accumulate import Pass

    monkeypatch.setattr(Pass, "run", lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr("bluedit.statistics.moments.invert", lambda *_: pytest.fail("inverted again"))
    with pytest.warns(UserWarning, match=OLD):
        moments = Statistics(read_corpus("text:corpus.txt")).moments(model, [1, 2])
    assert moments[1].tokens == 3550
    inverse_FF, _ = moments[1].inverse(0.1)
    assert inverse_FF.shape == (24, 24)


@pytest.mark.parametrize("damage", ["a large entry", "no symmetry", "not finite", "another shape"])
def test_stored_moment_that_can_be_none_is_refused(folder: Path, model: EditableModel, damage: str) -> None:
    for path in (folder / "cache" / "second_moments").glob("*.safetensors"):
        if path.name.count(".") > 1:
            continue
        content = path.read_bytes()
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        moment_FF = load_file(path)["second_moment"]
        match damage:
            case "a large entry":
                moment_FF[3, 5] = moment_FF[5, 3] = 1e30
            case "no symmetry":
                moment_FF[3, 5] += 1e-3 * moment_FF.diagonal().max()
            case "not finite":
                moment_FF[0, 0] = float("nan")
            case _:
                moment_FF = moment_FF[:5].contiguous()
        save_file({"second_moment": moment_FF}, path, metadata=metadata)
    with pytest.raises(StatisticsError, match="is damaged"):
        Statistics(read_corpus("text:corpus.txt")).moments(model, [1, 2])


def test_exported_statistics_are_read(folder: Path, model: EditableModel) -> None:
    shared = SharedStatistics.open(folder / "statistics.safetensors")
    assert shared.moments(model, [1])[1].tokens == 3550


def test_tuning_trace_and_chosen_layers_are_read(folder: Path) -> None:
    assert read_tuning(folder / "tuning.json").complete
    assert len(Trace.load(folder / "trace").facts) == 6
    (kept,) = (folder / "cache" / "layers").glob("*.json")
    assert Choice.of(json.loads(kept.read_text())).layers == (0, 1, 2, 3)


def test_trace_is_resumed_by_the_names_that_its_settings_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In earlier versions `components` was called `sites`."""
    monkeypatch.setattr("bluedit.tracing.trace.trace_fact", lambda *_: pytest.fail("traced again"))
    stored = json.loads((folder / "trace" / "trace.json").read_text())
    assert {"sites"} == stored["settings"].keys() - TraceSettings().as_dict().keys()
    trace = trace_cases(load_model("gpt2-mini"), read_known("world:counterfact:0:2", 6), TraceSettings(), folder / "trace")
    assert trace.settings == TraceSettings()
    trace.save(folder / "again")
    assert "sites" not in (folder / "again" / "trace.json").read_text()


def test_patched_checkpoint_is_read_and_may_be_replaced(folder: Path) -> None:
    model = load_model(str(folder / "checkpoint"))
    with pytest.warns(UserWarning, match=OLD):
        (patch,) = read_applied(model, folder / "checkpoint")
    patch.revert(model)
    assert _same(_bits(model), _bits(load_model(str(folder / "model"))))
    writable_target(folder / "checkpoint", replace=True, kind=CHECKPOINT)
    (folder / "checkpoint" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        writable_target(folder / "checkpoint", replace=True, kind=CHECKPOINT)


# -- sessions that an earlier version went on with another corpus ----------------------------------------------------


@pytest.fixture
def mixed(folder: Path) -> Iterator[Path]:
    """The saved session as it looks after a batch was added with another corpus: the last patch and the marker name it."""
    place = folder / "session-memit"
    (folder / "other.txt").write_text("".join((folder / "corpus.txt").read_text().splitlines(keepends=True)[:30]))
    marker = json.loads((place / "session.json").read_text())
    other = read_corpus("text:other.txt")
    marker |= {"corpus": other.name, "corpus_identity": other.identity}
    (place / "session.json").write_text(json.dumps(marker))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch = Patch.load(place / "patch-0002-2.safetensors")
    tensors = load_file(place / "patch-0002-2.safetensors")
    manifest = json.loads(patch.manifest.model_dump_json()) | {"corpus": other.name}
    save_file(tensors, place / "patch-0002-2.safetensors", metadata={"manifest": json.dumps(manifest)})
    yield place


@pytest.mark.filterwarnings("ignore:.*of an earlier version")
def test_session_with_two_corpora_can_be_opened_and_its_last_batch_undone(
    mixed: Path, folder: Path, model: EditableModel, run_edit: Callable[..., Patch]
) -> None:
    for corpus in ("text:corpus.txt", "text:other.txt"):
        with pytest.raises(SessionError, match=r"batch 2 of .* Undo that batch: bluedit session undo .* --batches 1"):
            run_edit(model, mixed, corpus)
    session = Session.resume(mixed, model)
    session.undo()
    session.save(mixed)
    assert len(session) == 1
    assert describe_session(mixed)["corpus"] == "text:corpus.txt"
    session.undo(1)
    with pytest.raises(SessionError, match=r"other corpus \(text:corpus\.txt, and here text:other\.txt\)"):
        run_edit(model, mixed, "text:other.txt")
    assert len(run_edit(model, mixed, "text:corpus.txt").facts) == 9


@pytest.fixture
def run_edit(folder: Path) -> Callable[..., Patch]:
    """What `bluedit edit --batch-size 3 --session` does, with another corpus."""
    from bluedit.editing import prepare
    from bluedit.facts import check_facts
    from bluedit.methods import MEMIT, blue
    from bluedit.sessions import edit_in_sequence

    def run(model: EditableModel, place: Path, corpus: str, samples: int | None = None) -> Patch:
        setup = prepare(
            model,
            method=blue(MEMIT),
            layers=[1, 2],
            settings={"v_num_grad_steps": 2, "shrinkage": 0.1, "lambda": 5},
            corpus=Statistics(read_corpus(corpus), samples),
            templates=["{}"],
        )
        return edit_in_sequence(model, setup, check_facts(_facts(folder)), 3, place)

    return run


@pytest.mark.filterwarnings("ignore:.*of an earlier version")
def test_session_goes_on_with_the_same_corpus_by_another_path_only(
    folder: Path, model: EditableModel, run_edit: Callable[..., Patch]
) -> None:
    place = folder / "session-memit"
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    weights = _bits(model)
    (folder / "other.txt").write_text("other text\n")
    with pytest.raises(SessionError, match=r"other corpus \(text:corpus\.txt, and here text:other\.txt\)"):
        run_edit(model, place, "text:other.txt")
    with pytest.raises(SessionError, match=r"other samples \(all, and here 30\)"):
        run_edit(model, place, "text:corpus.txt", 30)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert _same(_bits(model), weights)
    (folder / "copy.txt").write_bytes((folder / "corpus.txt").read_bytes())
    patch = run_edit(model, place, "text:copy.txt")
    assert (len(patch.facts), patch.manifest.corpus) == (9, "text:corpus.txt")
