"""Takes the picture of the README: `python docs/assets/record.py` runs the demo and writes demo.svg.

It is what the program printed in a real run, coloured by rich. The fonts are the reader's own.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI

HERE: Final = Path(__file__).parent
DEMO: Final = HERE.parents[1] / "examples" / "demo.py"
_WIDTH: Final = 92
_REMOTE_FONT: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    said = subprocess.run([sys.executable, str(DEMO)], capture_output=True, text=True, check=True).stdout
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print("[bold green]$[/] make demo")
    console.print(said.rstrip(), markup=False)
    picture = console.export_svg(title="a thousand Java tasks on two nodes", theme=MONOKAI, unique_id="demo")
    (HERE / "demo.svg").write_text(_REMOTE_FONT.sub("", picture), encoding="utf-8")


if __name__ == "__main__":
    main()
