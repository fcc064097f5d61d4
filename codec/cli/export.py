"""codec export, codec page"""

from pathlib import Path
from typing import Annotated

import typer

from codec.cli.options import INPUT_OUTPUT, MODEL, ForceOption, plural, say
from codec.errors import UsageError


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Name of a model, its .safetensors file, or folder of a training run."),
    ],
    onnx: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for the ONNX files.", rich_help_panel=INPUT_OUTPUT),
    ],
    opset: Annotated[
        int,
        typer.Option(metavar="N", help="Version of ONNX's operators.", rich_help_panel=MODEL),
    ] = 18,
    force: ForceOption = False,
) -> None:
    """Export a codec or a language model to ONNX, each step with its state as inputs and outputs; compare with torch.

    Example: codec export general-24k --onnx general-24k-onnx
    """
    from codec import pretrained
    from codec.checkpoint import LMCard
    from codec.export import onnx as onnx_codec
    from codec.export import onnx_lm

    found: onnx_codec.Exported | onnx_lm.Exported
    if isinstance(pretrained.describe(model), LMCard):
        found, what = onnx_lm.export_lm(pretrained.load_lm(model, "cpu"), onnx, opset=opset, force=force), "logits"
    else:
        found, what = onnx_codec.export_onnx(pretrained.load(model, "cpu"), onnx, opset=opset, force=force), "audio"
    different = f" but {plural(len(found.near_ties), 'near-tie')} ({'; '.join(found.near_ties)})"
    say(
        f"{onnx}: {', '.join(path.name for path in found.files)}; {found.codes} codes are those of torch"
        f"{different if found.near_ties else ''}, {what} within {found.error:.0e}"
    )


def page(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the page.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Name of a codec, its .safetensors file, or folder of a training run.",
            show_default="general-24k",
            rich_help_panel=MODEL,
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder written by codec export, instead of a model.", rich_help_panel=MODEL),
    ] = None,
    ort: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Package onnxruntime-web of npm, a folder or a .tgz archive.",
            show_default="fetched once",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a web page that runs a codec live in the browser, without a network: a folder for any file server.

    Example: codec page demo && python -m http.server --bind 127.0.0.1 --directory demo
    """
    from codec import pretrained
    from codec.export.page import write_page

    if onnx is not None and model is not None:
        raise UsageError("--model and --onnx both name the codec of the page: give one of them")
    codec = None if onnx is not None else pretrained.load(model or "general-24k", "cpu")
    sizes = write_page(folder, model=codec, graphs=onnx, runtime=ort, force=force)
    say(
        f"{folder}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB; open http://127.0.0.1:8000 after "
        f"`python -m http.server --bind 127.0.0.1 --directory {folder}`"
    )
