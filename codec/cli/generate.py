"""codec generate"""

import math
import secrets
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from codec import pretrained
from codec.cli.options import DeviceOption, ForceOption, check_sink, say
from codec.errors import StorageError, UsageError

if TYPE_CHECKING:
    from codec.io.audio import Block
    from codec.lm.base import CodecLM
    from codec.lm.filters import Sampling


def generate(
    lm: Annotated[
        str, typer.Argument(metavar="[LM]", help="A language model: a shipped one's name, a file, or a run's folder.")
    ] = pretrained.DEFAULT_LM,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="An audio file, or - for standard output, as it comes.")
    ] = "generated.wav",
    label: Annotated[str | None, typer.Option(help="What to hear, one of the model's labels.")] = None,
    speaker: Annotated[str | None, typer.Option(help="Whom to hear, one of the model's speakers.")] = None,
    text: Annotated[str | None, typer.Option(help="What is said, where the model takes a text.")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Length of all; inf for no end.", show_default="what the model makes it"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same audio.", show_default="a random one")] = None,
    count: Annotated[int, typer.Option(min=1, help="So many files, seed + 1 for each next one.")] = 1,
    prompt: Annotated[
        str | None, typer.Option(metavar="IN", help="A recording to go on from; it is brought to the model's level.")
    ] = None,
    infill: Annotated[str | None, typer.Option(metavar="IN", help="A recording whose --gap to fill, likewise.")] = None,
    gap: Annotated[str | None, typer.Option(metavar="FROM:TO", help="In seconds.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="How much to make of label, speaker and text; 0: nothing.", show_default="the model's"),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N...]",
            help="Below 1 for the more probable, above for the less.",
            show_default="the model's",
        ),
    ] = None,
    top_k: Annotated[str | None, typer.Option(metavar="N[,N...]", help="Of so many codes, the most probable.")] = None,
    top_p: Annotated[str | None, typer.Option(metavar="N[,N...]", help="Of the fewest so probable together.")] = None,
    min_p: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="Of those so probable beside the most probable.")
    ] = None,
    repetition_threshold: Annotated[
        float | None,
        typer.Option(help="Draw a code of codebook 0 anew that was more than this share of its last ones, as 0.1."),
    ] = None,
    repetition_window: Annotated[int, typer.Option(help="So many last codes of codebook 0 count for that.")] = 10,
    codec: Annotated[
        str | None, typer.Option(help="The codec of the model's codes.", show_default="the one that it names")
    ] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    raw: Annotated[bool, typer.Option("--raw", help="To standard output without a header: signed 16 bits.")] = False,
) -> None:
    """Make new audio with a language model of codes; numbers for sampling are one for all codebooks, or one,for,each."""
    _check(output, endless=seconds == math.inf, count=count, raw=raw)
    span = _span(infill, gap, prompt=prompt, seconds=seconds)
    first = secrets.randbelow(2**32) if seed is None else seed
    targets = {first + number: _target(output, first + number, count, force=force) for number in range(count)}

    import torch

    from codec import generation
    from codec.io.audio import read_audio

    model, decoder = generation.load_pair(lm, codec, device)
    rate = decoder.config.sample_rate
    source = prompt if infill is None else infill
    heard = None if source is None else torch.from_numpy(read_audio(source, rate=rate, mono=True)[0])[None]
    repetition = {"repetition_threshold": repetition_threshold, "repetition_window": repetition_window}
    sampling = _sampling(model, repetition, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    told = {"label": label, "speaker": speaker, "text": text}
    for number, target in targets.items():
        began = perf_counter()
        if span is None:
            blocks = generation.generate(
                model,
                decoder,
                seed=number,
                seconds=seconds,
                prompt=heard,
                guidance=guidance,
                sampling=sampling,
                label=label,
                speaker=speaker,
                text=text,
            )
        else:
            assert heard is not None
            conditioning = model.conditioning([{kind: name for kind, name in told.items() if name is not None}])
            filled = generation.infill(
                model,
                decoder,
                heard,
                span,
                seed=number,
                conditioning=conditioning,
                guidance=guidance,
                sampling=sampling,
            )
            blocks = iter([filled])
        time = _write(target, (block[0].cpu().numpy() for block in blocks), rate=rate, force=force, raw=raw)
        speed = time / rate / (perf_counter() - began)
        name = "standard output" if target == "-" else target
        say(f"{name}: {time / rate:.2f} s, {speed:.1f} × real time, seed {number}")


def _check(output: str, *, endless: bool, count: int, raw: bool) -> None:
    check_sink(output)
    if not Path(output).name:
        raise UsageError(f'-o "{output}" is not a file name: name a file, or - for standard output')
    if output == "-" and count > 1:
        raise UsageError(f"--count {count} makes so many files, and standard output takes one: name a file with -o")
    if output != "-" and raw:
        raise UsageError(f"--raw is for standard output, not for {output}: add -o -, or leave it out")
    if output != "-" and endless:
        raise UsageError(f"--seconds inf has no end, and {output} needs one: add -o - to hear it as it comes")


def _span(
    infill: str | None, gap: str | None, *, prompt: str | None, seconds: float | None
) -> tuple[float, float] | None:
    """From when to when the gap is, in seconds; None where there is none to fill."""
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
    """Where the audio of a seed goes; refused now rather than after the work."""
    path = Path(output)
    target = output if count == 1 else str(path.with_stem(f"{path.stem}-{seed}"))
    if target != "-" and not force and Path(target).is_file():
        raise StorageError(f"{target} exists: pass --force to replace it")
    return target


def _sampling(model: "CodecLM", repetition: dict[str, float | None], **texts: str | None) -> "Sampling":
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
                f"--{name.replace('_', '-')} {text}: write one number, or as many as codebooks: 1,2,3"
            ) from error
        values[name] = numbers if len(numbers) > 1 else numbers[0]
    return Sampling.from_data(values, source="options")


def _write(target: str, blocks: "Iterator[Block]", *, rate: int, force: bool, raw: bool) -> int:
    """Write the blocks as they come; the number of samples. Raises UsageError if there were none."""
    from codec.io.audio import LiveOutput, open_writer

    time = 0
    if target == "-":
        with LiveOutput(rate=rate, channels=1, bare=raw) as sink:
            for block in blocks:
                sink.write(block)
                time += block.shape[1]
        return _some(time)
    with open_writer(target, rate=rate, channels=1, force=force) as writer:
        for block in blocks:
            writer.write(block)
            time += block.shape[1]
        _some(time)
    return time


def _some(time: int) -> int:
    """The number of samples. Raises UsageError where there are none."""
    if not time:
        raise UsageError("the model ended before the first sample: try another --seed, or ask for --seconds")
    return time
