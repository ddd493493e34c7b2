"""Draw the README's picture from a real run:

bluedit demo --json > demo.json && python docs/images/picture_of_demo.py demo.json
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from rich.console import Console

from bluedit.cli.demo import report


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    console = Console(record=True, width=128, file=io.StringIO())
    console.print(report(document))
    console.save_svg(str(Path(__file__).parent / "demo.svg"), title="bluedit demo")


if __name__ == "__main__":
    main()
