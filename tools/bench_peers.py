"""Measure codecs of other projects beside the same models here: same weights, one run, interleaved.

    python -m tools.bench_peers --peers moshi transformers-mimi snac [--seconds 10] [--threads 1]

Prints the median CPU seconds of encoding and decoding by each, and how many times faster this package is. The weights
are random, because speed does not depend on them. Needs the packages of the peers; one that cannot be imported is said.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

import codec
from codec.models.base import Codec, StepCodec, split_scale

Run = Callable[[], Any]


class Pair(NamedTuple):
    """A peer's functions and our model with the same weights."""

    encode: Callable[[Tensor], Any]
    """Audio [1, channels, time] to the peer's codes."""
    decode: Callable[[Any], Any]
    """The peer's codes to audio."""
    ours: Codec


def moshi(folder: Path) -> Pair:
    """moshi's Mimi."""
    from moshi.models import loaders

    net = loaders.get_mimi(None, num_codebooks=32)
    save_file(net.state_dict(), folder / "moshi.safetensors")
    return Pair(net.encode, net.decode, codec.load(folder / "moshi.safetensors", device="cpu"))


def transformers_mimi(folder: Path) -> Pair:
    """transformers' Mimi."""
    from transformers import MimiConfig, MimiModel

    net = MimiModel(MimiConfig()).eval()
    net.save_pretrained(folder / "mimi")
    return Pair(
        lambda audio: net.encode(audio).audio_codes,
        lambda codes: net.decode(codes).audio_values,
        codec.load(folder / "mimi", device="cpu"),
    )


def snac(folder: Path) -> Pair:
    """The package snac, 24 kHz."""
    from snac import SNAC

    net = SNAC(**SNAC_24KHZ).eval()
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(SNAC_24KHZ))
    return Pair(net.encode, net.decode, codec.load(folder, device="cpu"))


SNAC_24KHZ: dict[str, Any] = {
    "sampling_rate": 24000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}


def encodec(folder: Path) -> Pair:
    """encodec's 24 kHz model, with all 32 codebooks."""
    from encodec import EncodecModel

    net = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    for layer in net.quantizer.vq.layers:
        torch.nn.init.normal_(layer._codebook.embed)
    net.set_target_bandwidth(24.0)
    torch.save(net.state_dict(), folder / "encodec.th")
    return Pair(net.encode, net.decode, codec.load(folder / "encodec.th", device="cpu"))


PEERS: dict[str, Callable[[Path], Pair]] = {
    "encodec": encodec,
    "moshi": moshi,
    "transformers-mimi": transformers_mimi,
    "snac": snac,
}


def cpu_seconds(runs: list[Run], repeats: int) -> list[float]:
    """Median CPU seconds of each run; one round of all after another, so that a busy machine slows all alike."""
    taken: list[list[float]] = [[] for _ in runs]
    for number in range(repeats + 1):
        for run, times in zip(runs, taken, strict=True):
            begin = time.process_time()
            run()
            if number:  # the first round allocates
                times.append(time.process_time() - begin)
    return [statistics.median(times) for times in taken]


@torch.inference_mode()
def row(name: str, seconds: float, repeats: int) -> str:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        pair = PEERS[name](Path(folder))
    ours = pair.ours
    audio = 0.1 * torch.randn(1, ours.channels, round(seconds * ours.sample_rate))
    theirs, own = pair.encode(audio), ours.encode(audio)
    encoding = cpu_seconds([lambda: pair.encode(audio), lambda: ours.encode(audio)], repeats)
    decoding = cpu_seconds([lambda: pair.decode(theirs), lambda: ours.decode(own)], repeats)
    cells = [name, f"{seconds:g}"]
    for peer, here in (encoding, decoding):
        cells += [f"{peer:.2f}", f"{here:.2f}", f"{peer / here:.2f}"]
    cells.append(f"{1000 * frame(ours, audio, repeats):.1f}" if isinstance(ours, StepCodec) else "-")
    return f"| {' | '.join(cells)} |"


def frame(ours: StepCodec, audio: Tensor, repeats: int) -> float:
    """CPU seconds of encoding and decoding one frame of a stream, after some frames."""
    encoder, decoder = ours.encoder_state(1), ours.decoder_state(1)
    hop = ours.frame_spec.hop
    taken = []
    for part in torch.split(audio[..., : 10 * max(1, repeats) * hop], hop, dim=-1):
        if part.shape[-1] < hop:
            break
        begin = time.process_time()
        codes, encoder = ours.encode_step(part, encoder)
        _, decoder = ours.decode_step(split_scale(codes)[0], decoder)
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure other projects' codecs beside the same models here.")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| peer | seconds | its encode | ours | times | its decode | ours | times | a frame here, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.peers:
        for seconds in arguments.seconds:
            try:
                print(row(name, seconds, arguments.repeats), flush=True)
            except ImportError as error:
                print(f"{name}: {error}")


if __name__ == "__main__":
    main()
