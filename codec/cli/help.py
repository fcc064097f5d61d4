"""How commands are added, and their help pages: placeholders instead of types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer import Typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

NUMBERS = {int: "N", float: "X"}


class Command(TyperCommand):
    """A command of `codec`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [described(param) for param in super().get_params(ctx)]


def command(app: Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that adds a function as a command, by its own name unless another is given."""
    return app.command(name, cls=Command)


class Group(TyperGroup):
    """A group of commands, and `codec` itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [described(param) for param in super().get_params(ctx)]


def described(param: Any) -> Any:
    """Set what the help page shows as the value of an option or an argument; returns it.

    Typer writes the Python type: `<bool>` beside a flag, `<list[str]>` beside an argument.
    """
    if isinstance(param, TyperArgument):
        setattr(param, "display_type_rich", lambda ctx: None)  # noqa: B010
    elif getattr(param, "is_flag", False):
        param.metavar = ""
    elif param.metavar is None and (kind := getattr(param, "type_descriptor", None)) and not kind.is_choice:
        param.metavar = NUMBERS.get(kind.annotation, max(param.opts, key=len).lstrip("-").upper())
    return param
