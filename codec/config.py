"""Strict configuration: frozen pydantic models, read from TOML with overrides from the command line.

    class Model(Config):
        hop: int = 320

    class Recipe(Config):
        name: str
        model: Model = Model()

    load_toml("codec.toml", Recipe, ["model.hop=480", "name=small"])

An unknown key, a value of the wrong type or a value out of range raises a `ConfigError` that names the key, the value
and the expectation. Values are not converted: "320" is not 320.
"""

import copy
import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from codec.errors import ConfigError, InputNotFound

RENAMED = {
    "adversary": "discriminator",
    "data.batch": "data.batch_size",
    "data.classes": "data.conditions",
    "data.faint": "data.quiet",
    "data.fit_seconds": "data.init_seconds",
    "data.workers": "data.num_workers",
    "discriminator.every": "discriminator.update_every",
    "discriminator.rate": "discriminator.lr",
    "losses.envelope": "losses.stoi_like",
    "losses.features": "losses.feature_matching",
    "losses.loudness": "losses.pesq_like",
    "losses.noise": "losses.noise_to_mask",
    "losses.phase": "losses.complex_stft",
    "model.books": "model.num_codebooks",
    "model.learning": "model.codebook_update",
    "model.lookup": "model.distance",
    "model.project": "model.codebook_dim",
    "model.search": "model.beam_size",
    "optimiser": "optimizer",  # codespell:ignore optimiser
    "optimizer.average": "optimizer.ema_decay",
    "optimizer.clip": "optimizer.grad_clip",
    "optimizer.decay": "optimizer.weight_decay",
    "optimizer.final": "optimizer.lr_min_ratio",
    "optimizer.rate": "optimizer.lr",
}
"""Earlier recipe keys and their names today; in a recipe, an old key is an error that names the new one."""


class Config(BaseModel):
    """Base of every configuration: immutable, strict types, only finite numbers, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def from_data(cls, data: Mapping[str, Any], *, source: str = "config") -> Self:
        """Build from plain data, as read from TOML or JSON: arrays become tuples, strings become paths.

        Raises ConfigError, whose message begins with `source`.
        """
        try:
            # Through JSON, because only there pydantic's strict mode accepts an array for a tuple.
            return cls.model_validate_json(json.dumps(data, default=str))
        except ValidationError as error:
            problems = "; ".join(_explain(cls, data, problem) for problem in error.errors())
            raise ConfigError(f"{source}: {problems}") from error


def with_new_names(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The stored recipe of a training run with renamed keys (`RENAMED`), so that earlier runs can resume."""
    renamed: dict[str, Any] = {}
    for key, value in tables.items():
        path = RENAMED.get(f"{prefix}{key}", f"{prefix}{key}")
        renamed[path.rpartition(".")[2]] = with_new_names(value, f"{path}.") if isinstance(value, dict) else value
    return renamed


def check_name(name: str) -> str:
    """The name of a run or a model, which is also that of its folder or file. Raises ValueError for another text."""
    if name.startswith(".") or not name.isprintable() or {"/", "\\"} & {*name} or not 1 <= len(name.encode()) <= 200:
        raise ValueError("must name a folder: 1 to 200 bytes of printable text without / and \\, and no period first")
    return name


Name = Annotated[str, AfterValidator(check_name)]
ConfigT = TypeVar("ConfigT", bound=Config)


def load_toml(path: str | Path, config_class: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Read a TOML file, apply the `overrides` ("model.hop=480") and validate the result.

    Raises:
        InputNotFound: there is no such file.
        ConfigError: the file is not TOML, or a key or value does not fit `config_class`.
    """
    return config_class.from_data(read_toml(path, overrides), source=str(path))


def read_toml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML file and apply the `overrides`; the result is for `Config.from_data`. Raises as `load_toml`."""
    try:
        data = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}") from error
    return override_data(data, overrides)


def override_data(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested data with the `overrides` applied. Raises ConfigError."""
    changed = copy.deepcopy(dict(data))
    for override in overrides:
        _set(changed, override)
    return changed


def read_text(path: str | Path) -> str:
    """Read the text of a configuration file. Raises InputNotFound, ConfigError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputNotFound(f"{path} does not exist: check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a readable TOML file: {error}") from error


def _set(data: dict[str, Any], override: str) -> None:
    """Apply one override "a.b=c" to nested data; c is a TOML value, else a bare string."""
    key, equals, text = override.partition("=")
    *tables, name = parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: write it as KEY=VALUE, for example model.hop=480")
    for depth, table in enumerate(tables, start=1):
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parts[:depth])} is a value, not a table of keys")
    data[name] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _explain(cls: type[Config], data: Any, problem: ErrorDetails) -> str:
    """Describe one problem: the dotted key, its value, what it must be."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    *tables, name = problem["loc"]
    path: list[str] = []
    classes = {cls}  # possible classes at this key: several for a union, until a tag selects one
    for part in tables:
        if _has(data, part):  # because pydantic's path also holds the tags of unions, which are not keys
            path.append(str(part))
            data = data[part]
            fields = [one.model_fields[part] for one in classes if part in one.model_fields]
            classes = {inner for field in fields for inner in _configs_in(field.annotation)} or classes
        else:
            classes = {one for one in classes if part in _tags(one)} or classes
    match problem["type"]:
        case "extra_forbidden":
            key = ".".join([*path, str(name)])
            if key in RENAMED:
                return _renamed(key, data[name])
            names = sorted({field for one in classes for field in one.model_fields})
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"
            return f"unknown key {key}; {hint}"
        case "missing":
            return f"{'.'.join([*path, str(name)])} is missing"
        case _:
            if _has(data, name):
                path.append(str(name))
                data = data[name]
            value = json.dumps(data, default=str)
            value = value if len(value) <= 60 else value[:57] + "..."
            expected = re.sub(r"^\w+ should ", "must ", message)
            return f"{'.'.join(path)} = {value}: {expected}"


def _renamed(key: str, value: Any) -> str:
    """The new name of an old key; of a table, those of its keys, which may have new names too."""
    new = RENAMED[key]
    if not isinstance(value, dict) or not value:
        return f"{key} is now {new}"
    return ", ".join(f"{key}.{inner} is now {RENAMED.get(f'{new}.{inner}', f'{new}.{inner}')}" for inner in value)


def _has(data: Any, part: int | str) -> bool:
    return part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))


def _tags(cls: type[Config]) -> set[object]:
    """The values by which a discriminated union may select this class."""
    return {value for field in cls.model_fields.values() for value in get_args(field.annotation)}


def _configs_in(annotation: Any) -> set[type[Config]]:
    """The configuration classes in a type such as `tuple[A | B, ...]`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return {annotation} if issubclass(annotation, Config) else set()
    return {found for inner in get_args(annotation) for found in _configs_in(inner)}
