"""Recipes that come with the package, by name: in recipes/ of a source checkout, in codec/recipes/ of a wheel.

general       recipes/general/codec.toml, which trains a codec
digits/lm     recipes/digits/lm.toml, which trains a language model on its codes
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from pathlib import Path

from codec.errors import UsageError

KINDS = ("codec", "lm")


def folder() -> Path:
    """The folder of all recipes."""
    package = Path(str(resources.files("codec")))
    installed = package / "recipes"  # put there when the wheel is built
    return installed if installed.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """One name for each dataset: "general" first, which takes any, then the others by name."""
    found = [path.parent.name for path in folder().glob("*/codec.toml")]
    return sorted(found, key=lambda name: (name != "general", name))


def find(name_or_path: str) -> Path:
    """The file of a recipe, given by NAME, NAME/lm or a path.

    A path ends in .toml or begins with "." or "/"; all else is a name first, whatever the current folder holds.

    Raises:
        UsageError: there is no such recipe. (Of a path it is not checked that the file exists.)
    """
    if name_or_path.endswith(".toml") or name_or_path.startswith((".", "/")):
        return Path(name_or_path)
    name, _, kind = name_or_path.partition("/")
    known = names()
    if name in known and (kind or "codec") in KINDS:
        return folder() / name / f"{kind or 'codec'}.toml"
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    close = get_close_matches(name_or_path, [*known, *(f"{name}/lm" for name in known)], n=1)
    hint = f"did you mean {close[0]}?" if close else "`codec recipes` lists them, and a file's name ends in .toml"
    raise UsageError(f"unknown recipe {name_or_path}; {hint}")


def purpose(name: str) -> str:
    """The comment that a recipe begins with, on one line, without its final period."""
    lines = find(name).read_text("utf-8").splitlines()
    comment = [line[1:].strip() for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]
    return " ".join(comment).removesuffix(".")
