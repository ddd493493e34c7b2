"""What trials are tried on: a tiny random model, its facts and texts, made on the spot from nothing but seeds."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torture.trial import captured, command

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from bluedit.models import EditableModel

__all__ = ["LAYERS", "Workspace", "make_model", "quiet_libraries"]

LAYERS = (1, 2)
_VOCABULARY = 500
_FAST = ("--layers", "1,2", "--set", "v_num_grad_steps=2", "--set", "shrinkage=0.1")


def quiet_libraries(cache: Path) -> None:
    """Environment in which children of a fork are safe: one thread, no network, no cache of the user's. Before imports."""
    os.environ |= {
        "BLUEDIT_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "COLUMNS": "120",
        "MPLBACKEND": "Agg",
    }
    import torch

    torch.set_num_threads(1)
    import tqdm

    tqdm.tqdm.monitor_interval = 0
    from transformers.utils import logging

    logging.disable_progress_bar()


def make_model(seed: int = 0, **configuration: Any) -> PreTrainedModel:
    """A GPT-2 of four narrow layers with random weights."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config

    sizes: dict[str, Any] = {
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_inner": 48,
        "n_positions": 96,
        "vocab_size": _VOCABULARY,
    }
    config = GPT2Config(**(sizes | {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3} | configuration))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).float().eval()


def _make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")  # noqa: S106


@dataclass
class Workspace:
    """A folder of inputs that trials read and never write; each is made when it is first asked for.

    The model is also kept in memory: children have it by being forked.
    """

    root: Path

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(exist_ok=True)

    @property
    def cache(self) -> Path:
        """Where `BLUEDIT_CACHE` points unless a trial has its own."""
        return self.root / "cache"

    def run(self, *arguments: Any) -> str:
        """Run a command in this process; it has to succeed."""
        before = sys.argv
        try:
            with captured() as (out, err):
                command(*arguments)
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"bluedit {' '.join(map(str, arguments))}: {err.getvalue()}") from end
        finally:
            sys.argv = before
        return out.getvalue()

    def warm(self) -> None:
        """Run every command once, so that children find everything imported."""
        out = self.root / "warm"
        if out.exists():
            return
        out.mkdir()
        _ = self.editable
        for arguments in (
            self.edit(out / "patch", "--json"),
            ("patch", "show", out / "patch"),
            ("patch", "apply", out / "patch", "--model", self.model, "--out", out / "checkpoint"),
            ("patch", "revert", "--model", out / "checkpoint", "--out", out / "reverted"),
            ("evaluate", "--model", self.model, "--dataset", self.facts, "--limit", 1),
            ("doctor", self.model, "--layers", "1,2"),
            self.stats("--export", out / "exported.safetensors"),
            self.trace(out / "trace"),
            self.tune(out / "tuning.json"),
            ("run", self.recipe, "--out", out / "run"),
        ):
            self.run(*arguments)

    # -- inputs ------------------------------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> list[str]:
        """The corpus."""
        from bluedit.datasets import World

        return World(0).corpus(300)

    @cached_property
    def corpus(self) -> Path:
        """The corpus as a file."""
        return self.write("corpus.txt", "\n".join(self.texts) + "\n")

    @cached_property
    def other_corpus(self) -> Path:
        """Another text."""
        return self.write("other-corpus.txt", "\n".join(self.texts[100:250]) + "\n")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of all models here."""
        return _make_tokenizer(self.texts)

    @cached_property
    def model(self) -> Path:
        """The model's folder."""
        return self.save_model("model", make_model())

    @cached_property
    def editable(self) -> EditableModel:
        """The model in memory. Children may change theirs; this one stays."""
        from bluedit.models import load_model

        return load_model(str(self.model))

    def save_model(self, name: str, model: PreTrainedModel) -> Path:
        """A model and the tokenizer as a folder."""
        folder = self.root / name
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """CounterFact records."""
        from bluedit.datasets import World

        return World(0).counterfact(40)

    @cached_property
    def facts(self) -> Path:
        """Six records to edit."""
        return self.write("facts.json", json.dumps(self.records[:6]))

    @cached_property
    def other_facts(self) -> Path:
        """Six others."""
        return self.write("other-facts.json", json.dumps(self.records[6:12]))

    @cached_property
    def many_facts(self) -> Path:
        """All of them: a search for settings needs ten that the model does not say already."""
        return self.write("many-facts.json", json.dumps(self.records))

    @cached_property
    def templates(self) -> Path:
        """The bare prompt alone: no text has to be generated."""
        return self.write("templates.json", '["{}"]')

    @cached_property
    def known(self) -> Path:
        """Facts that the model knows: what it happens to say is made the object."""
        import torch

        from bluedit.datasets import World
        from bluedit.facts import Fact

        model, rows = self.editable, []
        for record in World(0).counterfact(300):
            rewrite = record["requested_rewrite"]
            fact = Fact(rewrite["prompt"], rewrite["subject"], "x")
            with torch.no_grad():
                logits = model.model(input_ids=torch.tensor([model.text.prompt(fact.text)])).logits[0, -1]
            said = int(logits.argmax())
            object = str(model.tokenizer.decode([said])).strip()
            if not object or model.text.target(object) != (said,) or fact.prompt.endswith("{}"):
                continue
            rows.append({"known_id": len(rows), "subject": fact.subject, "attribute": object, "prompt": fact.text})
            if len(rows) == 4:
                break
        return self.write("known.json", json.dumps(rows))

    @cached_property
    def recipe(self) -> Path:
        """A small recipe of two runs."""
        settings = "v_num_grad_steps = 2, shrinkage = 0.1"
        return self.write(
            "recipe.toml",
            f"name = 'small'\nmodel = '{self.model}'\ndataset = '{self.facts}'\nbatch_size = 2\ncorpus = 'text:{self.corpus}'\n"
            f"[[runs]]\nmethod = 'memit'\nstrategy = 'boundary'\nlayers = '1-2'\nsettings = {{ {settings} }}\n"
            "[[runs]]\nmethod = 'alphaedit'\nlayers = '1-2'\n"
            "settings = { v_num_grad_steps = 2, nullspace_scale = 'relative', nullspace_threshold = 0.5 }\n",
        )

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of the workspace."""
        path = self.root / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    # -- commands ----------------------------------------------------------------------------------------------------

    def edit(self, out: Path, *more: Any, facts: Path | None = None, method: str = "memit") -> tuple[Any, ...]:
        """The arguments of a quick edit."""
        settings = {
            "memit": ("--set", "lambda=5"),
            "alphaedit": ("--set", "nullspace_scale=relative", "--set", "nullspace_threshold=0.5"),
            "prune": ("--set", "lambda=5", "--set", "prune_base=1.5"),
            "rect": ("--set", "lambda=5"),
        }
        fast = ("--layers", "1", "--set", "ft_num_steps=2") if method == "ft-m" else (*_FAST, *settings[method])
        return (
            "edit", "--model", self.model, "--facts", facts or self.facts, "--out", out, "--method", method,
            "--corpus", f"text:{self.corpus}", "--templates", self.templates, *fast, *more,
        )  # fmt: skip

    def stats(self, *more: Any) -> tuple[Any, ...]:
        """The arguments of a short pass."""
        return (
            "stats", "--model", self.model, "--layers", "1,2", "--corpus", f"text:{self.corpus}", "--samples", 60, *more,
        )  # fmt: skip

    def tune(self, out: Path, *more: Any) -> tuple[Any, ...]:
        """The arguments of a search of three trials."""
        return (
            "tune", "--model", self.model, "--facts", self.many_facts, "--out", out, "--layers", "1,2", "--trials", 3,
            "--corpus", f"text:{self.corpus}", "--templates", self.templates, "--vary", "lambda", "--set", "lambda=1",
            "--set", "v_num_grad_steps=12", "--set", "v_lr=0.5", "--set", "clamp_norm_factor=4", "--set", "shrinkage=0.1",
            *more,
        )  # fmt: skip

    def trace(self, out: Path, *more: Any) -> tuple[Any, ...]:
        """The arguments of a trace of four facts."""
        return ("trace", "--model", self.model, "--facts", self.known, "--out", out, "--samples", 2, "--examples", 0, *more)

    # -- undamaged objects -------------------------------------------------------------------------------------------

    def made(self, name: str, *arguments: Any) -> Path:
        """What a command writes under this name, once."""
        path = self.root / name
        if not path.exists():
            self.run(*(path if argument is OUT else argument for argument in arguments))
        return path

    def patch(self, name: str, *more: Any, facts: Path | None = None, method: str = "memit") -> Path:
        """A patch."""
        return self.made(name, *self.edit(OUT, *more, facts=facts, method=method))

    def exported(self) -> Path:
        """Statistics as a file to hand on."""
        path = self.root / "exported.safetensors"
        return self.made(path.name, *self.stats("--export", path))

    def session(self, name: str, method: str, *more: Any, facts: Path | None = None) -> Path:
        """A session of three batches, with copies of its folder after the first and the second: `NAME.1`, `NAME.2`."""
        folder = self.root / name
        if not folder.exists():
            for batches in (1, 2, 3):
                limited = ("--limit", 2 * batches, "--batch-size", 2, "--session", folder, "--force", *more)
                self.run(*self.edit(self.root / f"{name}-patch", *limited, facts=facts, method=method))
                if batches < 3:
                    shutil.copytree(folder, self.root / f"{name}.{batches}")
        return folder


OUT: Any = object()
"""Stands for the path that is made."""
