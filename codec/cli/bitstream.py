"""codec check"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.cli.options import one_line
from codec.errors import CodecError, DamagedFile, InputNotFound
from codec.io.storage import walk

if TYPE_CHECKING:
    from codec.io.bitstream import Damage, Reader


def check(
    sources: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help=".codec files, folders of them, or - for standard input.")
    ],
) -> None:
    """Verify .codec files without decoding audio: every checksum, every length, every code.

    The exit status is 5 if a file is damaged. Example: codec check album song.codec
    """
    from codec.io.bitstream import open_reader

    statuses = set()
    for name in _files(sources):
        try:
            with open_reader(name) as reader:
                packets, damages = _parts(reader)
                if damages:
                    raise reader.damaged_in(damages, intact=packets > 0)
                typer.echo(f"{reader.label}: intact, {reader.header.seconds:.3f} s, {packets} packets")
        except CodecError as error:
            typer.echo(one_line(error))
            statuses.add(error.exit_code)
    if statuses:
        raise typer.Exit(DamagedFile.exit_code if DamagedFile.exit_code in statuses else min(statuses))


def _files(sources: list[str]) -> Iterator[str]:
    for source in sources:
        if not Path(source).is_dir():
            yield source
            continue
        names = walk(source, lambda name: name.endswith(".codec"))
        first = next(names, None)
        if first is None:
            raise InputNotFound(f"{source} has no .codec files: name a file or another folder")
        for name in (first, *names):
            yield str(Path(source, name))


def _parts(reader: "Reader") -> "tuple[int, list[Damage]]":
    """The number of intact packets, and the damage; each damage is printed if there are several."""
    from codec.io.bitstream import Packet

    packets, damages = 0, []
    for part in reader.parts():
        if isinstance(part, Packet):
            packets += 1
        else:
            damages.append(part)
    if len(damages) > 1:
        for damage in damages:
            typer.echo(f"{reader.label}: byte {damage.offset}: {damage.reason}")
    return packets, damages
