"""The `bluedit` command, and `python -m bluedit`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line. Ctrl-C is answered from the start: imports alone take half a second."""
    try:
        from bluedit.cli.main import main as run
    except KeyboardInterrupt:
        print("error: stopped; nothing was left half written", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
