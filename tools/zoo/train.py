"""Train an embedded model from nothing: `PYTHONPATH=tools python -m zoo.train gpt2-mini`.

Each step's rows are drawn from a generator seeded by (seed, step), so a run that is stopped and started again
sees the same text as one that never stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bluedit.datasets.world import World
from bluedit.models import load_model
from bluedit.models.embedded import EMBEDDED
from bluedit.storage.locks import claimed
from bluedit.storage.resumable import Checkpoint, State
from zoo.card import write_card
from zoo.gates import GATES, measure_gates

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_DOCUMENTS = 20_000
_AVERAGED = 50


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Everything that determines the trained weights (up to the arithmetic of the machine)."""

    world_seed: int = 0
    seed: int = 0
    vocabulary: int = 4096
    context: int = 128
    layers: int = 8
    width: int = 256
    heads: int = 4
    steps: int = 1500
    dropout: float = 0.1
    rows: int = 32
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    gradient_clip: float = 1.0


ZOO: dict[str, TrainingSettings] = {"gpt2-mini": TrainingSettings()}
"""The embedded models that can be trained, by name."""


def train_tokenizer(world: World, settings: TrainingSettings) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE, fitted to the world's text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(world.corpus(TOKENIZER_DOCUMENTS, seed=settings.seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=settings.context,
    )


def new_model(settings: TrainingSettings) -> GPT2LMHeadModel:
    """GPT-2's architecture with fresh weights, seeded."""
    torch.manual_seed(settings.seed)
    options: dict[str, Any] = {
        # Eager attention has the faster backward pass for short rows on a CPU.
        "attn_implementation": "sdpa" if torch.cuda.is_available() else "eager",
    }
    config = GPT2Config(
        vocab_size=settings.vocabulary,
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        # The fused kernel of the same tanh approximation that GPT-2 calls gelu_new.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )
    return GPT2LMHeadModel(config)


def batch(world: World, tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings, step: int) -> torch.Tensor:
    """The rows of one step, (rows, context): each opens with a document and holds as many as fit."""
    rng = random.Random(f"bluedit-train/{settings.seed}/{step}")
    rows: list[list[int]] = []
    for _ in range(settings.rows):
        row: list[int] = []
        while len(row) < settings.context:
            texts = [world.document(rng) + END_OF_TEXT for _ in range(4)]
            row.extend(token for ids in tokenizer(texts)["input_ids"] for token in ids)
        rows.append(row[: settings.context])
    return torch.tensor(rows)


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def _optimizer(model: GPT2LMHeadModel, settings: TrainingSettings) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98), fused=True)


@dataclass
class _Progress:
    """How far a run has come: what its log reports, kept with the checkpoint."""

    step: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()
    """The last ones, up to `_AVERAGED`."""

    def after(self, loss: float, seconds: float) -> _Progress:
        return _Progress(self.step + 1, self.seconds + seconds, (*self.losses, loss)[-_AVERAGED:])

    @property
    def loss(self) -> float:
        return sum(self.losses) / max(1, len(self.losses))


def _state(model: Any, optimizer: torch.optim.AdamW, progress: _Progress, settings: TrainingSettings) -> State:
    """Weights, optimiser state and progress."""
    tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return State(tensors, {"progress": json.dumps(asdict(progress)), "settings": json.dumps(asdict(settings))})


def _resume(checkpoint: Checkpoint, model: Any, optimizer: torch.optim.AdamW, settings: TrainingSettings) -> _Progress:
    """Restore what was saved last; returns how far it had come, the beginning where there is none."""
    stored = checkpoint.load()
    if stored is None:
        return _Progress()
    if json.loads(stored.metadata["settings"]) != asdict(settings):
        raise SystemExit(f"{checkpoint.path} was made with other settings; remove it or choose another --work folder")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored.tensors[f"model.{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in stored.tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    progress = json.loads(stored.metadata["progress"])
    return _Progress(progress["step"], progress["seconds"], tuple(progress["losses"]))


def train(
    settings: TrainingSettings, work: Path, checkpoint_every: int = 250
) -> tuple[Any, PreTrainedTokenizerFast, dict[str, Any]]:
    """Train to the end, resuming from `work` where it holds a checkpoint. Returns model, tokenizer and a log."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(settings.world_seed)
    tokenizer = train_tokenizer(world, settings)
    model: Any = new_model(settings)
    model.to(device)
    optimizer = _optimizer(model, settings)
    checkpoint = Checkpoint(work / "checkpoint.safetensors")
    progress = _resume(checkpoint, model, optimizer, settings)
    while progress.step < settings.steps:
        started = time.monotonic()
        loss = _step(model, optimizer, world, tokenizer, settings, progress.step, device)
        progress = progress.after(loss, time.monotonic() - started)
        last = progress.step == settings.steps
        if last or progress.step % _AVERAGED == 0:
            rate = progress.step / progress.seconds
            print(f"step {progress.step}/{settings.steps}  loss {progress.loss:.4f}  {rate:.2f} steps/s", file=sys.stderr)
        if last or progress.step % checkpoint_every == 0:
            checkpoint.save(_state(model, optimizer, progress, settings))
    return model, tokenizer, {"seconds": round(progress.seconds, 1), "last_loss": progress.loss, "device": device.type}


def _step(
    model: Any,
    optimizer: torch.optim.AdamW,
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    settings: TrainingSettings,
    step: int,
    device: torch.device,
) -> float:
    """One optimisation step; its loss."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step)
    # Dropout is drawn afresh from (seed, step), as the text is: nothing depends on where a run was interrupted.
    torch.manual_seed(settings.seed * 1_000_003 + step)
    rows = batch(world, tokenizer, settings, step).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def check(out: Path) -> list[str]:
    """Measure the gates on the weights in a folder, as they ship, record them and write the card. Returns the gates missed."""
    path = out / "training.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    gates = measure_gates(load_model(str(out)), world=record["settings"]["world_seed"])
    record["gates"] = {name: estimate.as_dict() for name, estimate in gates.items()}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_card(out)
    print(json.dumps(record["gates"], indent=2))
    return [gate.name for gate in GATES if gates[gate.name].value < gate.minimum]


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m zoo.train", description="Train an embedded model from nothing.")
    parser.add_argument("name", choices=sorted(ZOO))
    parser.add_argument("--out", type=Path, help="where the finished model folder goes (default: inside the package)")
    parser.add_argument("--work", type=Path, help="folder for checkpoints (default: ./zoo-NAME)")
    parser.add_argument("--steps", type=int, help="train for another number of steps than published")
    parser.add_argument("--check", action="store_true", help="only measure the gates of the finished model again")
    options = parser.parse_args(arguments)
    settings = ZOO[options.name]
    if options.steps is not None:
        settings = replace(settings, steps=options.steps)
    out = options.out or EMBEDDED[options.name]
    if not options.check:
        work = options.work or Path(f"zoo-{options.name}")
        with claimed(work):
            model, tokenizer, log = train(settings, work)
        # Dropout was for training; who loads the model gets none.
        model.config.resid_pdrop = model.config.embd_pdrop = 0.0
        model.half().cpu().save_pretrained(out)
        tokenizer.save_pretrained(out)
        (out / "training.json").write_text(json.dumps({"settings": asdict(settings), **log}, indent=2) + "\n", encoding="utf-8")
    if missed := check(out):
        sys.exit(f"gates missed: {', '.join(missed)}; the model in {out} should not ship")


if __name__ == "__main__":
    main()
