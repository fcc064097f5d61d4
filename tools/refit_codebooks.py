"""Refit the residual codebooks of a trained codec by least squares; its networks stay as they are.

    python tools/refit_codebooks.py runs/general corpus.jsonl --out refitted.safetensors

The corpus is a folder or a manifest; clips of its split train, or without splits all, are used. Prints the share of the
energy that each number of codebooks leaves of frames that were held out, before the first round and after each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from codec import pretrained
from codec.checkpoint import read_card, save_model
from codec.data.clips import clip_audio, clips
from codec.errors import CodecError, UsageError
from codec.models.base import Codec
from codec.nn.quantize.gain_shape import GainShapeVQ
from codec.nn.quantize.least_squares import errors, refit
from codec.nn.quantize.residual import ResidualVQ

LONGEST = 30.0  # seconds of a clip
HELD_OUT = 20  # one of this many frames


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="name, file, or folder of a training run")
    parser.add_argument("data", type=Path, help="folder or manifest of recordings")
    parser.add_argument("--out", type=Path, required=True, help="model file to write")
    parser.add_argument("--frames", type=int, default=200_000, help="frames to fit to")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--prefixes", default="3:1,6:1,12:1,13:1,16:1.5", help="numbers of codebooks, each with the weight of its error"
    )
    arguments = parser.parse_args()
    try:
        run(arguments.model, arguments.data, arguments.out, arguments.frames, arguments.rounds, arguments.prefixes)
    except CodecError as error:
        raise SystemExit(f"refit_codebooks: {error}") from error


def run(name: str, data: Path, out: Path, frames: int, rounds: int, prefixes: str) -> None:
    """Refit and save. Raises CodecErrors."""
    model = pretrained.load(name)
    quantizer, before = residual_of(model)
    weights = {number - before: weight for number, weight in numbers_of(prefixes).items() if number > before}
    rows = torch.cat(list(latent_rows(model, data)))
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    held_out, used = chosen[: len(rows) // HELD_OUT], chosen[len(rows) // HELD_OUT :][:frames]
    print(f"{len(rows)} frames, {len(used)} used, {len(held_out)} held out")
    print(f"before: {shares(quantizer, rows[held_out], weights, before)}", flush=True)
    for number in range(1, rounds + 1):
        refit(quantizer, rows[used], weights)
        print(f"round {number}: {shares(quantizer, rows[held_out], weights, before)}", flush=True)
    card = read_card(pretrained.find(name))
    save_model(out, model, training=dict(card.training) | {"refit": {"frames": len(used), "rounds": rounds}})
    print(out)


def residual_of(model: Codec) -> tuple[ResidualVQ, int]:
    """The residual quantizer of a model, and the number of codebooks before it. Raises UsageError if it has none."""
    match model.quantizer:
        case GainShapeVQ() as quantizer:
            return quantizer.residual, 1
        case ResidualVQ() as quantizer:
            return quantizer, 0
        case _:
            raise UsageError(f"{model.name} has no stack of residual codebooks")


def latent_rows(model: Codec, data: Path) -> Iterator[Tensor]:
    """Inputs [frames, dim] of the residual quantizer, clip by clip."""
    found = list(clips(data))
    train = [clip for clip in found if clip.split == "train"] or found
    for clip in train:
        time = int(LONGEST * model.sample_rate)
        audio = clip_audio(clip, rate=model.sample_rate, time=time, channels=model.channels)
        padded = torch.nn.functional.pad(torch.from_numpy(audio)[None], (0, -audio.shape[1] % model.frame_spec.hop))
        with torch.no_grad():
            latents = model.whole_latents(padded)
            if isinstance(model.quantizer, GainShapeVQ):
                latents = model.quantizer.learned_residual(latents)
        yield latents[0].T


def numbers_of(text: str) -> dict[int, float]:
    """ "3:1,16:1.5" as numbers of codebooks and weights. Raises UsageError for another form."""
    try:
        return {int(number): float(weight) for number, weight in (item.split(":") for item in text.split(","))}
    except ValueError as error:
        raise UsageError(f"prefixes {text!r}: write numbers and weights as 3:1,16:1.5") from error


def shares(quantizer: ResidualVQ, rows: Tensor, weights: dict[int, float], before: int) -> str:
    """The shares of `errors`, by the number of all codebooks."""
    found = errors(quantizer, rows, weights)
    return ", ".join(f"{number + before}: {share:.4f}" for number, share in found.items())


if __name__ == "__main__":
    main()
