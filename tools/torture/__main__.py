"""`python -m torture`: run a sample, the long run, or one trial again."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torture import bad_inputs, disturb, driver, fuzz, table
from torture.fixture import Workspace, quiet_libraries
from torture.trial import Child, Result, Verdict, tidy

__all__ = ["KINDS", "Kind", "main", "markdown", "run"]


@dataclass(frozen=True)
class Kind:
    """A kind of trial: what it does, how many there are of it in a sample and in the long run, how much time a sample has."""

    about: str
    sample: int
    long: int
    share: float


KINDS: dict[str, Kind] = {
    "manifests": Kind(fuzz.KINDS["manifests"], 400, 2400, 0.16),
    "tensors": Kind(fuzz.KINDS["tensors"], 400, 2400, 0.12),
    "damage": Kind(fuzz.KINDS["damage"], 200, 700, 0.12),
    "inputs": Kind(fuzz.KINDS["inputs"], 120, 600, 0.10),
    "signals": Kind(disturb.KINDS["signals"], 60, 240, 0.16),
    "together": Kind(disturb.KINDS["together"], 24, 80, 0.10),
    "disk": Kind(disturb.KINDS["disk"], 24, 80, 0.08),
    "bad inputs": Kind("command lines that name what is missing, broken, huge or somebody else's", 0, 0, 0.16),
}
"""Every kind, in the order they run in. Of bad inputs there are as many as the table has rows."""


def _trials(kind: str, work: Workspace, keep: Path | None) -> Callable[[int], Result]:
    """What does one trial of a kind, given its seed."""
    if kind in fuzz.KINDS:
        targets = fuzz.targets(work)
        return lambda seed: fuzz.fuzz(kind, seed, targets, keep)
    if kind in disturb.KINDS:
        jobs, references = driver.jobs(work), dict[str, driver.Reference]()
        return lambda seed: disturb.disturb(kind, seed, jobs, references)
    places = table.Places(work)
    return lambda seed: table.bad_input(seed, places)


def run(
    kind: str,
    seeds: Sequence[int],
    work: Workspace,
    *,
    seconds: float | None = None,
    workers: int = 1,
    keep: Path | None = None,
) -> list[Result]:
    """Trials of one kind, until all seeds are done or the time is over. Progress goes to standard error.

    Damaged files that were not refused are kept under `keep`.

    The table of bad inputs is done whole, whatever the time: a row is as cheap as a message.
    """
    end = time.monotonic() + seconds if seconds is not None and kind != "bad inputs" else None
    if workers == 1:
        return list(_one_after_the_other(kind, seeds, work, end, "", keep))
    (work.root / "parts").mkdir(exist_ok=True)
    # Inputs are made in folders of the workers' own: two must not write one file.
    children: list[tuple[Child, Path]] = []
    for number in range(workers):
        part = work.root / "parts" / f"{number}.jsonl"

        def slice_of(number: int = number, part: Path = part) -> None:
            own = Workspace(work.root.with_name(f"{work.root.name[:-1]}{number + 1}"))
            os.environ["BLUEDIT_CACHE"] = str(own.cache)
            with part.open("w", encoding="utf-8") as file:
                for result in _one_after_the_other(kind, seeds[number::workers], own, end, f" [{number + 1}]", keep):
                    file.write(json.dumps(result.as_dict()) + "\n")

        children.append((Child(slice_of).start(), part))
    results: list[Result] = []
    for child, part in children:
        outcome = child.wait(limit=10**9)
        if outcome.code or outcome.signal is not None:
            raise RuntimeError(f"a worker of {kind} failed: {outcome.stderr}")
        sys.stderr.write(outcome.stderr)
        for line in part.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            results.append(Result(**(record | {"verdict": Verdict(record["verdict"])})))
    return sorted(results, key=lambda result: result.seed)


def _one_after_the_other(
    kind: str, seeds: Sequence[int], work: Workspace, end: float | None, name: str, keep: Path | None
) -> Iterable[Result]:
    trial, counts, told = _trials(kind, work, keep), Counter[str](), 0.0
    for done, seed in enumerate(seeds, start=1):
        if end is not None and time.monotonic() >= end:
            print(f"{kind}{name}: out of time after {done - 1} of {len(seeds)}", file=sys.stderr)
            return
        result = trial(seed)
        counts[result.verdict] += 1
        if result.verdict is Verdict.WRONG:
            print(f"WRONG --only '{kind}' --seed {seed}: {result.case}: {result.detail}", file=sys.stderr)
        elif time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{kind}{name}: {done} of {len(seeds)}, {dict(counts)}", file=sys.stderr)
        yield result


# -- what is printed -----------------------------------------------------------------------------------------------


def summary(results: Iterable[Result]) -> dict[str, dict[str, int]]:
    """By kind, how many trials were made and with what verdict."""
    counts: dict[str, dict[str, int]] = {}
    for result in results:
        row = counts.setdefault(result.kind, {"tried": 0} | {str(verdict): 0 for verdict in Verdict})
        row["tried"] += 1
        row[result.verdict] += 1
    return counts


def markdown(counts: dict[str, dict[str, int]]) -> str:
    """The counts as a table."""
    names = ("tried", *map(str, Verdict))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    lines += [
        f"| {kind}: {KINDS[kind].about} | {' | '.join(str(row[name]) for name in names)} |" for kind, row in counts.items()
    ]
    total = {name: sum(row[name] for row in counts.values()) for name in names}
    lines.append(f"| **all** | {' | '.join(f'**{total[name]}**' for name in names)} |")
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torture", description="Treat bluedit badly, and count what comes of it.")
    parser.add_argument("--long", action="store_true", help="the long run: all counts, no time limit")
    parser.add_argument("--only", action="append", choices=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first trial of each kind; the number of a bad input")
    parser.add_argument("--count", type=int, help="so many trials of each kind")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for the sample")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the trials of a kind")
    parser.add_argument(
        "--out",
        type=Path,
        help="write NAME.json, with every trial, and NAME.md; keep damaged files in NAME.wrong",
    )
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 when nothing was wrong."""
    asked = _arguments(given)
    single = asked.only is not None and len(asked.only) == 1 and asked.seed and asked.count is None
    started = time.monotonic()
    results: list[Result] = []
    keep = asked.out.with_suffix(".wrong") if asked.out else None
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        # Of the same length in every run: a damaged file may hold it.
        root = Path(place).resolve() / "space-0"
        root.mkdir()
        quiet_libraries(root / "cache")
        work = Workspace(root)
        work.warm()
        shared = sum(KINDS[kind].share for kind in asked.only or KINDS)
        for kind in asked.only or KINDS:
            rows = len(bad_inputs.ROWS) if kind == "bad inputs" else 0
            count = asked.count or (1 if single else rows or (KINDS[kind].long if asked.long else KINDS[kind].sample))
            last = asked.seed + count if not rows else min(asked.seed + count, rows)
            seconds = None if asked.long or single else 60 * asked.minutes * KINDS[kind].share / shared
            results += run(kind, range(asked.seed, last), work, seconds=seconds, workers=asked.workers, keep=keep)
    counts = summary(results)
    document: dict[str, Any] = {
        "seed": asked.seed,
        "seconds": round(time.monotonic() - started, 1),
        "counts": counts,
        "wrong": [result.as_dict() for result in results if result.verdict is Verdict.WRONG],
        "trials": [result.as_dict() for result in results],
    }
    if asked.out:
        _write(asked.out.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
        _write(asked.out.with_suffix(".md"), markdown(counts))
    print(markdown(counts), end="")
    if single:
        print("\n".join(f"{result.verdict}: {result.case}: {tidy(result.detail, 2000)}" for result in results))
    wrong = sum(row[Verdict.WRONG] for row in counts.values())
    print(f"{wrong} wrong of {len(results)} trials in {document['seconds']:.0f} s", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
