"""Files that bluedit wrote itself, damaged: manifests, tensors, sessions, caches.

A damaged file has to be refused, or else to give, in every number and tensor, what the undamaged one gives.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from torture.fixture import LAYERS, Workspace
from torture.mutate import FILE_DAMAGE, JSON_DAMAGE, TENSOR_DAMAGE, metadata_keys, metadata_text, with_metadata_text
from torture.trial import Outcome, Result, Verdict, in_child, loaded, succeed, tidy, unsound

if TYPE_CHECKING:
    from torch import Tensor

    from bluedit.edits import Patch

__all__ = ["KINDS", "Target", "fuzz", "normal", "targets"]

_MEMORY = 6 * 2**30
"""Bytes of address space that a damaged file may make a child ask for beyond its own."""
_LIMIT = 30.0
"""Seconds: an undamaged file takes less than one."""


@dataclass(frozen=True)
class Target:
    """A folder that bluedit wrote, and how it is read.

    - `make`: the undamaged folder.
    - `load`: reads a copy of it, in a child, and gives all that it holds as JSON.
    - `manifests`: patterns of its JSON files; `PATTERN#KEY` is a text in the metadata of tensor files.
    - `tensors`: patterns of its tensor files.
    - `relatives`: folders of the same form whose files could end up here.
    - `user`: whether it is the user's own: then it may be read differently, but not end in a traceback.
    """

    name: str
    make: Callable[[], Path]
    load: Callable[[Path], Any]
    manifests: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    relatives: tuple[Callable[[], Path], ...] = ()
    user: bool = False
    known: dict[str, Any] = field(default_factory=dict)

    def reference(self) -> Any:
        """What the undamaged folder holds; read once."""
        if "content" not in self.known:
            with tempfile.TemporaryDirectory() as trial:
                folder = Path(trial) / "it"
                shutil.copytree(self.make(), folder)
                outcome = in_child(lambda: loaded(lambda: self.load(folder)))
            if not isinstance(outcome.value, dict) or "content" not in outcome.value:
                raise RuntimeError(f"the undamaged {self.name} cannot be read: {outcome}")
            self.known["content"] = outcome.value["content"]
        return self.known["content"]


# -- what files hold -----------------------------------------------------------------------------------------------


def tensor_hash(tensor: Tensor) -> str:
    """Type, shape and bits."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return f"{plain.dtype} {tuple(plain.shape)} {hashlib.sha256(content).hexdigest()[:16]}"


_TIMES = {"seconds", "tokens_per_second", "versions", "bluedit", "digest", "digests", "revision"}
"""Keys whose values differ from run to run, or follow from such."""
_ID = re.compile(r"[0-9a-f]{32}")


def normal(value: Any) -> Any:
    """A JSON value without what differs between two runs of the same command."""
    if isinstance(value, dict):
        return {key: normal(item) for key, item in sorted(value.items()) if key not in _TIMES}
    return [normal(item) for item in value] if isinstance(value, list) else value


def patch_content(patch: Patch) -> dict[str, Any]:
    """All of a patch."""
    return {
        "manifest": patch.manifest.model_dump(mode="json"),
        "tensors": {
            f"{name}.{part}": tensor_hash(tensor)
            for name, change in patch.changes.items()
            for part, tensor in change.tensors().items()
        },
    }


def _load_patches(folder: Path) -> Any:
    from bluedit.edits import Patch

    places = sorted(folder.glob("*.safetensors")) if not (folder / "patch.json").exists() else [folder]
    return {place.name: patch_content(Patch.load(place)) for place in places or [folder]}


def _show_patch(folder: Path) -> Any:
    shown = succeed("patch", "show", folder, "--json")
    succeed("patch", "show", folder)
    return {**json.loads(shown), "patch": None}


def session_content(folder: Path, work: Workspace) -> Any:
    """All of a saved session, and what the next batch would make of it."""
    from bluedit.datasets import read_cases
    from bluedit.sessions import Session

    model = work.editable
    session = Session.resume(folder, model)
    plan = session.setup
    content = {
        "weights": {name: tensor_hash(weight) for name, weight in model.model.state_dict().items()},
        "patches": [patch_content(patch) for patch in session.patches],
        "facts": [repr(fact) for fact in session.facts],
        "plan": [plan.method.name, plan.method.strategy.name, list(plan.layers), plan.settings.as_dict(), list(plan.templates)],
        "seed": plan.seed,
        "finished": session.finished,
    }
    if session.finished:
        content["whole"] = patch_content(session.merged())
        session.reopen()
        content["reopened"] = {name: tensor_hash(weight) for name, weight in model.model.state_dict().items()}
    following = session.apply([case.fact for case in read_cases(work.other_facts)[:2]])
    content["next"] = normal(patch_content(following))
    session.undo(len(session))
    content["undone"] = {name: tensor_hash(weight) for name, weight in model.model.state_dict().items()}
    return content


def _load_cache(cache: Path, work: Workspace, samples: int | None, until: float | None) -> Any:
    from bluedit.statistics import Statistics, read_corpus

    os.environ["BLUEDIT_CACHE"] = str(cache)
    statistics = Statistics(read_corpus(f"text:{work.corpus}"), samples, measured=True, until=until)
    collection = statistics.collect(work.editable, LAYERS)
    content: dict[str, Any] = {"samples": collection.samples}
    for layer, moment in collection.moments.items():
        inverse_FF, condition = moment.inverse(0.1)
        values_F, vectors_FF = moment.eigenbasis
        content[str(layer)] = {
            "moment": tensor_hash(moment.matrix_FF),
            "tokens": moment.tokens,
            "documents": moment.documents,
            "inverse": tensor_hash(inverse_FF),
            "condition": condition,
            "eigenbasis": [tensor_hash(values_F), tensor_hash(vectors_FF)],
        }
        if moment.curve:
            content[str(layer)]["curve"] = [point.model_dump(mode="json") for point in moment.curve]
    return content


def _load_shared(folder: Path, work: Workspace) -> Any:
    from bluedit.statistics import SharedStatistics

    shared = SharedStatistics.open(folder / "shared.safetensors")
    moments = shared.moments(work.editable, LAYERS)
    return {
        "origin": shared.origin.model_dump(mode="json"),
        "moments": {str(layer): tensor_hash(moment.matrix_FF) for layer, moment in moments.items()},
    }


def _load_tuning(folder: Path, work: Workspace) -> Any:
    from bluedit.methods import find_method
    from bluedit.strategies import find_strategy
    from bluedit.tuning import read_tuning

    tuning = read_tuning(folder / "tuning.json")
    chosen = find_method("memit").with_strategy(find_strategy("boundary"))
    return {**tuning.model_dump(mode="json"), "used": tuning.settings_for(work.editable, chosen)}


def _load_trace(folder: Path) -> Any:
    from bluedit.tracing.trace import Trace

    trace = Trace.load(folder)
    return {
        **trace.summary(),
        "facts": [fact.as_dict() for fact in trace.facts],
        "unknown": list(trace.unknown),
        "refused": dict(trace.refused),
        "restored": [
            {component: hashlib.sha256(values.tobytes()).hexdigest()[:16] for component, values in fact.restored.items()}
            for fact in trace.facts
        ],
    }


def _load_checkpoint(folder: Path) -> Any:
    from bluedit.edits import applied_patches
    from bluedit.edits.base import original_weights
    from bluedit.edits.checkpoint import read_applied
    from bluedit.models import load_model

    editable = load_model(str(folder), dtype="auto")
    read_applied(editable, folder)
    content = {
        "patches": [patch_content(patch) for patch in applied_patches(editable)],
        "originals": {name: tensor_hash(tensor) for name, tensor in original_weights(editable).items()},
    }
    for patch in reversed(applied_patches(editable)):
        patch.revert(editable)
    return content | {"reverted": {name: tensor_hash(tensor) for name, tensor in editable.model.state_dict().items()}}


def _load_choice(cache: Path, work: Workspace) -> Any:
    from bluedit.editors.layer_cache import recall

    os.environ["BLUEDIT_CACHE"] = str(cache)
    return recall(work.editable).as_dict()


def _rerun(arguments: Callable[[Path], tuple[Any, ...]], *results: str) -> Callable[[Path], Any]:
    """Reads a folder by running the command again that was stopped, or done, there."""

    def load(folder: Path) -> Any:
        succeed(*arguments(folder))
        return {name: normal(json.loads((folder / name).read_text(encoding="utf-8"))) for name in results}

    return load


# -- how damaged folders are made ----------------------------------------------------------------------------------


def _in_folder(work: Workspace, name: str, files: Mapping[str, Callable[[], Path]]) -> Callable[[], Path]:
    """A folder of copies."""

    def make() -> Path:
        folder = work.root / name
        if not folder.exists():
            folder.mkdir()
            for target, source in files.items():
                shutil.copyfile(source(), folder / target)
        return folder

    return make


def _cache(work: Workspace, name: str, prepare: Callable[[], object]) -> Callable[[], Path]:
    """A cache folder of its own, filled in a child."""

    def make() -> Path:
        folder = work.root / name
        if not folder.exists():

            def fill() -> None:
                os.environ["BLUEDIT_CACHE"] = str(folder)
                prepare()

            _ = work.editable
            outcome = in_child(fill)
            if outcome.code or not folder.exists():
                raise RuntimeError(f"{name} could not be made: {outcome.stderr}")
        return folder

    return make


def _interrupted(work: Workspace) -> None:
    """A pass over the corpus that is stopped after its first documents."""
    from bluedit.statistics import Statistics, read_corpus

    def stop(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    try:
        Statistics(read_corpus(f"text:{work.corpus}"), measured=True, save_every=0).collect(work.editable, LAYERS, stop)
    except KeyboardInterrupt:
        return


def _finished(work: Workspace) -> Path:
    """A session whose sequence is finished, so that the patch of the whole is in it."""
    folder = work.root / "session-finished"
    if not folder.exists():
        _ = work.session("session-prune", "prune"), work.editable

        def finish() -> None:
            from bluedit.sessions import Session

            session = Session.resume(work.root / "session-prune", work.editable)
            session.finish()
            session.save(folder)

        outcome = in_child(finish)
        if outcome.code:
            raise RuntimeError(outcome.stderr)
    return folder


def _stopped_tuning(work: Workspace) -> Path:
    """A search that was stopped after its second trial."""
    folder = work.root / "tuning-stopped"
    if not folder.exists():
        folder.mkdir()

        def stop() -> None:
            from bluedit.tuning import tuning as module

            save, count = module.Tuning.save, 0

            def counted(self: Any, path: Path) -> None:
                nonlocal count
                save(self, path)
                count += 1
                if count == 2:
                    raise KeyboardInterrupt

            module.Tuning.save = counted
            try:
                succeed(*work.tune(folder / "tuning.json"))
            except BaseException:
                return

        _ = work.editable
        in_child(stop)
    return folder


def _tuning(work: Workspace) -> Path:
    return work.made("tuning", *work.tune(work.root / "tuning" / "tuning.json"))


def _traced(work: Workspace) -> Path:
    return work.made("trace", *work.trace(work.root / "trace"))


def _stopped_trace(work: Workspace) -> Path:
    """A trace that was stopped after its second fact."""
    folder = work.root / "trace-stopped"
    if not folder.exists():

        def stop() -> None:
            from bluedit.tracing import trace as module

            one, count = module.trace_fact, 0

            def counted(*arguments: Any) -> Any:
                nonlocal count
                count += 1
                if count == 3:
                    raise KeyboardInterrupt
                return one(*arguments)

            module.trace_fact = counted
            try:
                succeed(*work.trace(folder))
            except BaseException:
                return

        _ = work.editable, work.known
        in_child(stop)
    return folder


def _inputs(work: Workspace, name: str, *paths: Path) -> Callable[[], Path]:
    return _in_folder(work, name, {path.name: (lambda path=path: path) for path in paths})


def _edits(work: Workspace) -> tuple[Path, Path]:
    rows = [
        {"prompt": one["prompt"], "subject": one["subject"], "target": one["target_new"]["str"]}
        for one in (record["requested_rewrite"] for record in work.records[:4])
    ]
    lines = "prompt,subject,target\n" + "".join(f'"{row["prompt"]}","{row["subject"]}","{row["target"]}"\n' for row in rows)
    return work.write("edits.jsonl", "".join(json.dumps(row) + "\n" for row in rows)), work.write("edits.csv", lines)


def targets(work: Workspace) -> dict[str, Target]:
    """Everything that is fuzzed, by name."""
    out = work.root / "nowhere"

    def session(name: str, method: str) -> Target:
        folder = f"session-{name}"
        return Target(
            folder,
            lambda: work.session(folder, method),
            lambda path: session_content(path, work),
            manifests=("session.json", "patch-*.safetensors#manifest"),
            tensors=("*.safetensors",),
            relatives=(
                lambda: work.session(f"{folder}-other", method, "--seed", 1, facts=work.other_facts),
                lambda: work.session(folder, method) and work.root / f"{folder}.1",
                lambda: work.session(folder, method) and work.root / f"{folder}.2",
            ),
        )

    def statistics(corpus: Path, samples: int) -> Callable[[], None]:
        def fill() -> None:
            from bluedit.statistics import Statistics, read_corpus

            statistics = Statistics(read_corpus(f"text:{corpus}"), samples, measured=True)
            for moment in statistics.moments(work.editable, LAYERS).values():
                moment.inverse(0.1)
                _ = moment.eigenbasis

        return fill

    def settle() -> None:
        _load_cache(Path(os.environ["BLUEDIT_CACHE"]), work, None, 0.5)

    def remembered() -> None:
        succeed(*work.trace(out / "trace"))

    edits = _edits(work)
    listed = [
        Target(
            "patch folder",
            lambda: work.patch("patch"),
            _load_patches,
            manifests=("patch.json",),
            tensors=("patch.safetensors",),
            relatives=(lambda: work.patch("patch-other", "--seed", 1, facts=work.other_facts),),
        ),
        Target("patch show", lambda: work.patch("patch"), _show_patch, manifests=("patch.json",)),
        Target(
            "patch files",
            _in_folder(
                work,
                "patch-files",
                {
                    f"{method}.safetensors": lambda method=method: work.patch(f"{method}.safetensors", method=method)
                    for method in ("memit", "rect", "ft-m", "prune")
                },
            ),
            _load_patches,
            manifests=("*.safetensors#manifest",),
            tensors=("*.safetensors",),
        ),
        session("memit", "memit"),
        session("alphaedit", "alphaedit"),
        Target(
            "session-finished",
            lambda: _finished(work),
            lambda path: session_content(path, work),
            manifests=("session.json", "whole-*.safetensors#manifest"),
            tensors=("*.safetensors",),
            relatives=(lambda: work.session("session-prune", "prune"),),
        ),
        Target(
            "cache",
            _cache(work, "cache-moments", statistics(work.corpus, 60)),
            lambda path: _load_cache(path, work, 60, None),
            tensors=("second_moments/*.safetensors",),
            relatives=(
                _cache(work, "cache-other", statistics(work.other_corpus, 60)),
                _cache(work, "cache-longer", statistics(work.corpus, 61)),
            ),
        ),
        Target(
            "cache stopped",
            _cache(work, "cache-stopped", lambda: _interrupted(work)),
            lambda path: _load_cache(path, work, None, None),
            manifests=("second_moments/*.partial.safetensors#cursor",),
            tensors=("second_moments/*.partial.safetensors",),
        ),
        Target(
            "cache settled",
            _cache(work, "cache-settled", settle),
            lambda path: _load_cache(path, work, None, 0.5),
            manifests=("second_moments/*.settled.json",),
            tensors=("second_moments/*.safetensors",),
        ),
        Target(
            "exported statistics",
            _in_folder(
                work,
                "exported",
                {"shared.safetensors": work.exported},
            ),
            lambda path: _load_shared(path, work),
            manifests=("shared.safetensors#bluedit",),
            tensors=("shared.safetensors",),
        ),
        Target("tuning", lambda: _tuning(work), lambda path: _load_tuning(path, work), manifests=("tuning.json",)),
        Target(
            "tuning stopped",
            lambda: _stopped_tuning(work),
            _rerun(lambda path: work.tune(path / "tuning.json"), "tuning.json"),
            manifests=("tuning.json",),
        ),
        Target(
            "trace",
            lambda: _traced(work),
            _load_trace,
            manifests=("trace.json",),
            tensors=("restored.safetensors",),
        ),
        Target(
            "trace stopped",
            lambda: _stopped_trace(work),
            _rerun(work.trace, "trace.json"),
            manifests=("trace.json", "traced.jsonl"),
        ),
        Target(
            "checkpoint",
            lambda: work.made(
                "checkpoint", "patch", "apply", work.patch("patch"), "--model", work.model, "--out", work.root / "checkpoint"
            ),
            _load_checkpoint,
            manifests=("bluedit/applied.json", "bluedit/patch-*.safetensors#manifest"),
            tensors=("bluedit/*.safetensors",),
        ),
        Target(
            "kept layers",
            _cache(work, "cache-layers", remembered),
            lambda path: _load_choice(path, work),
            manifests=("layers/*.json",),
        ),
        Target(
            "experiment",
            lambda: work.made("experiment", "run", work.recipe, "--out", work.root / "experiment"),
            _rerun(lambda path: ("run", work.recipe, "--out", path), "table.json"),
            manifests=("recipe.json", "before.json", "*/result.json"),
        ),
        # The user's own files: they may say anything, but must not end in a traceback.
        Target(
            "facts",
            _inputs(work, "in-facts", work.facts),
            lambda path: succeed("evaluate", "--model", work.model, "--dataset", path / "facts.json", "--json"),
            manifests=("facts.json",),
            user=True,
        ),
        Target(
            "edits",
            _inputs(work, "in-edits", *edits),
            lambda path: [
                succeed(*work.edit(path / "out" / name, facts=path / name)) and None for name in ("edits.jsonl", "edits.csv")
            ],
            manifests=("edits.jsonl",),
            tensors=("edits.csv",),
            user=True,
        ),
        Target(
            "templates",
            _inputs(work, "in-templates", work.templates),
            lambda path: succeed(*work.edit(path / "out", "--templates", path / "templates.json")) and None,
            manifests=("templates.json",),
            user=True,
        ),
        Target(
            "known",
            _inputs(work, "in-known", work.known),
            lambda path: succeed("trace", "--model", work.model, "--facts", path / "known.json", "--samples", 1) and None,
            manifests=("known.json",),
            user=True,
        ),
        Target(
            "model",
            lambda: work.model,
            lambda path: succeed("evaluate", "--model", path, "--dataset", work.facts, "--limit", 1) and None,
            manifests=("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"),
            tensors=("model.safetensors",),
            user=True,
        ),
        Target(
            "doctor",
            lambda: work.model,
            lambda path: succeed("doctor", path, "--layers", "1,2") and None,
            manifests=("config.json", "tokenizer_config.json"),
            tensors=("model.safetensors",),
            user=True,
        ),
    ]
    return {target.name: target for target in listed}


# -- trials --------------------------------------------------------------------------------------------------------

_DAMAGED = re.compile("session|cache|tuning|trace|checkpoint|kept|experiment")
KINDS: dict[str, str] = {
    "manifests": "JSON that bluedit wrote, damaged",
    "tensors": "tensor files that bluedit wrote, damaged",
    "damage": "files of sessions, caches and records that are lost, swapped, old or broken",
    "inputs": "the user's own files, damaged",
}


def fuzz(kind: str, seed: int, known: Mapping[str, Target], keep: Path | None = None) -> Result:
    """One trial: a folder is copied, one file of it damaged, and the copy read.

    Copies that showed a fault are kept under `keep`: what seconds a manifest records moves damage to its text about.
    """
    random = Random(f"{kind}:{seed}")
    if kind == "damage":
        chosen = [target for target in known.values() if _DAMAGED.match(target.name)]
    elif kind == "inputs":
        chosen = [target for target in known.values() if target.user]
    else:
        chosen = [target for target in known.values() if not target.user and getattr(target, kind)]
    target = random.choice(chosen)
    started = time.monotonic()
    reference = None if target.user else target.reference()
    with tempfile.TemporaryDirectory(prefix="torture-") as trial:
        folder = Path(trial) / "it"
        shutil.copytree(target.make(), folder)
        case, changed = (_damage_folder if kind == "damage" else _damage_file)(kind, target, folder, random)
        outcome = in_child(lambda: _limited(lambda: loaded(lambda: target.load(folder))), limit=_LIMIT)
        verdict, detail = _judge(target, outcome, reference, changed)
        if keep is not None and verdict is Verdict.WRONG:
            shutil.copytree(folder, keep / f"{kind}-{seed}", symlinks=True, dirs_exist_ok=True)
    return Result(kind, seed, f"{target.name}: {case}", verdict, detail, round(time.monotonic() - started, 3))


def _limited(work: Callable[[], Any]) -> Any:
    """A file that asks for all the memory there is must not get it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.path.exists("/proc") else 0  # noqa: PTH110
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    return work()


def _files(folder: Path, patterns: tuple[str, ...]) -> list[tuple[Path, str]]:
    """Files of a folder and, where one is meant, the key of their metadata."""
    found: list[tuple[Path, str]] = []
    for pattern in patterns:
        name, _, key = pattern.partition("#")
        found += [(path, key) for path in sorted(folder.glob(name))]
    return found


def _damage_file(kind: str, target: Target, folder: Path, random: Random) -> tuple[str, bool]:
    """Damage one file; says how, and whether a number, text or key that was there is another one now."""
    as_json = kind == "manifests" or (kind == "inputs" and bool(target.manifests) and random.random() < 0.7)
    files = _files(folder, target.manifests if as_json or not target.tensors else target.tensors)
    path, key = random.choice(files)
    content = path.read_bytes()
    place = f"{path.relative_to(folder)}{f'#{key}' if key else ''}"
    if not as_json:
        name = random.choice(list(TENSOR_DAMAGE))
        try:
            damaged = TENSOR_DAMAGE[name](content, random)
        except (ValueError, KeyError):  # no tensor file
            name = random.choice(list(FILE_DAMAGE))
            damaged = FILE_DAMAGE[name](content, random)
        path.write_bytes(damaged)
        return f"{place}: {name}", False
    name = random.choice(list(JSON_DAMAGE))
    if key and key not in metadata_keys(content):
        key = metadata_keys(content)[0]
    text = metadata_text(content, key) if key else content
    head, line, tail = _one_value(text, random)
    try:
        damaged = JSON_DAMAGE[name](line, random)
    except (ValueError, RecursionError):
        name, damaged = "truncated", JSON_DAMAGE["truncated"](line, random)
    path.write_bytes(with_metadata_text(content, key, damaged) if key else head + damaged + tail)
    return f"{place}: {name}", _differs(line, damaged)


def _one_value(text: bytes, random: Random) -> tuple[bytes, bytes, bytes]:
    """A JSON text, or one line of JSON Lines with what stands before and after it."""
    try:
        json.loads(text)
    except ValueError:
        lines = text.splitlines(keepends=True)
        number = random.randrange(len(lines))
        return b"".join(lines[:number]), lines[number].rstrip(b"\n"), b"\n" + b"".join(lines[number + 1 :])
    return b"", text, b""


def _differs(before: bytes, after: bytes) -> bool:
    """Whether a value of the first text is another one in the second; keys that are gone or new do not count."""
    try:
        return _changed(json.loads(before), json.loads(after))
    except (ValueError, RecursionError):
        return False


def _changed(before: Any, after: Any) -> bool:
    if isinstance(before, dict) and isinstance(after, dict):
        return any(key in after and _changed(value, after[key]) for key, value in before.items())
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return any(_changed(one, other) for one, other in zip(before, after, strict=True))
    # Readers may take "1" for 1: that is another spelling.
    return before != after and str(before) != str(after)


def _damage_folder(_: str, target: Target, folder: Path, random: Random) -> tuple[str, bool]:
    """Lose, swap, age or break a file."""
    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".png", ".md")))
    name, action = (
        path.relative_to(folder),
        random.choice(["lost", "folder", "broken", "foreign", "foreign", "exchanged", "link"]),
    )
    if action == "foreign" and target.relatives:
        other = random.choice(target.relatives)()
        role = re.split(r"[-.]", path.name)[0]
        found = sorted(one for one in other.rglob(f"*{path.suffix}") if one.is_file())
        source = random.choice([one for one in found if one.name.startswith(role)] or found)
        shutil.copyfile(source, path)
        return f"{name}: replaced by {other.name}/{source.name}", False
    if action == "exchanged":
        others = sorted(one for one in path.parent.rglob(f"*{path.suffix}") if one.is_file() and one != path)
        if others:
            other = random.choice(others)
            content = path.read_bytes()
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
            return f"{name}: exchanged with {other.name}", False
    if action in ("lost", "folder", "link"):
        path.unlink()
        if action == "folder":
            path.mkdir()
        elif action == "link":
            path.symlink_to(folder / "nowhere")
        return f"{name}: {action}", False
    how = random.choice(list(FILE_DAMAGE))
    path.write_bytes(FILE_DAMAGE[how](path.read_bytes(), random))
    return f"{name}: {how}", False


def _judge(target: Target, outcome: Outcome, reference: Any, changed: bool) -> tuple[Verdict, str]:
    if outcome.hung:
        return Verdict.WRONG, f"hangs: not done after {_LIMIT:.0f} s"
    if outcome.signal is not None:
        return Verdict.WRONG, f"crashed with signal {outcome.signal}: {tidy(outcome.stderr)}"
    if not isinstance(outcome.value, dict):
        return Verdict.WRONG, unsound(outcome.stdout, outcome.stderr) or f"ended with code {outcome.code}"
    if "unsound" in outcome.value:
        return Verdict.WRONG, outcome.value["unsound"]
    if "refused" in outcome.value:
        message = outcome.value["refused"]
        return (Verdict.REFUSED, tidy(message)) if message.strip() else (Verdict.WRONG, "refused without a message")
    if target.user:
        return Verdict.SURVIVED, ""
    different = list(_differences(reference, outcome.value["content"]))
    if different:
        return Verdict.WRONG, f"accepted with other content: {', '.join(different[:4])}"
    if changed:
        return Verdict.WRONG, "accepted, though a value in the file is another one; it changed nothing that is used"
    return Verdict.SURVIVED, ""


_OF_FILES = {"digest", "digests", "hashes", "hash", "sha256", "files"}
"""Keys that say something of the file itself; where they are missing, the file counts as an older one."""


def _differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other} - _OF_FILES:
            yield from _differences(one.get(key), other.get(key), f"{place}.{key}".removeprefix("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from _differences(first, second, f"{place}[{number}]")
    elif json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        yield f"{place or 'all'} {tidy(json.dumps(one), 30)} -> {tidy(json.dumps(other), 30)}"
