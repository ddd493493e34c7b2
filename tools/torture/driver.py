"""Commands that write, and how they are disturbed: jobs, their reference results, and what is left behind.

A job runs in a folder of its own, `work`, with `work/cache` as its cache and foreign files beside, and where it may be inside,
its outputs. The inputs are shared and only read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

from torture.fixture import Workspace
from torture.fuzz import normal, tensor_hash
from torture.trial import Child, Outcome, command, in_child, tidy, unsound

__all__ = [
    "CALLS",
    "Job",
    "Reference",
    "Stop",
    "Tree",
    "check_rerun",
    "check_state",
    "foreign",
    "job_folder",
    "jobs",
    "snapshot",
]

Tree = dict[str, str]
"""Hashes of what a folder holds, by relative path; times and identifiers are left out."""

FOREIGN = "thesis.tex"
_FOREIGN_TEXT = "Chapter 1. It was a dark and stormy night.\n"


@dataclass(frozen=True)
class Job:
    """A command that writes.

    - `arguments`: of the command, from its folder.
    - `output`: what it writes, by name in the folder; None where that is the cache.
    - `resumes`: whether it goes on where it was stopped; else its output is there whole, or not at all.
    - `prepare`: puts there what has to be there before, such as an older output that `--force` replaces.
    """

    name: str
    arguments: Callable[[Path], tuple[Any, ...]]
    output: str | None
    resumes: bool = False
    prepare: Callable[[Path], object] = lambda _: None
    replaces: bool = False


@dataclass
class Reference:
    """What a job does undisturbed: the tree before and after it, the calls that change files, the seconds it takes."""

    before: Tree
    after: Tree
    calls: list[str]
    seconds: float
    largest: int
    """Bytes of the largest file it writes."""
    written: int
    """Bytes of all files after it."""


# -- jobs ----------------------------------------------------------------------------------------------------------


def jobs(work: Workspace) -> dict[str, Job]:
    """Every command that writes, by name."""

    def older(name: str, source: Callable[[], Path]) -> Callable[[Path], object]:
        def prepare(folder: Path) -> None:
            found = source()
            if found.is_dir():
                shutil.copytree(found, folder / name)
            else:
                shutil.copyfile(found, folder / name)

        return prepare

    def sequence(folder: Path, *more: Any) -> tuple[Any, ...]:
        return work.edit(folder / "patch", "--batch-size", 2, "--session", folder / "session", *more)

    def applied(name: str, patch: str, *more: Any) -> Path:
        return work.made(name, "patch", "apply", work.patch(patch, *more), "--model", work.model, "--out", work.root / name)

    other = ("--seed", 1)
    listed = [
        Job("edit", lambda to: work.edit(to / "patch"), "patch"),
        Job("edit file", lambda to: work.edit(to / "p.safetensors"), "p.safetensors"),
        Job(
            "edit --force",
            lambda to: work.edit(to / "patch", "--force"),
            "patch",
            prepare=older("patch", lambda: work.patch("patch-seed", *other, facts=work.other_facts)),
            replaces=True,
        ),
        Job("edit --session", sequence, "patch", resumes=True),
        Job(
            "edit --session, past keys",
            lambda to: work.edit(to / "patch", "--batch-size", 2, "--session", to / "session", method="alphaedit"),
            "patch",
            resumes=True,
        ),
        Job("stats", lambda _: (*work.stats(), "--save-every", 0), None, resumes=True),
        Job("stats --export", lambda to: (*work.stats(), "--export", to / "s.safetensors"), "s.safetensors", resumes=True),
        Job("trace", lambda to: work.trace(to / "trace"), "trace", resumes=True),
        Job("tune", lambda to: work.tune(to / "tuning.json"), "tuning.json", resumes=True),
        Job("run", lambda to: ("run", work.recipe, "--out", to / "run"), "run", resumes=True),
        Job(
            "patch apply",
            lambda to: ("patch", "apply", work.patch("patch"), "--model", work.model, "--out", to / "model"),
            "model",
        ),
        Job(
            "patch apply --force",
            lambda to: ("patch", "apply", work.patch("patch"), "--model", work.model, "--out", to / "model", "--force"),
            "model",
            prepare=older("model", lambda: applied("checkpoint-seed", "patch-seed-model", *other)),
            replaces=True,
        ),
        Job(
            "patch revert",
            lambda to: ("patch", "revert", "--model", applied("checkpoint", "patch"), "--out", to / "model"),
            "model",
        ),
        Job(
            "patch revert --force",
            lambda to: ("patch", "revert", "--model", applied("checkpoint", "patch"), "--out", to / "model", "--force"),
            "model",
            prepare=older("model", lambda: applied("checkpoint-seed", "patch-seed-model", *other)),
            replaces=True,
        ),
    ]
    return {job.name: job for job in listed}


def foreign(folder: Path) -> None:
    """Somebody else's files, beside the output and in the cache."""
    (folder / FOREIGN).write_text(_FOREIGN_TEXT)
    (folder / ".hidden").write_text(_FOREIGN_TEXT)
    (folder / "cache").mkdir(exist_ok=True)
    (folder / "cache" / FOREIGN).write_text(_FOREIGN_TEXT)


def notes_inside(folder: Path) -> list[Path]:
    """Somebody's notes in every folder that a stopped command will go on in."""
    places = [path.parent for name in ("session.json", "recipe.json", "trace.json") for path in sorted(folder.rglob(name))]
    for place in places:
        (place / FOREIGN).write_text(_FOREIGN_TEXT)
    return [place / FOREIGN for place in places]


@contextmanager
def job_folder(job: Job) -> Iterator[Path]:
    """A fresh folder, prepared."""
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        folder = Path(place) / "work"
        folder.mkdir()
        job.prepare(folder)
        foreign(folder)
        yield folder


def run_job(job: Job, folder: Path, stop: Stop | None = None) -> Callable[[], Any]:
    """What a child does: the command, watched."""

    def run() -> Any:
        os.environ["BLUEDIT_CACHE"] = str(folder / "cache")
        watch = Watch(folder, stop)
        watch.install()
        code = 0
        try:
            command(*job.arguments(folder))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return {"code": code, "calls": watch.calls}

    return run


def reference(job: Job, known: dict[str, Reference]) -> Reference:
    """The undisturbed job, run once."""
    if job.name not in known:
        job.arguments(Path("nowhere"))  # makes its inputs, and not in a child
        with job_folder(job) as folder:
            before = snapshot(folder)
            outcome = in_child(run_job(job, folder))
            if not outcome.value or outcome.value["code"]:
                raise RuntimeError(f"{job.name} fails undisturbed: {outcome.stderr}{outcome.stdout}")
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            known[job.name] = Reference(
                before, snapshot(folder), outcome.value["calls"], outcome.seconds, max(sizes), sum(sizes)
            )
    return known[job.name]


# -- stopping at a chosen call -------------------------------------------------------------------------------------

CALLS = ("replace", "rename", "link", "symlink", "unlink", "remove", "rmdir", "mkdir", "fsync", "truncate", "chmod")
"""Functions of `os` that change what is on the disk, but for its contents."""

_SWAP = re.compile("exchange|swap|renameat")
"""Names of bluedit's own functions that swap two files, by system calls that `os` has no function for."""


@dataclass(frozen=True)
class Stop:
    """A signal at the n-th call: before it, or after it; for a tensor file also when half of it is written."""

    call: int
    when: str
    signal: int


@dataclass
class Watch:
    """Counts, in a child, the calls that change files, and sends the signal where it is due."""

    folder: Path
    stop: Stop | None = None
    calls: list[str] = field(default_factory=list)

    def install(self) -> None:
        """Wrap the functions, here and for good: the child ends soon."""
        import sys

        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        for name, module in list(sys.modules.items()):
            if not name.startswith("bluedit."):
                continue
            if hasattr(module, "save_file"):
                module.save_file = self._wrapped("save_file", module.save_file)  # pyright: ignore[reportAttributeAccessIssue]
            for swap in [one for one in vars(module) if _SWAP.search(one)]:
                function = getattr(module, swap)
                if isinstance(function, FunctionType) and function.__module__ == name:
                    setattr(module, swap, self._wrapped(swap, function))

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            number = len(self.calls)
            self.calls.append(name)
            stop = self.stop if self.stop is not None and self.stop.call == number else None
            if stop is not None and stop.when == "before":
                os.kill(os.getpid(), stop.signal)
            result = function(*arguments, **options)
            if stop is not None and stop.when == "half" and name == "save_file":
                path = Path(arguments[1])
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size // 2)
                os.kill(os.getpid(), stop.signal)
            if stop is not None and stop.when == "after":
                os.kill(os.getpid(), stop.signal)
            return result

        return call


# -- what is there afterwards --------------------------------------------------------------------------------------

_REVISION = re.compile(r"-\d+(?=\.safetensors)|(?<=\d{4})-\d+\b")
_UNIQUE = re.compile(r"^[0-9a-f]{32}$")
_SECONDS = re.compile(r"\d+(\.\d+)? s\b|\|[^|]*\|\s*$|<td[^>]*>[^<]*</td>\s*</tr>", re.MULTILINE)
"""Seconds in texts; and the last column of tables, which holds them."""


def snapshot(folder: Path) -> Tree:
    """What a folder holds, without times, random identifiers and revision numbers."""
    tree: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = _REVISION.sub("-N", str(path.relative_to(folder)))
        if name.startswith("cache/locks/"):  # named after places, which differ, and left by design
            continue
        if path.is_symlink():
            tree[name] = f"link to {path.readlink()}"
        elif path.is_file():
            tree[name] = _content(path, folder)
    return tree


def _content(path: Path, folder: Path) -> str:
    content = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            return _tensors(path)
        if path.suffix == ".json":
            return _hash(json.dumps(_plain(json.loads(content)), sort_keys=True).encode())
    except Exception as error:
        return f"broken: {tidy(str(error), 100)}"
    if path.suffix in (".md", ".html"):
        # Reports name the folder that they are of.
        content = _SECONDS.sub("", content.decode().replace(str(folder), "FOLDER")).encode()
    return _hash(content)


def _tensors(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: tensor_hash(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    return _hash(json.dumps([tensors, {name: _text(value) for name, value in metadata.items()}], sort_keys=True).encode())


def _text(value: str) -> Any:
    """A text in metadata: mostly JSON."""
    try:
        return _plain(json.loads(value))
    except ValueError:
        return value


def _plain(value: Any) -> Any:
    """A JSON value without times, identifiers and revision numbers."""
    value = normal(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not (key == "id" and _UNIQUE.match(str(item)))}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return _text(value) if value.startswith("{") else _REVISION.sub("-N", value)
    return value


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _part(tree: Tree, output: str) -> Tree:
    return {name: value for name, value in tree.items() if name == output or name.startswith(f"{output}/")}


def check_state(job: Job, folder: Path, expected: Reference) -> str:
    """What is wrong with what a disturbed command left; empty where nothing is."""
    tree = snapshot(folder)
    for name in (FOREIGN, ".hidden", f"cache/{FOREIGN}"):
        if tree.get(name) != expected.before[name]:
            return f"the foreign file {name} is {'changed' if name in tree else 'gone'}"
    if job.resumes or job.output is None:
        return ""
    there, before, after = (_part(one, job.output) for one in (tree, expected.before, expected.after))
    if there in (before, after):
        return ""
    if not there:
        return f"the older {job.output} is gone, and no newer one is there"
    return f"{job.output} is neither the older one nor the newer one: {_compare(there, after)}"


def check_rerun(job: Job, folder: Path, expected: Reference, outcome: Outcome, notes: Sequence[Path] = ()) -> str:
    """What is wrong with the same command run again undisturbed; empty where it ends as if nothing had happened.

    `notes` are foreign files in its folders.
    """
    for path in notes:
        if not path.is_file() or path.read_text() != _FOREIGN_TEXT:
            return f"run again: the foreign file {path.relative_to(folder)} is gone"
        path.unlink()
    if problem := unsound(outcome.stdout, outcome.stderr):
        return f"run again: {problem}"
    tree = snapshot(folder)
    code = (outcome.value or {}).get("code")
    done = job.output is not None and _part(tree, job.output) == _part(expected.after, job.output)
    if code and not (code == 2 and done):
        return f"run again: code {code}, {tidy(outcome.stderr)}"
    if code is None:
        return f"run again: ended with signal {outcome.signal}, hung: {outcome.hung}"
    if tree != expected.after:
        return f"run again: {_compare(tree, expected.after)}"
    return ""


def _compare(tree: Tree, expected: Tree) -> str:
    extra, missing = sorted(tree.keys() - expected.keys()), sorted(expected.keys() - tree.keys())
    other = sorted(name for name in tree.keys() & expected.keys() if tree[name] != expected[name])
    said = [
        f"{what}: {', '.join(f'{name} ({tree[name]})' if 'broken' in tree.get(name, '') else name for name in names[:3])}"
        for what, names in (("left over", extra), ("missing", missing), ("other content", other))
        if names
    ]
    return "; ".join(said)


def start_job(job: Job, folder: Path, stop: Stop | None = None) -> Child:
    """The job in a child that has been started."""
    return Child(run_job(job, folder, stop)).start()


SIGNALS: Mapping[str, int] = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
