"""Runs the table of bad inputs: builds what its rows name, and checks what became of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.bad_inputs import FILES, ROWS, Row
from torture.fixture import Workspace, make_model
from torture.trial import Result, Verdict, command, in_child, tidy, unsound

__all__ = ["Places", "bad_input", "named"]

_LIMIT = 30.0
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
_NAME = re.compile(r"\{([a-z0-9:.-]+)\}")


@dataclass
class Places:
    """The folders and files that rows name; each is made when it is first named."""

    work: Workspace
    made: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.work.root / "inputs"
        self.root.mkdir(exist_ok=True)

    def fill(self, text: str) -> str:
        """The text with every `{name}` replaced; braces around nothing stay."""
        return _NAME.sub(lambda found: self.place(found[1]), text)

    def names(self) -> set[str]:
        """Every name without a colon."""
        return set(self._named())

    def place(self, name: str) -> str:
        """What a name stands for."""
        if name not in self.made:
            kind, _, rest = name.partition(":")
            makers: dict[str, Callable[[str], Any]] = {
                "file": self._file, "config": self._config, "chat": self._chat, "patch": self._patch, "ledger": self._ledger,
            }  # fmt: skip
            self.made[name] = str(makers[kind](rest) if rest else self._named()[name]())
        return self.made[name]

    def _named(self) -> dict[str, Callable[[], Any]]:
        work = self.work
        seed = ("--seed", 1)
        return {
            "model": lambda: work.model,
            "facts": lambda: work.facts,
            "other": lambda: work.other_facts,
            "many": lambda: work.many_facts,
            "known": lambda: work.known,
            "corpus": lambda: work.corpus,
            "other-corpus": lambda: work.other_corpus,
            "recipe": lambda: work.recipe,
            "fast": lambda: shlex.join(
                map(
                    str,
                    (
                        "--layers", "1,2", "--corpus", f"text:{work.corpus}", "--templates", work.templates,
                        "--set", "v_num_grad_steps=2", "--set", "shrinkage=0.1", "--set", "lambda=5",
                    ),
                )
            ),
            "empty": self._empty,
            "patch": lambda: work.patch("patch"),
            "patch-other": lambda: work.patch("patch-other", *seed, facts=work.other_facts),
            "session": lambda: work.session("session-memit", "memit"),
            "session-two": lambda: work.session("session-memit", "memit") and work.root / "session-memit.2",
            "checkpoint": lambda: work.made(
                "checkpoint", "patch", "apply", work.patch("patch"), "--model", work.model, "--out", work.root / "checkpoint"
            ),
            "experiment": lambda: work.made("experiment", "run", work.recipe, "--out", work.root / "experiment"),
            "trace": lambda: work.made("trace", *work.trace(work.root / "trace")),
            "tuning": lambda: work.made("tuning", *work.tune(work.root / "tuning" / "tuning.json")) / "tuning.json",
            "statistics": work.exported,
            "cut-statistics": lambda: self._changed("statistics", "cut.safetensors", lambda old: old[: len(old) // 2]),
            "flipped-statistics": lambda: self._changed("statistics", "flipped.safetensors", _flip_last),
            "other-statistics": lambda: work.made(
                "other-exported.safetensors", "stats", "--model", self.place("other-model"), "--layers", "1,2", "--corpus",
                f"text:{work.corpus}", "--samples", 20, "--export", work.root / "other-exported.safetensors",
            ),
            "other-model": lambda: work.save_model("other-model", make_model(1)),
            "narrow-model": lambda: work.save_model("narrow-model", make_model(1, n_embd=16, n_inner=24)),
            "markup-model": lambda: shutil.copytree(work.model, self.root / "[red]model[/" / "x[/red]", dirs_exist_ok=True),
            "nan-model": lambda: self._weights("nan-model", "transformer.h.1.mlp.c_proj.weight", float("nan")),
            "infinite-model": lambda: self._weights("infinite-model", "transformer.h.2.mlp.c_fc.weight", float("inf")),
            "nan-embedding": lambda: self._weights("nan-embedding", "transformer.wte.weight", float("nan"), every=True),
            "overflowing-model": lambda: self._weights("overflowing-model", "transformer.wte.weight", 1e38, every=True),
            "no-weights": lambda: self._without("no-weights", "model.safetensors"),
            "no-tokenizer": lambda: self._without("no-tokenizer", "tokenizer.json", "tokenizer_config.json"),
            "pickle-model": self._pickled,
            "cut-model": lambda: self._file_of("cut-model", "model.safetensors", lambda old: old[: len(old) // 2]),
            "hollow-model": lambda: self._file_of("hollow-model", "model.safetensors", lambda _: b""),
            "garbage-model": lambda: self._file_of("garbage-model", "model.safetensors", lambda _: FILES["binary.json"]),
            "lfs-model": lambda: self._file_of(
                "lfs-model", "model.safetensors", lambda _: _POINTER
            ),
            "broken-tokenizer": lambda: self._file_of("broken-tokenizer", "tokenizer.json", lambda _: b"{"),
            "missing-tensor": self._missing_tensor,
            "wrong-tokenizer": lambda: work.save_model("wrong-tokenizer", make_model(0, vocab_size=300)),
            "bert": lambda: self._other_kind("bert"),
            "t5": lambda: self._other_kind("t5"),
            "llama": lambda: self._other_kind("llama"),
            "no-mlp": lambda: self._other_kind("no-mlp"),
        }  # fmt: skip

    # -- makers ------------------------------------------------------------------------------------------------------

    def _empty(self) -> Path:
        path = self.root / "empty"
        path.mkdir(exist_ok=True)
        return path

    def _file(self, name: str) -> Path:
        path = self.root / name
        content = FILES[name]
        if name.startswith("recipe-"):
            content = self.fill(content.decode()).encode()
        path.write_bytes(content)
        return path

    def _changed(self, place: str, name: str, change: Callable[[bytes], bytes]) -> Path:
        path = self.root / name
        path.write_bytes(change(Path(self.place(place)).read_bytes()))
        return path

    def _copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.work.model, self.root / name, dirs_exist_ok=True))

    def _file_of(self, name: str, file: str, change: Callable[[bytes], bytes]) -> Path:
        folder = self._copy(name)
        (folder / file).write_bytes(change((folder / file).read_bytes()))
        return folder

    def _without(self, name: str, *files: str) -> Path:
        folder = self._copy(name)
        for file in files:
            (folder / file).unlink()
        return folder

    def _pickled(self) -> Path:
        folder = self._without("pickle-model", "model.safetensors")
        (folder / "pytorch_model.bin").write_bytes(FILES["pickle.safetensors"])
        return folder

    def _weights(self, name: str, tensor: str, value: float, *, every: bool = False) -> Path:
        from safetensors.torch import load_file, save_file

        folder = self._copy(name)
        tensors = load_file(folder / "model.safetensors")
        if every:
            tensors[tensor][:] = value
        else:
            tensors[tensor][3, 4] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def _missing_tensor(self) -> Path:
        from safetensors.torch import load_file, save_file

        folder = self._copy("missing-tensor")
        tensors = load_file(folder / "model.safetensors")
        del tensors["transformer.h.1.mlp.c_proj.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def _other_kind(self, name: str) -> Path:
        """A model that GPT-2's patch does not fit, or that cannot be edited at all."""
        import torch
        from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, MambaConfig, T5Config, T5Model

        torch.manual_seed(0)
        size = 500
        models: dict[str, Callable[[], Any]] = {
            "bert": lambda: BertModel(
                BertConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
            ),
            "t5": lambda: T5Model(T5Config(vocab_size=size, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8)),
            "llama": lambda: AutoModelForCausalLM.from_config(
                LlamaConfig(
                    vocab_size=size, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48,
                    max_position_embeddings=96, pad_token_id=None, bos_token_id=0, eos_token_id=0,
                )
            ),
            "no-mlp": lambda: AutoModelForCausalLM.from_config(
                MambaConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0)
            ),
        }  # fmt: skip
        return self.work.save_model(name, models[name]())

    def _config(self, name: str) -> Path:
        folder = self._copy(f"config-{name}")
        path = folder / "config.json"
        config = json.loads(path.read_text())
        changes: dict[str, dict[str, Any]] = {
            "unknown-type": {"model_type": "telepathy", "architectures": ["TelepathyForCausalLM"]},
            "text-number": {"n_layer": "four"},
            "negative": {"n_layer": -3},
            "no-heads": {"n_head": 0},
            "odd-heads": {"n_head": 5},
            "many-layers": {"n_layer": 10**9},
            "wide": {"n_embd": 10**9, "n_inner": 4 * 10**9},
            "more-layers": {"n_layer": 6},
            "narrow": {"n_embd": 16},
            "quantised": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "control": {"model_type": "gpt2", "architectures": ["\x1b]0;owned\x07[/red]"], "_name_or_path": "\x1b[2J"},
        }
        deep = "[" * 100_000 + "]" * 100_000
        texts = {
            "cut": path.read_text()[:-20],
            "deep": deep,
            "inner-deep": json.dumps(config)[:-1] + f', "task_specific_params": {deep}}}',
            "list": "[1, 2]",
            "empty": "{}",
        }
        if name == "binary":
            path.write_bytes(FILES["binary.json"])
        else:
            path.write_text(texts[name] if name in texts else json.dumps(config | changes[name]))
        return folder

    def _chat(self, name: str) -> Path:
        said, many = "{{ messages[0].content }}", "{% for _ in range(99999) %}"
        templates = {
            "broken": "{% for message in messages %}",
            "loop": "{% for i in range(1000000000) %}x{% endfor %}" + said,
            "nested-loop": many + many + "x{% endfor %}{% endfor %}" + said,
            "deaf": "hello",
            "raising": "{{ raise_exception('not today') }}",
            "reaching": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + said,
            "recursive": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}" + said,
        }
        folder = self._copy(f"chat-{name}")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": templates[name]}))
        return folder

    def _patch(self, name: str) -> Path:
        folder = self.root / f"patch-{name}"
        shutil.copytree(self.place("patch"), folder, dirs_exist_ok=True)
        manifest, tensors = folder / "patch.json", folder / "patch.safetensors"
        document = json.loads(manifest.read_text())
        match name:
            case "version":
                document["format_version"] = 99
            case "control":
                document["facts"][0]["target"] = document["model"] = "\x1b]0;owned\x07\x1b[2J"
            case "markup":
                document["facts"][0]["id"] = document["model"] = document["method"] = "[/red]"
            case "negative":
                next(iter(document["weights"].values()))["layer"] = -7
            case "flipped":
                tensors.write_bytes(_flip_last(tensors.read_bytes()))
            case "loud":
                _loud(tensors)
            case _:
                pass
        manifest.write_text("[" * 100_000 + "]" * 100_000 if name == "deep" else json.dumps(document, indent=2))
        if name == "no-manifest":
            manifest.unlink()
        if name == "no-tensors":
            tensors.unlink()
        return folder

    def _ledger(self, name: str) -> Path:
        folder = self.root / f"ledger-{name}"
        shutil.copytree(self.place("checkpoint"), folder, dirs_exist_ok=True)
        index, originals = folder / "bluedit" / "applied.json", folder / "bluedit" / "originals.safetensors"
        texts = {
            "outside": '{"format_version": 1, "patches": ["../../patch"]}',
            "nul": '{"format_version": 1, "patches": ["a\\u0000b"]}',
            "number": "7",
            "deep": "[" * 100_000 + "]" * 100_000,
        }
        if name in texts:
            index.write_text(texts[name])
        elif name == "lost-index":
            index.unlink()
        elif name == "lost-originals":
            originals.unlink()
        else:
            originals.write_bytes(_flip_last(originals.read_bytes()))
        return folder


def _flip_last(content: bytes) -> bytes:
    """One bit of the last number, a low one."""
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def _loud(path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[next(name for name in tensors if name.endswith("gain"))][0, 0] = 6.7e35
    save_file(tensors, path, metadata=metadata)


def named(row: Row) -> set[str]:
    """The names that a row uses."""
    copies = {content.removeprefix("copy:") for _, content in row.before if content.startswith("copy:")}
    return copies | set(_NAME.findall(row.line))


# -- trials --------------------------------------------------------------------------------------------------------


def bad_input(number: int, places: Places) -> Result:
    """One row, in a folder of its own."""
    row = ROWS[number % len(ROWS)]
    started = time.monotonic()
    arguments = shlex.split(places.fill(row.line))
    with tempfile.TemporaryDirectory(prefix="torture-") as trial:
        folder = Path(trial).resolve() / "here"
        folder.mkdir()
        for name, content in row.before:
            _put(folder / name, places, content)
        before, inputs = _tree(folder), _inputs(places.work.root)

        def run() -> None:
            os.chdir(folder)
            os.environ["BLUEDIT_CACHE"] = str(Path(trial) / "cache")
            command(*arguments)

        outcome = in_child(run, limit=_LIMIT)
        after = _tree(folder)
        changed = inputs != _inputs(places.work.root)
    detail = _fault(row, outcome, before, after, changed)
    verdict = Verdict.WRONG if detail else Verdict.REFUSED if outcome.code else Verdict.SURVIVED
    case = f"row {number}: {tidy(row.line, 70)}: {row.wrong}"
    return Result(
        "bad inputs", number, case, verdict, detail or tidy(outcome.stderr, 200), round(time.monotonic() - started, 3)
    )


def _put(path: Path, places: Places, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, _, rest = content.partition(":")
    if kind == "copy":
        source = Path(places.place(rest))
        if source.is_dir():
            shutil.copytree(source, path)
        else:
            shutil.copyfile(source, path)
    elif kind == "link":
        path.symlink_to(rest)
    else:
        path.write_text(content)


def _tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if path.is_file()
        else str(path.readlink())
        if path.is_symlink()
        else ""
        for path in sorted(folder.rglob("*"))
    }


def _inputs(root: Path) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if not path.is_dir():
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return found


def _fault(row: Row, outcome: Any, before: dict[str, str], after: dict[str, str], changed: bool) -> str:
    """What is wrong; empty where nothing is."""
    if outcome.hung:
        return f"hangs: not done after {_LIMIT:.0f} s"
    if outcome.signal is not None:
        return f"crashed with signal {outcome.signal}"
    if problem := unsound(outcome.stdout, outcome.stderr):
        return problem
    codes = (row.code,) if isinstance(row.code, int) else row.code
    said = tidy(outcome.stderr or outcome.stdout, 200)
    if outcome.code not in codes:
        return f"exit code {outcome.code} instead of {' or '.join(map(str, codes))}: {said}"
    if changed:
        return "an input was changed"
    if outcome.code == 0:
        lost = sorted(name for name in before if name not in after or after[name] != before[name])
        lost = [name for name in lost if not name.startswith(("out", "link", "x.safetensors"))]
        return f"lost or changed: {', '.join(lost[:5])}" if lost else ""
    text = (outcome.stderr + outcome.stdout).lower()
    if not text.strip():
        return "no message"
    text = " ".join(re.sub("[│╭╮╰╯─┃]", " ", text).split())
    for wanted in row.says:
        choices = (wanted,) if isinstance(wanted, str) else wanted
        if not any(choice in text for choice in choices):
            return f"the message does not say {' or '.join(map(repr, choices))}: {said}"
    if after != before:
        gone, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
        other = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
        what = {"gone": gone, "left over": new, "changed": other}
        return "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in what.items() if names)
    return ""
