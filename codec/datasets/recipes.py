"""Shipped recipes by name, from recipes/ in a source checkout or codec/recipes/ in a wheel.

general       recipes/general/codec.toml, for a codec
digits/lm     recipes/digits/lm.toml, for a language model of its codes
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from codec.errors import UsageError

KINDS = ("codec", "lm")


def folder() -> Path:
    """Return the folder of all recipes."""
    package = Path(str(resources.files("codec")))
    installed = package / "recipes"  # added when the wheel is built
    return installed if installed.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """List the recipes: "general" (for any folder of audio), then the datasets in alphabetical order."""
    found = [path.parent.name for path in folder().glob("*/codec.toml")]
    return sorted(found, key=lambda name: (name != "general", name))


def find(name_or_path: str) -> Path:
    """Return the file of a recipe, given as NAME, NAME/lm or a path.

    Text that ends in .toml or begins with "." or "/" is a path. Other text is the name of a shipped recipe if there is
    one, else the path of an existing file.

    Raises:
        UsageError: the name is unknown, or a folder. A path is returned without a check that the file exists.
    """
    if name_or_path.endswith(".toml"):
        return Path(name_or_path)
    name, _, kind = name_or_path.partition("/")
    known = names()
    if name in known and (kind or "codec") in KINDS:
        return folder() / name / f"{kind or 'codec'}.toml"
    if name_or_path and Path(name_or_path).is_dir():
        raise UsageError(f"{name_or_path} is a folder, not a recipe: codec train general --data {name_or_path}")
    if Path(name_or_path).is_file() or name_or_path.startswith((".", "/")):
        return Path(name_or_path)
    close = get_close_matches(name_or_path, [*known, *(f"{name}/lm" for name in known)], n=1)
    hint = f"did you mean {close[0]}?" if close else "`codec recipes` lists them; a path ends in .toml"
    raise UsageError(f"unknown recipe {name_or_path}; {hint}")


def purpose(name: str) -> str:
    """Return the comment at the head of a recipe, on one line, without its final period."""
    lines = find(name).read_text("utf-8").splitlines()
    comment = [line[1:].strip() for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]
    return " ".join(comment).removesuffix(".")
