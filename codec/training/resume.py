"""The resumable state of a training run: which state fits a recipe, and how it is saved and restored."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from codec.checkpoint import load_state
from codec.config import Config, with_new_names
from codec.errors import ConfigError
from codec.training import engine


def load_resumable(
    path: Path, recipe: Config, *, required: Iterable[str], mutable_keys: Collection[str]
) -> dict[str, Any]:
    """Load the state of a run to resume, if it was saved by the same recipe; only keys in `mutable_keys` may differ.

    Raises:
        InputNotFound: the state does not exist.
        UnknownModel: the file is damaged, or is not a training state.
        ConfigError: another version or another recipe saved the state; the message names what differs.
    """
    state = load_state(path)
    tables = state.get("recipe")
    if isinstance(tables, dict) and tables.get("kind") != getattr(recipe, "kind", None):
        one, other = sorted(("a codec", "a language model"), reverse="kind" in tables)  # codec recipes have no kind
        raise ConfigError(f"{path} is of {one}, the recipe is of {other}: resume with its own, or change --out")
    if isinstance(tables, dict):
        state["recipe"] = with_new_names(tables)
    missing = ", ".join(name for name in required if name not in state)
    if missing:
        raise ConfigError(f"{path} was saved by another version: it lacks {missing}; start again in another --out")
    try:
        saved = type(recipe).from_data(state["recipe"], source=str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}: the state was saved by another version; start again in another --out") from error
    fixed = [change for key, change in changes(state["recipe"], saved, recipe).items() if key not in mutable_keys]
    if fixed:
        raise ConfigError(
            f"{path} was saved by another recipe: {', '.join(fixed)}; resume with the same, or change --out"
        )
    return state


def changes(tables: Mapping[str, Any], saved: Config, recipe: Config) -> dict[str, str]:
    """What a recipe changes of the saved one, by key.

    A key that is not in its `tables` as stored is younger than the run: it counts as changed unless it is off now (0,
    false, empty or None), because the run had nothing of its kind.
    """
    known = flatten(tables)
    new = flatten(recipe.model_dump())
    old = {
        key: value if key in known or not new.get(key, value) else "unknown"
        for key, value in flatten(saved.model_dump()).items()
    }
    return {
        key: f"{key} ({old.get(key)} then, {new.get(key)} now)" for key in old | new if new.get(key) != old.get(key)
    }


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table with dotted keys: {"a": {"b": 1}} is {"a.b": 1}."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        values |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def describe(recipe: Config) -> str:
    """Every value of a recipe, one a line: model.hop = 480."""
    values = flatten(recipe.model_dump(mode="json", exclude_none=True))
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def state_dicts(train_state: object, names: Iterable[str]) -> dict[str, Any]:
    """The state dict of each named part; sharded tensors are gathered, so all processes call it."""
    return {name: engine.gather_shards(getattr(train_state, name).state_dict()) for name in names}


def load_state_dicts(train_state: object, state: Mapping[str, Any], names: Iterable[str]) -> None:
    """Restore what `state_dicts` returned.

    Raises ConfigError: the state does not fit the model, the optimizer or another part.
    """
    for name in names:
        try:
            getattr(train_state, name).load_state_dict(state[name])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the training state was saved by another version or is of another model ({name}: "
                f"{shorten(str(error), 200)}): start again in another --out"
            ) from error
