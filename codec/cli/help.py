"""Help pages: placeholders instead of types, and the same brackets with every release of Typer."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup

NUMBERS = {int: "N", float: "X"}


class Command(TyperCommand):
    """A command of `codec`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [described(param) for param in super().get_params(ctx)]


class Group(TyperGroup):
    """A group of commands, and `codec` itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [described(param) for param in super().get_params(ctx)]


def described(param: Any) -> Any:
    """Set what the help page shows as the value of an option or an argument; returns it.

    Newer releases of Typer (0.29) write the Python type: `<bool>` beside a flag, `<list[str]>` beside an argument. They
    bracket optional arguments in the usage line; older ones write the metavar as it is.
    """
    if isinstance(param, TyperArgument):
        if hasattr(param, "display_type_rich"):
            setattr(param, "display_type_rich", lambda ctx: None)  # noqa: B010
        elif param.metavar is not None and param.metavar.isalpha():
            name = param.metavar + "..." * (param.nargs != 1)
            param.metavar = name if param.required else f"[{name}]"
    elif getattr(param, "is_flag", False):
        param.metavar = ""
    elif param.metavar is None and (kind := getattr(param, "type_descriptor", None)) and not kind.is_choice:
        param.metavar = NUMBERS.get(kind.annotation, max(param.opts, key=len).lstrip("-").upper())
    return param
