"""codec export"""

from pathlib import Path
from typing import Annotated

import typer

from codec.cli.options import INPUT_OUTPUT, MODEL, ForceOption, plural, say


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Name of a codec, its .safetensors file, or folder of a training run."),
    ],
    onnx: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for encoder.onnx and decoder.onnx.", rich_help_panel=INPUT_OUTPUT),
    ],
    opset: Annotated[
        int,
        typer.Option(metavar="N", help="Version of ONNX's operators.", rich_help_panel=MODEL),
    ] = 18,
    force: ForceOption = False,
) -> None:
    """Export a codec to ONNX, one step of the encoder and of the decoder, and compare both with torch.

    Example: codec export general-24k --onnx general-24k-onnx
    """
    from codec import pretrained
    from codec.export.onnx import export_onnx

    found = export_onnx(pretrained.load(model, "cpu"), onnx, opset=opset, force=force)
    different = f" but {plural(len(found.near_ties), 'near-tie')} ({'; '.join(found.near_ties)})"
    say(
        f"{onnx}: {', '.join(path.name for path in found.files)}; {found.codes} codes are those of torch"
        f"{different if found.near_ties else ''}, audio within {found.error:.0e}"
    )
