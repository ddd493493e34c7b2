"""A program of its own: renders a chat template within limits, to see whether that ends at all.

A template is code that came with a checkpoint. Its sandbox keeps it from files and from long ranges, not from loops within
loops or texts of gigabytes, and nothing can stop it from outside in the same process. `bluedit.models.inputs.chat` starts this
file with the task as JSON on standard input, and reads one JSON object with `problem`: what is wrong in words, or null. What
the template says, wrong or right, is looked at afterwards by transformers itself.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any


def _limit(seconds: int, memory: int) -> None:
    try:
        import resource
    except ImportError:  # no such thing on Windows: there is the time limit of whoever waits
        return
    for kind, value in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or value <= hard:
            resource.setrlimit(kind, (value, value))


def _environment() -> Any:
    """What transformers compiles chat templates with."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around what an assistant says; only its content counts here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, indent=indent, ensure_ascii=False)
    functions: dict[str, Any] = {"raise_exception": raise_exception, "strftime_now": lambda form: datetime.now().strftime(form)}
    environment.globals.update(functions)
    return environment


def _problem(task: dict[str, Any]) -> str | None:
    largest = task["characters"]
    try:
        template = _environment().from_string(task["template"])
        for variables in task["renderings"]:
            size = 0
            for part in template.generate(**task["tokens"], **variables):
                size += len(part)
                if size > largest:
                    return f"writes more than {largest:,} characters for a message of one word"
    except MemoryError:
        return f"takes more than {task['memory'] / 2**30:g} GiB of memory"
    except RecursionError:
        return "calls itself without end, or is nested too deep"
    except OverflowError as error:
        return f"counts too far ({error})"
    except Exception:  # a message that the template does not take: transformers will say so
        return None
    return None


def main() -> None:
    task = json.load(sys.stdin)
    sys.path[:] = task["path"]
    _limit(task["seconds"], task["memory"])
    sys.stdout.write(json.dumps({"problem": _problem(task)}))


if __name__ == "__main__":
    main()
