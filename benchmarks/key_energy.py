"""How large subjects' keys are in the metric of a text, layer by layer: what a lambda, or a null space, leaves of an edit.

    python benchmarks/key_energy.py --facts unseen.json --corpus text:FILE --samples 2047 --layers 4,6,8

With M = lambda C one key k alone is met by q / (1 + q), q = k^T C^-1 k / lambda; over the text's own keys k^T C^-1 k is d_ff in
the mean. With M = L2 I on the null space of C it is met by ||P k||^2 / (L2 + ||P k||^2). Keys are those of bare prompts.
"""

from __future__ import annotations

import argparse
import json

import torch

from bluedit.datasets import read_dataset
from bluedit.editors.closed_form.keys import fact_keys
from bluedit.editors.layers import parse_layers
from bluedit.models import load_model
from bluedit.statistics import Statistics, read_corpus

THRESHOLDS = (0.2, 0.3, 0.5, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--facts", required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--layers", default="4,6,8")
    options = parser.parse_args()
    model = load_model(options.model)
    facts = [case.fact for case in read_dataset(options.facts, options.count)]
    moments = Statistics(read_corpus(options.corpus), options.samples).moments(model, list(parse_layers(options.layers)))
    size = model.structure.d_ff
    for layer, moment in moments.items():
        keys_FN = fact_keys(model, facts, layer, ["{}"]).double()
        energies_N = (keys_FN * torch.linalg.solve(moment.matrix_FF.double(), keys_FN)).sum(0) / size
        values_F, vectors_FF = (tensor.double() for tensor in moment.eigenbasis)
        parts_FN = (vectors_FF.T @ keys_FN).square()
        line = {
            "layer": layer,
            "facts": len(facts),
            "key_energy_in_d_ff": [round(energies_N.quantile(at).item(), 2) for at in (0.25, 0.5, 0.75)],
            "mean_eigenvalue": float(f"{values_F.mean().item():.3g}"),
            "below_0.02": int((values_F < 0.02).sum()),
            "null_space": {
                threshold: {
                    "rank": int((below := values_F < threshold * values_F.mean()).sum()),
                    "median_key_energy": round(parts_FN[below].sum(0).median().item(), 1),
                }
                for threshold in THRESHOLDS
            },
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
