"""Commands that write, disturbed: killed, run twice at once, out of disk space."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from torture.driver import (
    FOREIGN,
    SIGNALS,
    Job,
    Reference,
    Stop,
    check_rerun,
    check_state,
    job_folder,
    notes_inside,
    reference,
    run_job,
    snapshot,
    start_job,
)
from torture.trial import Outcome, Result, Verdict, in_child, tidy, unsound

__all__ = ["KINDS", "disturb"]

KINDS: dict[str, str] = {
    "signals": "commands that are killed, at random moments and at chosen calls",
    "together": "two processes that write to the same place at once",
    "disk": "commands that run out of disk space",
}
_LIMIT = 60.0


def disturb(kind: str, seed: int, known: dict[str, Job], references: dict[str, Reference]) -> Result:
    """One trial of a kind."""
    random = Random(f"{kind}:{seed}")
    job = random.choice(list(known.values()))
    expected = reference(job, references)
    started = time.monotonic()
    case, verdict, detail = {"signals": _signal, "together": _together, "disk": _disk}[kind](job, expected, random)
    return Result(kind, seed, f"{job.name}: {case}", verdict, detail, round(time.monotonic() - started, 3))


def _finish(job: Job, folder: Path, expected: Reference, ended: str) -> tuple[Verdict, str]:
    """Look at what a disturbed command left, run it again, and look once more."""
    if problem := check_state(job, folder, expected):
        return Verdict.WRONG, f"{ended}; {problem}"
    notes = notes_inside(folder) if job.resumes else []
    again = in_child(run_job(job, folder), limit=_LIMIT)
    if notes and (again.value or {}).get("code") == 2 and FOREIGN in again.stderr:
        # The notes are in the way, and named: they are taken away, as the message says.
        if not all(path.is_file() for path in notes):
            return Verdict.WRONG, f"{ended}; run again: the foreign file is gone, though it is named"
        for path in notes:
            path.unlink()
        notes = []
        again = in_child(run_job(job, folder), limit=_LIMIT)
    if problem := check_state(job, folder, expected) or check_rerun(job, folder, expected, again, notes):
        return Verdict.WRONG, f"{ended}; {problem}"
    return Verdict.SURVIVED, ended


# -- signals -------------------------------------------------------------------------------------------------------


def _signal(job: Job, expected: Reference, random: Random) -> tuple[str, Verdict, str]:
    name = random.choice(["SIGINT", "SIGTERM", "SIGKILL", "SIGKILL"])
    if random.random() < 0.06:
        return _whole_process(job, expected, name, random)
    with job_folder(job) as folder:
        if random.random() < 0.4:
            moment = expected.seconds * random.random()
            case = f"{name} after {moment:.3f} s"
            outcome = start_job(job, folder).wait(_LIMIT, (moment, SIGNALS[name]))
        else:
            when = random.choice(["before", "after", "half"])
            renames = [number for number, call in enumerate(expected.calls) if call in ("replace", "rename", "save_file")]
            number = random.choice(renames if renames and random.random() < 0.6 else range(len(expected.calls)))
            if expected.calls[number] != "save_file" and when == "half":
                when = "before"
            case = f"{name} {when} call {number}, {expected.calls[number]}"
            outcome = start_job(job, folder, Stop(number, when, SIGNALS[name])).wait(_LIMIT)
        if problem := _ended_badly(outcome, name):
            return case, Verdict.WRONG, problem
        return case, *_finish(job, folder, expected, _ended(outcome))


def _ended_badly(outcome: Outcome, name: str) -> str:
    if outcome.hung:
        return f"hangs after {name}"
    if problem := unsound(outcome.stdout, outcome.stderr):
        return problem
    code = (outcome.value or {}).get("code", outcome.code)
    allowed = {"SIGINT": (0, 130), "SIGTERM": (0, 143, None), "SIGKILL": (0, None)}[name]
    if code not in allowed and outcome.signal != SIGNALS[name]:
        return f"ends with code {code} after {name}: {tidy(outcome.stderr)}"
    return ""


def _ended(outcome: Outcome) -> str:
    if outcome.signal is not None:
        return f"killed by {signal.Signals(outcome.signal).name}"
    return f"ended with code {(outcome.value or {}).get('code', outcome.code)}"


def _whole_process(job: Job, expected: Reference, name: str, random: Random) -> tuple[str, Verdict, str]:
    """A process as users start it, killed from its first moment on: imports included."""
    with job_folder(job) as folder:
        moment = random.choice([0.05, 0.3, 1.0, 2.0, 3.0, 4.0]) * (0.5 + random.random())
        case = f"{name} to a new process after {moment:.3f} s"
        source = str(Path(sys.modules["bluedit"].__file__ or "").parents[1])
        environment = os.environ | {"BLUEDIT_CACHE": str(folder / "cache"), "PYTHONPATH": source}
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "bluedit", *map(str, job.arguments(folder))],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        hung = False
        try:
            out, err = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(SIGNALS[name])
            try:
                out, err = process.communicate(timeout=_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                hung, (out, err) = True, process.communicate()
        code = process.returncode
        outcome = Outcome(code if code >= 0 else None, -code if code < 0 else None, out, err, None, hung)
        if problem := _ended_badly(outcome, name):
            return case, Verdict.WRONG, problem
        return case, *_finish(job, folder, expected, _ended(outcome))


# -- two at once ---------------------------------------------------------------------------------------------------


def _together(job: Job, expected: Reference, random: Random) -> tuple[str, Verdict, str]:
    """Two of the same command: at least one has to succeed, the other may wait, succeed or be refused."""
    with job_folder(job) as folder:
        delay = random.choice([0.0, 0.01, random.random() * expected.seconds])
        case = f"twice, {delay:.3f} s apart"
        one = start_job(job, folder)
        time.sleep(delay)
        other = start_job(job, folder)
        outcomes = [one.wait(_LIMIT), other.wait(_LIMIT)]
        codes = [(outcome.value or {}).get("code") for outcome in outcomes]
        for outcome, code in zip(outcomes, codes, strict=True):
            if outcome.hung:
                return case, Verdict.WRONG, "hangs"
            if problem := unsound(outcome.stdout, outcome.stderr):
                return case, Verdict.WRONG, problem
            if code not in (0, 1, 2) or (code and not outcome.stderr.strip()):
                return case, Verdict.WRONG, f"ends with code {code}, signal {outcome.signal}: {tidy(outcome.stderr)}"
        if 0 not in codes:
            return case, Verdict.WRONG, f"neither succeeds: {' / '.join(tidy(outcome.stderr, 150) for outcome in outcomes)}"
        said = "; ".join(tidy(outcome.stderr, 200) for outcome, code in zip(outcomes, codes, strict=True) if code)
        if snapshot(folder) != expected.after:
            verdict, detail = _finish(job, folder, expected, f"codes {codes} {said}")
            return (
                case,
                Verdict.WRONG,
                detail if verdict is Verdict.WRONG else f"codes {codes}: the result differs until run again",
            )
        return case, Verdict.REFUSED if any(codes) else Verdict.SURVIVED, said


# -- full disks ----------------------------------------------------------------------------------------------------


def _disk(job: Job, expected: Reference, random: Random) -> tuple[str, Verdict, str]:
    if random.random() < 0.5 and _may_mount():
        return _full(job, expected, random)
    with job_folder(job) as folder:
        limit = int(expected.largest * random.random())
        case = f"no file over {limit} bytes"

        def run() -> Any:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            # The two streams of the child are files too.
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(limit, 4096), resource.RLIM_INFINITY))
            try:
                return run_job(job, folder)()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        return case, *_after_full(job, folder, expected, in_child(run, limit=_LIMIT))


def _after_full(job: Job, folder: Path, expected: Reference, outcome: Outcome) -> tuple[Verdict, str]:
    code = (outcome.value or {}).get("code")
    if outcome.hung:
        return Verdict.WRONG, "hangs"
    if problem := unsound(outcome.stdout, outcome.stderr):
        return Verdict.WRONG, problem
    if code not in (0, 1) or (code and "error: " not in outcome.stderr):
        return Verdict.WRONG, f"ends with code {code}, signal {outcome.signal}: {tidy(outcome.stderr)}"
    verdict, detail = _finish(job, folder, expected, f"code {code}")
    if verdict is Verdict.SURVIVED and code:
        return Verdict.REFUSED, tidy(outcome.stderr)
    return verdict, detail


_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MS_REMOUNT = 0x00020000, 0x4000, 1 << 18, 32


def _mount(folder: Path, size: int, *, again: bool = False) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_REMOUNT if again else 0
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", flags, f"size={size}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


def _own_mounts() -> None:
    """Mounts of this process are nobody else's from here on, and end with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "unshare")


def _may_mount() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


def _full(job: Job, expected: Reference, random: Random) -> tuple[str, Verdict, str]:
    """A small file system, in a child with mounts of its own; the job runs in a child of that one."""
    before = sum(1 for _ in expected.before) * 4096
    room = int(random.random() * max(expected.written, 8192) * 1.2)
    case = f"{room} bytes of room"

    def run() -> Any:
        with job_folder(job) as plain:
            try:
                _own_mounts()
            except OSError:
                return ["survived", "no file system could be mounted"]
            prepared = {path.relative_to(plain): path.read_bytes() for path in plain.rglob("*") if path.is_file()}
            held = sum(-(-len(content) // 4096) * 4096 for content in prepared.values())
            _mount(plain, before + held + room + 65536)
            for path, content in prepared.items():
                (plain / path).parent.mkdir(parents=True, exist_ok=True)
                (plain / path).write_bytes(content)
            outcome = in_child(run_job(job, plain), limit=_LIMIT)
            _mount(plain, 1 << 30, again=True)
            verdict, detail = _after_full(job, plain, expected, outcome)
            if sys.platform == "linux":
                ctypes.CDLL(None).umount2(str(plain).encode(), 2)
            return [str(verdict), detail]

    outcome = in_child(run, limit=3 * _LIMIT)
    if not isinstance(outcome.value, list):
        return case, Verdict.WRONG, f"the trial itself failed: {tidy(outcome.stderr)} {json.dumps(outcome.code)}"
    return case, Verdict(outcome.value[0]), outcome.value[1]
