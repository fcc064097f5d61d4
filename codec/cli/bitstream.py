"""codec check, codec transcode, codec concat"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.cli.options import (
    INPUT_OUTPUT,
    MODEL,
    Entropy,
    ForceOption,
    WrittenByOption,
    check_sink,
    duration,
    echo,
    look_beside,
    one_line,
    say,
)
from codec.errors import CodecError, DamagedFile, InputNotFound, printable
from codec.io.storage import walk

if TYPE_CHECKING:
    from codec.io.bitstream import Damage, Reader


def check(
    sources: Annotated[
        list[str], typer.Argument(metavar="INPUT", help=".codec files, folders of them, or - for standard input.")
    ],
    model: WrittenByOption = None,
) -> None:
    """Verify .codec files without decoding audio: every checksum, every length, every code.

    Standard output has a line for each file; the exit status is 5 if one is damaged.
    Example: codec check album song.codec
    """
    from codec.io.bitstream import open_reader

    look_beside(model)
    statuses = set()
    for name in _files(sources):
        try:
            with open_reader(name) as reader:
                packets, damages = parts_of(reader)
                if len(damages) > 1:
                    for damage in damages:
                        echo(f"{printable(reader.label)}: byte {damage.offset}: {damage.reason}")
                echo(f"{printable(reader.label)}: {verdict(reader, packets, damages)}")
        except InputNotFound as error:  # not a result of the check
            say(f"codec: {one_line(error)}")
            statuses.add(error.exit_code)
        except CodecError as error:
            echo(one_line(error))
            statuses.add(error.exit_code)
    if statuses:
        raise typer.Exit(DamagedFile.exit_code if DamagedFile.exit_code in statuses else min(statuses))


def parts_of(reader: "Reader") -> "tuple[int, list[Damage]]":
    """The number of intact packets, and the damage."""
    from codec.io.bitstream import Packet

    packets, damages = 0, []
    for part in reader.parts():
        if isinstance(part, Packet):
            packets += 1
        else:
            damages.append(part)
    return packets, damages


def verdict(reader: "Reader", packets: int, damages: "list[Damage]") -> str:
    """What an intact file has; `packets` and `damages` are its parts. Raises DamagedFile for another one."""
    if damages:
        raise reader.damaged_in(damages, intact=packets > 0)
    return f"intact, {reader.header.seconds:.3f} s, {packets} packets"


def transcode(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A .codec file; - for standard input.")],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A .codec file; - for standard output.")],
    num_codebooks: Annotated[
        int | None, typer.Option("--codebooks", min=1, help="Number of codebooks to keep.", rich_help_panel=MODEL)
    ] = None,
    bitrate: Annotated[
        float | None,
        typer.Option(metavar="KBPS", help="Maximum bit rate in kbit/s per channel.", rich_help_panel=MODEL),
    ] = None,
    start: Annotated[
        float, typer.Option(metavar="SECONDS", help="Begin with the frame at this time.", rich_help_panel=INPUT_OUTPUT)
    ] = 0.0,
    end: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="End here.", show_default="the end", rich_help_panel=INPUT_OUTPUT),
    ] = None,
    entropy: Annotated[
        Entropy,
        typer.Option(
            help="Entropy coder, as for codec encode: packets that stay as they are keep theirs if it is not beyond "
            "this one.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    model: WrittenByOption = None,
    force: ForceOption = False,
) -> None:
    """Keep fewer codebooks or a part of a .codec file, without decoding it.

    Example: codec transcode song.codec small.codec --bitrate 3
    """
    from codec.transcoding import transcode

    check_sink(output)
    look_beside(model)
    header = transcode(
        source,
        output,
        num_codebooks=num_codebooks,
        bitrate=bitrate,
        start=start,
        end=end,
        entropy=entropy,
        force=force,
    )
    say(f"{source} -> {output}: {duration(header.seconds)}, {header.num_codebooks} codebooks")


def concat(
    sources: Annotated[list[str], typer.Argument(metavar="INPUT", help=".codec files, in this order.")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="A .codec file; - for standard output.", rich_help_panel=INPUT_OUTPUT)
    ],
    force: ForceOption = False,
) -> None:
    """Join .codec files of the same model, rate and channels, without decoding them.

    With --force, OUTPUT may be one of them: it is replaced once the new file is complete.

    Example: codec concat one.codec two.codec -o both.codec
    """
    from codec.transcoding import concat

    check_sink(output)
    header = concat(sources, output, force=force)
    say(f"{len(sources)} files -> {output}: {duration(header.seconds)}")


def _files(sources: list[str]) -> Iterator[str]:
    from codec.io.bitstream import is_codec_path

    for source in sources:
        if not Path(source).is_dir():
            yield source
            continue
        names = walk(source, is_codec_path)
        first = next(names, None)
        if first is None:
            raise InputNotFound(f"{source} has no .codec files: name a file or another folder")
        for name in (first, *names):
            yield str(Path(source, name))
