"""Twenty facts edited into SmolLM2, exported in every format, and each export asked with the program that it is for.

python benchmarks/export_checks.py COUNTERFACT.json [--patch PATCH] [--work FOLDER] [--out docs/results/smollm2/exports.json]

What it writes:

- `scores`: ES, PS, NS of the unedited model, of the patch, of the checkpoint in transformers, of the exact and of compressed
  LoRA adapters in PEFT, and of the dequantised GGUF files, by the type of the changed tensors and of all.
- `greedy`: the first tokens that llama.cpp answers to the 20 edited prompts and to 40 neighbours, against transformers with the
  patch: how many answers are the same, and each that differs. `untouched` says how far the two programs differ by themselves.

Without --patch the edit is made first (about two minutes on one core). Needs `bluedit[gguf,peft]` and `xllamacpp`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import bluedit
from bluedit.edits import LowRank, Patch
from bluedit.edits.checkpoint import save_checkpoint
from bluedit.edits.export import export_gguf, export_gguf_lora, export_lora, read_blueprint
from bluedit.edits.export.blueprint import with_original_file
from bluedit.models import EditableModel, load_model
from bluedit.models.loading import model_folder
from bluedit.storage.files import atomic_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from llama_cpp import greedy

MODEL = "smollm2-135m-instruct"
SETTINGS = {"lambda": 3000, "v_lr": 1, "shrinkage": 0}
FACTS, NEIGHBOURS, TOKENS = 20, 40, 4
RANKS = (4, 8)
TYPES = ("f16", "q8_0", "q4_1")
SCORED = ("ES", "PS", "NS", "EA", "PA", "NA")


def scores(model: Any, cases: Sequence[Any]) -> dict[str, float]:
    found = bluedit.score_cases(model, cases).as_dict()
    return {name: round(found[name]["value"], 2) for name in SCORED}


def prompts_of(cases: Sequence[Any]) -> list[str]:
    """The edited prompts, and two neighbours of each fact."""
    each = NEIGHBOURS // len(cases)
    return [case.fact.text for case in cases] + [prompt for case in cases for prompt in case.neighborhood[:each]]


def transformers_answers(network: Any, tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Greedy answers, one prompt at a time, with nothing padded."""
    found: list[list[int]] = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            said = network.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        found.append(said[0, ids["input_ids"].shape[1] :].tolist())
    return found


def compared(prompts: Sequence[str], got: list[list[int]], expected: list[list[int]], tokenizer: Any) -> dict[str, Any]:
    """How many first tokens and whole answers are the same, of edited prompts and of neighbours, and each that differs."""
    differences = [
        {
            "prompt": prompt,
            "edited": number < FACTS,
            "transformers": tokenizer.decode(theirs),
            "llama.cpp": tokenizer.decode(ours),
        }
        for number, (prompt, ours, theirs) in enumerate(zip(prompts, got, expected, strict=True))
        if ours != theirs
    ]
    pairs = list(zip(got, expected, strict=True))
    return {
        "prompts": len(pairs),
        "same_first_token": sum(ours[:1] == theirs[:1] for ours, theirs in pairs),
        "same_answer": sum(ours == theirs for ours, theirs in pairs),
        "differences": differences,
    }


def check_adapters(patch: Patch, base: Any, cases: Sequence[Any], work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Scores in PEFT of the exact adapter, and of compressed ones with their errors."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.source)
    for rank in (None, *RANKS):
        name = "lora" if rank is None else f"lora, rank {rank}"
        exported = export_lora(patch, work / name.replace(", rank ", "-"), base, rank=rank)
        plain = AutoModelForCausalLM.from_pretrained(base.source, dtype=torch.float32)
        merged = PeftModel.from_pretrained(plain, exported.path).merge_and_unload()
        size = (exported.path / "adapter_model.safetensors").stat().st_size
        errors = {part.weight: part.error for part in exported.parts}
        yield name, scores(EditableModel(merged, tokenizer), cases) | {"error": errors, "bytes": size}


def check_file(path: Path, exported: Any, cases: Sequence[Any]) -> dict[str, Any]:
    """Scores of a GGUF file, dequantised."""
    return scores(load_model(str(path), device="cpu"), cases) | {
        "error": {part.weight: part.error for part in exported.parts},
        "error_at_keys": {part.weight: part.error_at_keys for part in exported.parts},
        "bytes": path.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("counterfact", type=Path)
    parser.add_argument("--patch", type=Path, help="a patch of the first 20 facts, made earlier")
    parser.add_argument("--work", type=Path, help="where the exports go; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=Path("docs/results/smollm2/exports.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for document in measure(options.counterfact, options.patch, options.work or Path(scratch)):
            with atomic_file(options.out) as temporary:  # after every step: nothing that was measured is lost
                temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure(counterfact: Path, made: Path | None, work: Path) -> Iterator[dict[str, Any]]:
    """The results so far, after every step."""
    cases = bluedit.read_cases(counterfact, limit=FACTS)
    model = load_model(MODEL, device="cpu")
    patch = Patch.load(made) if made is not None else _edited(model, cases)
    assert [fact.id for fact in patch.facts] == [case.fact.id for case in cases]
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, prompts = model.tokenizer, prompts_of(cases)
    plain = transformers_answers(model.model, tokenizer, prompts)
    found: dict[str, Any] = {"unedited": scores(model, cases)}
    with patch.applied(model):
        found["patch"] = scores(model, cases)
        expected = transformers_answers(model.model, tokenizer, prompts)
        save_checkpoint(model, work / "checkpoint", source=model_folder(MODEL))
    base = with_original_file(read_blueprint(MODEL))
    assert base.gguf is not None
    adapter = export_gguf_lora(patch, work / "lora.gguf", base).path
    packages = ("bluedit", "torch", "transformers", "peft", "gguf", "xllamacpp")
    answers: dict[str, Any] = {}
    document = {
        "model": MODEL, "fingerprint": model.fingerprint(), "facts": FACTS, "tokens": TOKENS, "method": patch.manifest.method,
        "strategy": patch.manifest.strategy, "layers": list(patch.manifest.layers), "settings": patch.manifest.settings,
        "adapter_bytes": adapter.stat().st_size, "scores": found, "greedy": answers,
        "versions": {package: version(package) for package in packages},
    }  # fmt: skip
    inputs = [tokenizer(prompt)["input_ids"] for prompt in prompts]

    def ask(name: str, path: Path, beside: Path | None, wanted: list[list[int]]) -> dict[str, Any]:
        answers[name] = compared(prompts, greedy(path, inputs, TOKENS, beside), wanted, tokenizer)
        print(name, {key: value for key, value in answers[name].items() if key != "differences"}, flush=True)
        return document

    yield document
    whole = export_gguf(patch, work / "f16-all.gguf", base, kind="f16", all_tensors=True)
    yield ask("gguf f16, all tensors", whole.path, None, expected)
    untouched = export_gguf(_without(patch), work / "untouched-f16.gguf", base, kind="f16", all_tensors=True).path
    yield ask("gguf lora beside the untouched, all f16", untouched, adapter, expected)
    yield ask("gguf lora beside the untouched file", base.gguf.path, adapter, expected)
    yield ask("untouched file", base.gguf.path, None, plain)
    yield ask("untouched, all f16", untouched, None, plain)
    for everything in (False, True):
        for kind in TYPES:
            name = f"gguf {kind}{', all tensors' if everything else ''}"
            path = work / f"scored-{kind}-{everything}.gguf"
            exported = export_gguf(patch, path, base, kind=kind, all_tensors=everything)
            found[name] = check_file(path, exported, cases)
            print(name, found[name], flush=True)
            yield document
            if kind == "f16" and not everything:
                yield ask(name, path, None, expected)
            path.unlink()
    found["checkpoint"] = scores(load_model(str(work / "checkpoint"), device="cpu"), cases)
    yield document
    for name, one in check_adapters(patch, base, cases, work):
        found[name] = one
        print(name, one, flush=True)
        yield document


def _edited(model: EditableModel, cases: Sequence[Any]) -> Patch:
    facts = [case.fact for case in cases]
    patch = bluedit.edit(model, facts, method=bluedit.blue(bluedit.MEMIT), layers=range(4, 9), settings=SETTINGS)
    assert isinstance(patch, Patch)
    return patch


def _without(patch: Patch) -> Patch:
    """A patch of the same weights that changes nothing."""
    changes = {
        name: LowRank(0 * one.residual_DN, one.gain_FN) for name, one in patch.changes.items() if isinstance(one, LowRank)
    }
    return Patch(changes, patch.manifest)


if __name__ == "__main__":
    main()
