"""Write the reference tables of docs/api.md from the signatures and docstrings of the package.

    python tools/api_reference.py            # rewrite the tables
    python tools/api_reference.py --check    # exit 1 if they are out of date

Run it after changing the signature or the first docstring line of a public name.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import codec

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
START, END = "<!-- reference -->\n", "<!-- /reference -->\n"
CLASSES = ("Codec", "Codes", "StreamEncoder", "StreamDecoder")


def signature(call: Any, *, method: bool = False) -> str:
    """Parameters with their defaults, without types."""
    parameters = list(inspect.signature(call).parameters.values())[method:]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(bare))


def first_line(documented: Any) -> str:
    """The first line of a docstring, safe in a table."""
    return (inspect.getdoc(documented) or "").partition("\n")[0].replace("|", "\\|")


def members(kind: type) -> Iterator[tuple[str, str]]:
    """Name with parameters, and first line, of each public method and property that a class itself defines."""
    for name, member in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield name, first_line(member)
        elif isinstance(member, classmethod | staticmethod):
            yield name + signature(getattr(kind, name)), first_line(member)
        elif inspect.isfunction(member):
            yield name + signature(member, method=True), first_line(member)


def table(rows: list[tuple[str, str]]) -> str:
    return "| name | what it does |\n|---|---|\n" + "".join(f"| `{name}` | {text} |\n" for name, text in rows)


def reference() -> str:
    """All tables: the names of the package, then the members of its classes."""
    names = [name for name in codec.__all__ if not name.startswith("_")]
    rows = [(f"codec.{name}{signature(getattr(codec, name))}", first_line(getattr(codec, name))) for name in names]
    parts = [table(rows)]
    parts += [f"### codec.{name}\n\n{table(list(members(getattr(codec, name))))}" for name in CLASSES]
    return "\n" + "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the tables are out of date")
    arguments = parser.parse_args()

    page = PAGE.read_text("utf-8")
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    written = before + START + reference() + END + after
    if arguments.check:
        sys.exit(None if written == page else f"{PAGE} is out of date: run python tools/api_reference.py")
    PAGE.write_text(written, "utf-8")


if __name__ == "__main__":
    main()
