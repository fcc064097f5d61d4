"""codec info"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codec import pretrained
from codec.checkpoint import RUN_MODEL, CodecCard, LMCard, ModelCard
from codec.cli.options import INPUT_OUTPUT, JSONOption, duration, echo, echo_table, one_line, plural
from codec.errors import CodecError, DamagedFile, InputNotFound, UnsupportedAudio, UsageError, printable
from codec.io.storage import walk

if TYPE_CHECKING:
    from codec.io.bitstream import Header, Reader

MEASURES_SHOWN = 8  # so that a summary fits on a screen
CLASSES_SHOWN = 20


def info(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A .codec file or a folder of them, - for standard input, or a model: its name, file or training run.",
        ),
    ],
    show_all: Annotated[
        bool,
        typer.Option(
            "--all", help="Print every field, with a model's configuration and recipe.", rich_help_panel=INPUT_OUTPUT
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Verify .codec files too, as codec check; exit status 5 if one is damaged.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = False,
    as_json: JSONOption = False,
) -> None:
    """Describe a .codec file, a folder of .codec files, or a model.

    Example: codec info general-24k --all
    """
    status = 0
    if pretrained.names_a_model(source):
        if check:
            raise UsageError(f"{source} is a model: --check verifies .codec files")
        card = pretrained.describe(source)
        facts = card.as_data()
        summary = facts if show_all else _model_summary(card)
    elif Path(source).is_dir():
        _print_folder(Path(source), check=check, as_json=as_json)
        return
    else:
        if not Path(source).exists() and (close := pretrained.nearest(source)):
            raise pretrained.no_model(source, close)
        facts, status = _recording(source, check=check)
        summary = facts
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print_facts(summary)
    if status:
        raise typer.Exit(status)


def _print_facts(facts: Mapping[str, Any]) -> None:
    rows = [
        (printable(name), printable(value) if isinstance(value, str) else value)
        for name, value in _flat(facts)
        if value != ""  # what the file does not have
    ]
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        echo(f"{name:<{width}}{value:.10g}" if isinstance(value, float) else f"{name:<{width}}{value}")


def _model_summary(card: ModelCard) -> dict[str, str]:
    rows = {"name": card.name}
    match card:
        case CodecCard(frame_spec=spec):
            first, last = spec.bitrate(1), spec.bitrate(spec.num_codebooks)
            delay = 1000 * spec.seconds(spec.decoder_delay)
            rows |= {
                "type": f"codec ({card.family})",
                "sample rate": f"{spec.sample_rate} Hz",
                "hop": f"{spec.hop} samples ({1000 * spec.seconds(spec.hop):g} ms, {spec.frame_rate:g} frames/s)",
                "decoder delay": f"{spec.decoder_delay} samples ({delay:g} ms)",
                "codebooks": f"{spec.num_codebooks} of {spec.codebook_size} entries",
                "bit rate": f"{first:g} to {last:g} kbit/s",
            }
            if card.config.get("streams") is False:
                rows["streaming"] = "none: whole clips, in memory at once"
        case LMCard(source=source):
            rows |= {
                "type": f"language model ({card.family})",
                "codec": f"{source['codec']} ({source['weights_hash'][:12]})",
                "codebooks": str(source["num_codebooks"]),
            }
            for kind, names in source["classes"].items():
                rows[f"{kind}s"] = ", ".join(names) if len(names) <= CLASSES_SHOWN else str(len(names))
    training = card.training
    rows |= {
        "parameters": f"{card.parameters / 1e6:.1f} M",
        "file": f"{card.path} ({card.size / 1e6:.1f} MB)",
        "weights hash": card.weights_hash,
    }
    if recipe := _mapping(training, "recipe").get("name"):
        rows["recipe"] = str(recipe)
    rows |= {f"training {name}": str(training[name]) for name in ("step", "data") if name in training}
    numbers = _mapping(training, "numbers")
    for name in list(numbers)[:MEASURES_SHOWN]:
        measures = _mapping(numbers, name).items()
        rows[name] = ", ".join(f"{measure} {value:g}" for measure, value in measures if isinstance(value, int | float))
    return rows | {"more": "codec info --all prints the configuration and the recipe"}


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An inner table of metadata, which may be anything; empty if it is not a table."""
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _recording(source: str, *, check: bool) -> tuple[dict[str, Any], int]:
    """What is known of a file, with the result of the `check` if there is one, and its exit status."""
    from codec.cli.bitstream import parts_of, verdict
    from codec.io.bitstream import open_reader

    with open_reader(source) as reader:
        facts = _facts(reader.header, None if source == "-" else Path(source).stat().st_size)
        if source != "-":
            with suppress(DamagedFile, UnsupportedAudio):  # the check reports them
                facts |= _rates(reader)
        if not check:
            return facts, 0
        try:
            return facts | {"check": verdict(reader, *parts_of(reader))}, 0
        except CodecError as error:
            return facts | {"check": one_line(error)}, error.exit_code


def _rates(reader: "Reader") -> dict[str, Any]:
    """The bit rate of the codes as they are coded, and the numbers of codebooks of frames where these differ."""
    payload = frames = total = 0
    least, most = reader.header.num_codebooks, 0
    for packet in reader.coded():
        counts = reader.codebook_counts(packet)
        payload += len(packet.payload)
        frames, total = frames + counts.size, total + int(counts.sum())
        least, most = min(least, int(counts.min())), max(most, int(counts.max()))
    if not frames or not reader.header.time:
        return {}
    rates: dict[str, Any] = {"payload_kbps": payload * 8 / reader.header.seconds / 1000}
    if least < most:
        rates["codebooks_per_frame"] = {"min": least, "mean": total / frames, "max": most}
    return rates


def _facts(header: "Header", size: int | None) -> dict[str, Any]:
    from codec.io.coded_channels import is_mid_side

    facts = asdict(header) | {
        "mix": [list(row) for row in header.mix],
        "stereo": "mid-side" if is_mid_side(header.mix) else "",
        "codebook_sizes": list(header.codebook_sizes),
        "source": header.source._asdict() if header.source else {},
        "tags": header.tags.by_name(),
        "cover": f"{header.tags.cover.media_type}, {len(header.tags.cover.data)} bytes" if header.tags.cover else "",
        "num_codebooks": header.num_codebooks,
        "seconds": header.seconds,
        "codes_kbps": header.frame_spec.bitrate(header.num_codebooks) * header.rows,
    }
    del facts["has_tags"], facts["is_live"]
    if size is not None and header.time:
        facts |= {"file_bytes": size, "file_kbps": size * 8 / header.seconds / 1000}
    return facts


def _print_folder(folder: Path, *, check: bool, as_json: bool) -> None:
    """Print a row for each .codec file below a folder; exit status 1 if one cannot be read, 5 if the `check` fails."""
    from codec.io.bitstream import is_codec_path

    names = list(walk(folder, is_codec_path))
    if not names:
        raise InputNotFound(f"{folder} has neither a {RUN_MODEL} nor .codec files: give a training run or recordings")
    found: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for name in names:
        try:
            found[name], status = _recording(str(folder / name), check=check)
            if status:
                failures[name] = found.pop(name)["check"]
        except CodecError as error:
            failures[name] = one_line(error)
    if as_json:
        typer.echo(json.dumps({"files": found, "failures": failures}, indent=2))
    else:
        _print_table(found)
        for name, message in failures.items():
            echo(f"failed: {name}: {message}")
    if failures:
        raise typer.Exit(DamagedFile.exit_code if check else 1)


def _print_table(found: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table

    headings = "file", "seconds", "channels", "sample rate", "codebooks", "kbit/s", "model", "weights"
    table = Table(*headings, box=None, pad_edge=False)
    for name, facts in found.items():
        numbers = f"{facts['seconds']:.2f}", str(facts["channels"]), f"{facts['source_rate']} Hz"
        rate = f"{facts.get('file_kbps', facts['codes_kbps']):.2f}"
        model = printable(facts["model"])
        table.add_row(printable(name), *numbers, str(facts["num_codebooks"]), rate, model, facts["weights_hash"][:12])
    echo_table(table)
    seconds = sum(facts["seconds"] for facts in found.values())
    size = sum(facts.get("file_bytes", 0) for facts in found.values())
    typer.echo(f"{plural(len(found), 'file')}, {duration(seconds)}, {size} bytes")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            same = len(value) > 2 and len(set(map(str, value))) == 1
            yield prefix + name, f"{len(value)} × {value[0]}" if same else ",".join(map(str, value))
        else:
            yield prefix + name, value
