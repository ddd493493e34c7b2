"""The `bluedit` command. Heavy imports happen inside the commands, so that help is instant."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from bluedit import __version__
from bluedit.cli import demo, doctor, edit, evaluate, known, patch, run, session, stats, trace, tune

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Handles Ctrl-C itself: what typer makes of it, a message or none, and which exit code, depends on its version."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("stopped; nothing was left half written", 130)


app = typer.Typer(
    name="bluedit",
    cls=_Group,
    help="Change what a language model knows, check it, and take it back again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("edit")(edit.edit)
app.command("evaluate")(evaluate.evaluate)
app.command("run")(run.run)
app.command("stats")(stats.stats)
app.command("trace")(trace.trace)
app.command("tune")(tune.tune)
app.command("models")(known.models)
app.command("methods")(known.methods)
app.add_typer(patch.app, name="patch")
app.add_typer(session.app, name="session")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"bluedit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 bad input."""


def main() -> None:
    """Run the command line; every deliberate error becomes one message and its exit code."""
    from bluedit.errors import BlueditError

    try:
        app()
    except BlueditError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}; nothing was left half written", 1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
