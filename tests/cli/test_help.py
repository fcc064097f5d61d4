"""Help pages of all commands, compared with the texts in tests/cli/snapshots.

After an intended change: python -m tests.cli.test_help --update
"""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.helpers.commands import all_commands

SNAPSHOTS = Path(__file__).parent / "snapshots"
COMMANDS = ["tokens", *all_commands()]  # with the group
# Rich reads the width and the colors when it is imported, so each page is printed by a process of its own.
ENVIRONMENT = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
UNWANTED = {"FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"}  # these make Typer print colors


def versions() -> str:
    """What draws the pages."""
    return "".join(f"{package} {version(package)}\n" for package in ("typer", "rich"))


def snapshot(name: str) -> Path:
    return SNAPSHOTS / f"{name.replace(' ', '-')}.txt"


def pages() -> dict[str, str]:
    """Help page of every command, and of `codec` itself, by the name of its snapshot."""
    code = (
        "import sys\nfrom codec.cli.main import run\n"
        "for name in sys.argv[1:]:\n"
        "    print('\\f' + name)\n"
        "    try: run([*name.split()[name == 'codec':], '--help'])\n"
        "    except SystemExit: pass\n"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, "codec", *COMMANDS],
        env=inherited | ENVIRONMENT | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    texts = {}
    for page in done.stdout.split("\f")[1:]:
        name, _, text = page.partition("\n")
        texts[name] = "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"
    return texts


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    return pages()


# Other versions draw other boxes, which is not our change.
same_versions = pytest.mark.skipif(
    (SNAPSHOTS / "versions").read_text("utf-8") != versions(), reason="snapshots are of another typer or rich"
)


@pytest.mark.slow
@same_versions
@pytest.mark.parametrize("name", ["codec", *COMMANDS])
def test_help_equals_its_snapshot(printed: dict[str, str], name: str) -> None:
    assert printed[name] == snapshot(name).read_text("utf-8")


def test_every_snapshot_belongs_to_a_command() -> None:
    assert set(SNAPSHOTS.glob("*.txt")) == set(map(snapshot, ["codec", *COMMANDS]))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    assert f"Example: codec {name}" in " ".join(snapshot(name).read_text("utf-8").split())


def update() -> None:
    """Write all snapshots; remove those of commands that no longer exist."""
    SNAPSHOTS.mkdir(exist_ok=True)
    for path in SNAPSHOTS.glob("*.txt"):
        path.unlink()
    for name, text in pages().items():
        snapshot(name).write_text(text, "utf-8")
    (SNAPSHOTS / "versions").write_text(versions(), "utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.cli.test_help --update")
    update()


def test_no_word_is_lost_in_markup() -> None:
    """Rich takes a word in brackets for markup and leaves it out."""
    lost = [
        f"{path.name}: {line}"
        for path in SNAPSHOTS.glob("*.txt")
        for line in path.read_text("utf-8").splitlines()
        if re.search(r"\w [.;,](\s|$)", line)
    ]
    assert lost == []


def test_values_are_placeholders_not_types() -> None:
    """Typer writes the Python type where an option has no placeholder, and brackets of its own."""
    text = "".join(path.read_text("utf-8") for path in SNAPSHOTS.glob("*.txt"))
    assert re.findall(r"<(?:bool|str|int|float|path|list)\b[^>]*>|\[\[|\]\]|BOOLEAN|INTEGER|TEXT\]", text) == []
