"""Shapes in signatures, checked by jaxtyping and beartype while the tests run."""

import re
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from jaxtyping import AbstractArray


def check(*modules: str) -> None:
    """Check the functions of these modules, which have not been imported yet.

    Functions without a shape in their signature are not checked, because mypy does that, and each check costs as much
    as a small layer.
    """
    original = jaxtyping.jaxtyped

    def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
        checked = original(typechecker=typechecker)
        return lambda one: checked(one) if isinstance(one, type) or has_shapes(one) else one

    jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]  # by this name, modules of the hook decorate what they define
    jaxtyping.install_import_hook(list(modules), "beartype.beartype")


def has_shapes(function: Callable[..., Any]) -> bool:
    return any(_has_shape(annotation, function.__globals__) for annotation in function.__annotations__.values())


def _has_shape(annotation: Any, names: dict[str, Any]) -> bool:
    if isinstance(annotation, str):
        return any(_has_shape(names.get(name), {}) for name in re.findall(r"\w+", annotation))
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray | jaxtyping.AbstractDtype):
        return True
    return any(_has_shape(part, names) for part in get_args(annotation))
