"""The `bluedit` command. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator
from importlib import metadata
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from bluedit.cli import (
    analyze,
    demo,
    doctor,
    edit,
    evaluate,
    export,
    get,
    known,
    log,
    patch,
    patch_facts,
    report,
    run,
    session,
    stats,
    trace,
    tune,
)
from bluedit.version import __version__

__all__ = ["app", "main"]


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM came. What cleans up after Ctrl-C cleans up after that too."""


class _Group(TyperGroup):
    """Handles Ctrl-C itself: what typer makes of it, a message or none, and which exit code, depends on its version."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            _stopped(stop)


app = typer.Typer(
    name="bluedit",
    cls=_Group,
    help="Change what a language model knows, check the result, and revert it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("edit")(edit.edit)
app.command("evaluate")(evaluate.evaluate)
app.command("get")(get.get)
app.command("run")(run.run)
app.command("report")(report.report)
app.command("stats")(stats.stats)
app.command("trace")(trace.trace)
app.command("tune")(tune.tune)
app.command("models")(known.models)
app.command("methods")(known.methods)
patch.app.registered_commands += patch_facts.app.registered_commands
app.add_typer(analyze.app, name="analyze")
app.add_typer(patch.app, name="patch")
app.add_typer(log.app, name="log")
app.add_typer(export.app, name="export")
app.add_typer(session.app, name="session")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"bluedit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 bad input,
    130 stopped by Ctrl-C, 143 by SIGTERM."""


def main() -> None:
    """Run the command line; every deliberate error becomes one message and its exit code, any other one and a log file."""
    from bluedit.errors import BlueditError

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A letter that the output's code page lacks is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _sigterm_as_interrupt():
            app()
    except BlueditError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}; nothing was left half written", 1)
    except KeyboardInterrupt as stop:
        _stopped(stop)
    except Exception as error:
        _fail(_internal(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    from bluedit.reports.text import visible

    text = visible(message)
    if len(text) > _LONGEST_MESSAGE:  # names and paths of the user's may be of any length
        text = f"{text[:_LONGEST_MESSAGE]}... ({len(text) - _LONGEST_MESSAGE:,} more characters)"
    print(f"error: {text}", file=sys.stderr)
    sys.exit(code)


_LONGEST_MESSAGE = 3500


def _stopped(stop: KeyboardInterrupt) -> NoReturn:
    if isinstance(stop, _TerminatedError):
        _fail("stopped by SIGTERM; nothing was left half written", 128 + signal.SIGTERM)
    _fail("stopped; nothing was left half written", 130)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Generator[None]:
    """Within the block SIGTERM stops what runs as Ctrl-C does, once: what cleans up then is not disturbed by another one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


_LONGEST = 300
"""Characters of an unforeseen error's own message that are printed; the log file has all of them."""


def _internal(error: Exception) -> str:
    """The message of an error that nobody foresaw, once its traceback is in a log file."""
    said = " ".join(str(error).split())
    said = f"{said[:_LONGEST]}..." if len(said) > _LONGEST else said
    what = f"internal error: {type(error).__name__}{f': {said}' if said else ''}"
    try:
        from bluedit.storage.files import cache_folder

        log = cache_folder() / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        versions = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "safetensors", "typer", "rich")]
        lines = [
            f"bluedit {__version__}",
            f"command: {shlex.join(sys.argv)}",
            f"platform: {platform.platform()}, Python {platform.python_version()}, {', '.join(versions)}",
            "",
            *(part.rstrip("\n") for part in traceback.format_exception(error)),
        ]
        log.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    except Exception as problem:
        return (
            f"{what}. This is a fault in bluedit; please report this line (no log could be written: {type(problem).__name__})"
        )
    return f"{what}. This is a fault in bluedit; please report it, with the log {log}"
