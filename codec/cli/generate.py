"""codec generate"""

import inspect
import math
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codec import pretrained
from codec.cli.options import (
    CONDITIONING,
    INPUT_OUTPUT,
    SAMPLING,
    CodecOption,
    DeviceOption,
    ForceOption,
    SubtypeOption,
    check_sink,
    say,
)
from codec.conditions import KINDS
from codec.errors import UsageError
from codec.frames import real_time
from codec.io.storage import output_label, refuse_existing

if TYPE_CHECKING:
    from codec.io.audio import Block
    from codec.lm.base import CodecLM
    from codec.lm.filters import Sampling


LIVE_SUBTYPES = (None, "PCM_16")  # which standard output receives block by block


def with_condition_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every kind of condition, in place of its `**conditions`."""
    signature = inspect.signature(command)
    options = [
        inspect.Parameter(
            kind.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(help=kind.description, rich_help_panel=CONDITIONING)],
        )
        for kind in KINDS
    ]
    *own, _ = signature.parameters.values()
    command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return command


@with_condition_options
def generate(
    lm: Annotated[
        str,
        typer.Argument(
            metavar="LM", help="Language model: name of a shipped one, path of a file, or folder of a training run."
        ),
    ] = pretrained.DEFAULT_LM,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="Audio file to write, or - to stream to standard output.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = "generated.wav",
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Exact length of the output; inf for an endless stream.",
            show_default="up to the model's end token",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, help="Number of files, with seeds S, S + 1, ...", rich_help_panel=INPUT_OUTPUT)
    ] = 1,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="IN",
            help="Recording to continue; it is normalized to the level that the model was trained on.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    infill: Annotated[
        str | None,
        typer.Option(
            metavar="IN",
            help="Recording with a --gap to fill; it is normalized like a prompt.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    gap: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO", help="Part of --infill to replace, in seconds.", rich_help_panel=INPUT_OUTPUT),
    ] = None,
    subtype: SubtypeOption = None,
    force: ForceOption = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Write 16-bit samples without a header to standard output.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = False,
    codec: CodecOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="S",
            help="Random seed; the same seed gives the same audio.",
            show_default="random",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(
            metavar="T[,T...]",
            help="Sampling temperature: below 1 favors probable codes, above 1 improbable ones.",
            show_default="the model's",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    top_k: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Keep only the N most probable codes.", rich_help_panel=SAMPLING),
    ] = None,
    top_p: Annotated[
        str | None,
        typer.Option(
            metavar="P[,P...]",
            help="Keep the fewest most probable codes whose probabilities add up to at least P (nucleus sampling).",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    min_p: Annotated[
        str | None,
        typer.Option(
            metavar="P[,P...]",
            help="Keep codes at least P times as probable as the most probable one.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    repetition_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Sample a code of codebook 0 again if it was more than this share of its last codes.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    repetition_window: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of last codes that --repetition-threshold counts.", rich_help_panel=SAMPLING
        ),
    ] = 10,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance scale: 1 disables it, 0 ignores the conditioning.",
            show_default="the model's",
            rich_help_panel=CONDITIONING,
        ),
    ] = None,
    device: DeviceOption = "auto",
    **conditions: str | None,
) -> None:
    """Generate audio with a language model of codes.

    Temperature and filters take one value, or one per codebook: --temperature 1,0.9,0.8.

    Example: codec generate --label 7 -o seven.wav
    """
    _check(output, endless=seconds == math.inf, count=count, raw=raw, subtype=subtype)
    span = _span(infill, gap, prompt=prompt, seconds=seconds)
    first = secrets.randbelow(2**32) if seed is None else seed
    targets = {first + number: _target(output, first + number, count, force=force) for number in range(count)}

    import torch

    from codec import generation
    from codec.io.audio import read_audio

    model, decoder = generation.load_pair(lm, codec, device)
    rate = decoder.config.sample_rate
    recording = prompt if infill is None else infill
    audio = None if recording is None else torch.from_numpy(read_audio(recording, rate=rate, mono=True)[0])[None]
    if prompt is not None and audio is not None and (dropped := generation.dropped_seconds(model, decoder, audio)):
        say(f"note: {prompt} is longer than the model's context: its first {dropped:.2f} s are left out")
    repetition = {"repetition_threshold": repetition_threshold, "repetition_window": repetition_window}
    sampling = _sampling(model, repetition, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    named: dict[str, Any] = {kind: name for kind, name in conditions.items() if name is not None}
    for number, target in targets.items():
        began = perf_counter()
        if span is None:
            blocks = generation.generate(
                model,
                decoder,
                seed=number,
                seconds=seconds,
                prompt=audio,
                guidance=guidance,
                sampling=sampling,
                **named,
            )
        else:
            assert audio is not None
            filled = generation.infill(
                model,
                decoder,
                audio,
                span,
                seed=number,
                conditioning=model.conditioning([named]),
                guidance=guidance,
                sampling=sampling,
            )
            blocks = iter([filled])
        time, notes = _write(
            target, (block[0].cpu().numpy() for block in blocks), rate=rate, subtype=subtype, force=force, raw=raw
        )
        speed = real_time(time / rate / (perf_counter() - began))
        clipped = "".join(f"{note}, " for note in notes)
        say(f"{output_label(target)}: {time / rate:.2f} s, {speed}, {clipped}seed {number}")


def _check(output: str, *, endless: bool, count: int, raw: bool, subtype: str | None) -> None:
    check_sink(output)
    if not Path(output).name:
        raise UsageError(f'-o "{output}" is not a file name: name a file, or - for standard output')
    if output == "-" and count > 1:
        raise UsageError(f"--count {count} writes {count} files, standard output takes one: name a file with -o")
    if output != "-" and raw:
        raise UsageError(f"--raw is for standard output, not for {output}: add -o -, or leave it out")
    if output != "-" and endless:
        raise UsageError(f"--seconds inf never ends, but {output} needs an end: add -o - to stream")
    if subtype not in LIVE_SUBTYPES and (raw or endless):
        option = "--raw" if raw else "--seconds inf"
        raise UsageError(f"{option} writes 16-bit samples, not {subtype}: leave out one of {option} and --subtype")


def _span(
    infill: str | None, gap: str | None, *, prompt: str | None, seconds: float | None
) -> tuple[float, float] | None:
    """Begin and end of the gap in seconds; None without --gap."""
    if (infill is None) != (gap is None):
        raise UsageError("--infill and --gap belong together: name the recording, and its gap as FROM:TO in seconds")
    if gap is None:
        return None
    if prompt is not None or seconds is not None:
        raise UsageError("--infill keeps the length of its recording: leave --prompt and --seconds out")
    begin, _, end = gap.partition(":")
    try:
        return float(begin), float(end)
    except ValueError as error:
        raise UsageError(f"--gap {gap}: write it as FROM:TO in seconds, for example 1.5:2") from error


def _target(output: str, seed: int, count: int, *, force: bool) -> str:
    """Output file of a seed. Raises StorageError if it exists, before any work is done."""
    path = Path(output)
    target = output if count == 1 else str(path.with_stem(f"{path.stem}-{seed}"))
    if target != "-" and Path(target).is_file():
        refuse_existing(target, force=force)
    return target


def _sampling(model: "CodecLM", repetition: dict[str, float | None], **texts: str | None) -> "Sampling":
    """Options to a `Sampling`; texts are one value, or values separated by commas."""
    from codec.lm.filters import Sampling

    values: dict[str, object] = {"temperature": model.config.temperature, **repetition}
    for name, text in texts.items():
        if text is None:
            continue
        number = int if name == "top_k" else float
        try:
            numbers = [number(part) for part in text.split(",")]
        except ValueError as error:
            raise UsageError(
                f"--{name.replace('_', '-')} {text}: write one number, or one per codebook: 1,2,3"
            ) from error
        values[name] = numbers if len(numbers) > 1 else numbers[0]
    return Sampling.from_data(values, source="options")


def _write(
    target: str, blocks: "Iterator[Block]", *, rate: int, subtype: str | None, force: bool, raw: bool
) -> tuple[int, tuple[str, ...]]:
    """Write blocks as they are generated; returns the number of samples, and notes on what was clipped.

    Raises UsageError if there are no samples.
    """
    from codec.io.audio import LiveOutput, open_writer

    time = 0
    if target == "-" and subtype in LIVE_SUBTYPES:
        with LiveOutput(rate=rate, channels=1, bare=raw) as sink:
            for block in blocks:
                sink.write(block)
                time += block.shape[1]
        return _nonzero(time), sink.clip_notes()
    with open_writer(target, rate=rate, channels=1, subtype=subtype, force=force) as writer:
        for block in blocks:
            writer.write(block)
            time += block.shape[1]
        _nonzero(time)
    return time, writer.clip_notes()


def _nonzero(time: int) -> int:
    """The number of samples. Raises UsageError for 0."""
    if not time:
        raise UsageError("the model ended before the first sample: try another --seed, or set --seconds")
    return time
