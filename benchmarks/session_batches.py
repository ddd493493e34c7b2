"""Does a batch cost the same however many went before? `make bench`.

40 batches in one session with past keys (AlphaEdit + BLUE, or another method), every batch the same work: facts of one
length, no early stop. Printed: seconds and peak memory of each batch, the ratio of the last ten batches' seconds to the
first ten's (medians), and the growth of resident memory over the session. Saving the session after each batch is timed by
itself.

In the same run the textbook form is timed at both ends of the sequence: the dense solve with all past keys written out,
whose cost and memory do grow, on the same keys, and compared with the recursive one.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, cast

import torch

from bluedit.datasets import read_dataset
from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.editors.closed_form.priors import SECOND_MOMENT
from bluedit.editors.closed_form.state import InverseMetrics
from bluedit.methods import METHODS, Method
from bluedit.models import load_model
from bluedit.sessions import Session
from bluedit.statistics.inverse import shrink
from bluedit.storage.files import atomic_file
from bluedit.strategies import BOUNDARY

RESULTS = Path(__file__).parent / "results" / "session_batches.json"


def resident() -> float:
    """Resident memory now, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--method",
        default="memit-seq",
        choices=[name for name, method in METHODS.items() if isinstance(method, Method) and method.caches_keys],
    )
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--facts", type=int, default=10, help="facts of a batch")
    parser.add_argument("--evaluations", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model("gpt2-mini", device="cpu")
    cases = read_dataset("world:counterfact:0:3:person")
    # Every batch gets the same mix of lengths: then it is the same work, and a ratio of seconds says something.
    cases = cases[: options.batches * options.facts]
    by_length = sorted((case.fact for case in cases), key=lambda fact: len(model.text.row(fact, with_target=True).ids))
    batches = [by_length[start :: options.batches] for start in range(options.batches)]
    random.Random(0).shuffle(batches)  # each holds slightly longer facts than the one before
    settings = {"v_num_grad_steps": options.evaluations, "early_stop_loss": 0.0}
    session = Session(model, method=METHODS[options.method].with_strategy(BOUNDARY), settings=settings)
    session.apply([])  # second moments and their inverses are not what is measured
    cast("InverseMetrics", session._state).prepare(model, [step.layer for step in BOUNDARY.steps(session.setup.layers)])
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for facts in batches:
            begun = time.perf_counter()
            session.apply(facts)
            edited = time.perf_counter()
            session.save(Path(folder) / "session")
            rows.append({"seconds": edited - begun, "saving": time.perf_counter() - edited, "resident_mib": resident()})
            print(
                f"batch {len(rows):2}: {rows[-1]['seconds']:.2f} s, saved in {rows[-1]['saving']:.2f} s, {resident():.0f} MiB"
            )
    quarter = max(1, len(rows) // 4)
    ends = [statistics.median(row["seconds"] for row in part) for part in (rows[:quarter], rows[-quarter:])]
    kept = sum(change.nbytes for patch in session.patches for change in patch.changes.values()) / 2**20
    document: dict[str, Any] = {
        "command": f"python benchmarks/session_batches.py --method {options.method} --batches {options.batches} "
        f"--facts {options.facts} --evaluations {options.evaluations}",
        "threads": torch.get_num_threads(),
        "batches": len(rows),
        "seconds_at_start": round(ends[0], 4),
        "seconds_at_end": round(ends[1], 4),
        "ratio": round(ends[1] / ends[0], 4),
        "resident_mib_after_first_quarter": round(rows[quarter - 1]["resident_mib"], 1),
        "resident_mib_at_end": round(rows[-1]["resident_mib"], 1),
        "patches_mib": round(kept, 1),
        "textbook": textbook(session) if options.method == "memit-seq" else {},
        "rows": [{key: round(value, 4) for key, value in row.items()} for row in rows],
    }
    with atomic_file(RESULTS) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(
        f"seconds per batch, median of {quarter}: {ends[0]:.2f} at the start, {ends[1]:.2f} at the end; "
        f"ratio {document['ratio']:.3f} (wanted: at most 1.15)"
    )
    print(
        f"resident memory: {document['resident_mib_after_first_quarter']:.0f} MiB after {quarter} batches, "
        f"{document['resident_mib_at_end']:.0f} MiB at the end; the factors of all patches take {kept:.0f} MiB"
    )
    for name, row in document["textbook"].items():
        print(
            f"solving and absorbing {name}: recursive {row['recursive']:.3f} s, dense {row['dense']:.3f} s, "
            f"relative difference {row['relative_difference']:.0e}"
        )


def textbook(session: Session) -> dict[str, dict[str, float]]:
    """One batch's solution at the session's first edited layer, recursive and dense, as first and as last of the sequence.

    Dense (BLUE eq. 8): solve (lambda C + Kp Kp^T + K1 K1^T) X = K1 with all past keys written out; its solution is the
    recursive Q.
    """
    batches = [batch.memory for batch in session._batches if batch.memory]
    name = next(iter(batches[0]))
    keys, layer = [batch[name].double() for batch in batches], int(name)
    settings, model = session.setup.settings, session.model
    session.undo(len(session))
    moment = session.setup.statistics.moments(model, [layer])[layer]
    metric = SECOND_MOMENT.inverse(moment, settings)
    prior_FF = settings.lambda_ * shrink(moment.matrix_FF, settings.shrinkage)
    found: dict[str, dict[str, float]] = {}
    for number, new_FN in enumerate(keys):
        recursive, dense = [], []
        for _ in range(5):
            copy = InverseMetric(metric.matrix_FF.clone())
            begun = time.perf_counter()
            gain_FN = copy.gain(new_FN)
            copy.absorb(new_FN)
            recursive.append(time.perf_counter() - begun)
            if number not in (0, len(keys) - 1):
                break
            begun = time.perf_counter()
            past_FM = torch.cat(keys[:number] or [new_FN[:, :0]], 1)
            expected_FN = torch.linalg.solve(prior_FF + past_FM @ past_FM.T + new_FN @ new_FN.T, new_FN)
            dense.append(time.perf_counter() - begun)
            error = ((gain_FN - expected_FN).norm() / expected_FN.norm()).item()
            assert error < 1e-8, error
        metric = copy
        if dense:
            found[f"batch {number + 1}"] = {
                "dense": round(statistics.median(dense), 4),
                "recursive": round(statistics.median(recursive), 4),
                "relative_difference": error,
            }
    return found


if __name__ == "__main__":
    main()
