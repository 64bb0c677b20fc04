"""Writes the parts of the pages that are made from the code: `python docs/generate.py`.

Such a part stands between `<!-- made: NAME -->` and `<!-- /made -->`. A test compares the pages with what
this makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import click

from batchflow.cli.exits import Exit
from batchflow.cli.main import batchflow
from batchflow.config.reference import docstrings, reference

HERE: Final = Path(__file__).parent
_PART: Final = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- /made -->)", re.DOTALL)


def commands() -> str:
    """Every command, with its arguments and options."""
    return "\n".join(_described(batchflow, click.Context(batchflow, info_name="batchflow")))


def _described(command: click.Command, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _described(found, click.Context(found, info_name=name, parent=context))
        return
    arguments = " ".join(piece for piece in command.collect_usage_pieces(context)[1:])
    yield f"### `{context.command_path}{f' {arguments}' if arguments else ''}`\n"
    yield f"{_text(command.help)}\n"
    options = [each for each in command.params if isinstance(each, click.Option) and not _common(each)]
    rows = [record for each in options if (record := each.get_help_record(context))]
    if rows:
        yield "| option | meaning |\n|---|---|"
        yield from (f"| `{option}` | {_cell(meaning)} |" for option, meaning in rows)
        yield ""


def _common(parameter: click.Parameter) -> bool:
    return {"--config", "--profile", "--json", "--debug", "--help"} & {*parameter.opts} != set()


def _text(help_text: str | None) -> str:
    paragraphs = (help_text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def exits() -> str:
    """The exit codes."""
    meanings = docstrings(Exit)
    rows = [f"| {code:d} | {meanings[code.name]} |" for code in Exit]
    return "\n".join(["| code | meaning |", "|---|---|", *rows]) + "\n"


PARTS: Final[dict[str, Callable[[], str]]] = {"settings": reference, "commands": commands, "exits": exits}


def made(page: str) -> str:
    """The page as it should be."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", page)


def main() -> None:
    for path in sorted(HERE.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (wanted := made(text)) != text:
            path.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
