"""codec prepare, codec recipes"""

from pathlib import Path
from typing import Annotated

import typer

from codec.cli.options import DOWNLOAD, echo_table, say, unread_note
from codec.errors import UsageError


def prepare(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Name of the dataset, such as ljspeech; omit it to list all datasets.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder of the dataset."),
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART,...",
            help='Parts of the dataset, separated by commas or repeated; "all" is every part.',
            show_default="the dataset's default parts",
            rich_help_panel=DOWNLOAD,
        ),
    ] = None,
    accept_license: Annotated[
        bool,
        typer.Option("--accept-license", help="Accept the license without a question.", rich_help_panel=DOWNLOAD),
    ] = False,
    no_download: Annotated[
        bool,
        typer.Option("--no-download", help="Use only the files that are in DIR already.", rich_help_panel=DOWNLOAD),
    ] = False,
) -> None:
    """Download a dataset, unpack it, and write its manifest for `codec train`.

    Example: codec prepare ljspeech data/ljspeech --accept-license
    """
    from rich.console import Console

    from codec import datasets
    from codec.datasets.prepare import prepare as prepare_dataset

    if name is None:
        _list_datasets()
        return
    dataset = datasets.find(name)
    if folder is None:
        parts_hint = f"; its parts are {', '.join(dataset.parts)}" if len(dataset.parts) > 1 else ""
        raise UsageError(f"give a folder for the dataset: codec prepare {name} DIR{parts_hint}")
    try:
        prepare_dataset(
            dataset,
            folder,
            parts=None if parts is None else [part for option in parts for part in option.split(",") if part],
            accepted=accept_license,
            may_download=not no_download,
            console=Console(stderr=True, soft_wrap=True, markup=False, highlight=False),
        )
    except KeyboardInterrupt:
        say("stopped; the same command resumes")
        raise
    if not dataset.parts and (unread := unread_note([folder], option=False)):
        say(unread)


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Recipe to print: digits for a codec, digits/lm for a language model; omit it to list all recipes.",
        ),
    ] = None,
) -> None:
    """List the shipped training recipes, or print one of them.

    Example: codec recipes digits/lm
    """
    from codec.config import read_text
    from codec.datasets import recipes as shipped

    if name is None:
        _list_recipes()
    else:
        typer.echo(read_text(shipped.find(name)), nl=False)


def _list_datasets() -> None:
    from rich.table import Table

    from codec import datasets

    table = Table("name", "dataset", "hours", "download", "license", box=None, pad_edge=False)
    for name in datasets.NAMES:
        dataset = datasets.find(name)
        terms = dataset.license.name if dataset.license else "yours"
        table.add_row(name, dataset.title, dataset.hours, dataset.download, terms)
    echo_table(table)


def _list_recipes() -> None:
    from rich.table import Table

    from codec import datasets
    from codec.datasets import recipes as shipped

    table = Table("name", "purpose", "hours", "license", box=None, pad_edge=False)
    for name in shipped.names():
        dataset = datasets.find(name)
        terms = dataset.license.name if dataset.license else "yours"
        table.add_row(name, shipped.purpose(name), dataset.hours, terms)
    echo_table(table)
    say("print a codec recipe: codec recipes NAME; a language model recipe: codec recipes NAME/lm")
