"""`batchflow completion`: what a shell needs to complete the commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from batchflow.cli import terminal
from batchflow.cli.command import Command, Invocation
from batchflow.cli.exits import Exit

_VARIABLE = "_BATCHFLOW_COMPLETE"


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the completion script of SHELL.

    In bash: eval "$(batchflow completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root().command
    script = kind(root, {}, "batchflow", _VARIABLE).source().strip()
    if click.get_current_context().ensure_object(Invocation).as_json:
        terminal.write_json({"shell": shell, "script": script})
    else:
        terminal.write(script)
    return Exit.OK
