"""The commands of the command line by name, such as "encode" and "tokens export"."""

from typing import Any

import typer.main

from codec.cli.main import app


def all_commands(group: Any = None, prefix: str = "") -> dict[str, Any]:
    """All commands that do something, without the groups that hold them."""
    group = typer.main.get_command(app) if group is None else group
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= all_commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
    return found
