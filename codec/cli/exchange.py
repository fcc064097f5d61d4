"""codec import, codec export-codes"""

from pathlib import Path
from typing import Annotated

import typer

from codec.cli.options import INPUT_OUTPUT, ForceOption, ModelOption, WrittenByOption, look_beside, say


def import_codes(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="An .ecdc, .dac, .npy, .npz or .pt file of codes.")],
    model: ModelOption,
    output: Annotated[
        str | None, typer.Argument(metavar="OUTPUT", help="The .codec file, beside INPUT by default.")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            metavar="SAMPLES",
            min=1,
            help="Samples at the model's rate, if the file does not say; all that the frames hold by default.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write codes of another project as a .codec file.

    INPUT is an .ecdc file of encodec, a .dac file of descript-audio-codec, or arrays of shape (codebooks, frames).

    Example: codec import song.ecdc --model encodec_24khz.th
    """
    from codec.exchange import import_codes as write

    target = output or str(Path(source).with_suffix(".codec"))
    found = write(source, target, model=model, length=length, force=force)
    say(f"{target}: {_described(found.codes.shape)}")
    if found.note:
        say(f"note: {found.note}")


def export_codes(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A .codec file.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="An .npy or .npz file, beside INPUT by default; .npz has the scale too.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    model: WrittenByOption = None,
    force: ForceOption = False,
) -> None:
    """Write the codes of a .codec file as an array of shape (rows, codebooks, frames), without a model.

    Example: codec export-codes song.codec -o song.npy
    """
    from codec.exchange import export_codes as write

    look_beside(model)
    target = output or str(Path(source).with_suffix(".npy"))
    found = write(source, target, force=force)
    lost = " (.npz keeps the scale too)" if found.scale is not None and target.endswith(".npy") else ""
    say(f"{target}: {_described(found.codes.shape)}{lost}")


def _described(shape: tuple[int, ...]) -> str:
    rows, num_codebooks, frames = shape
    return f"{rows} × {num_codebooks} codebooks × {frames} frames"
