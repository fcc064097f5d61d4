"""Measure codecs of other projects beside the same models here: same weights, one run, interleaved.

    python -m tools.bench_peers --peers encodec snac [--seconds 10 60] [--threads 1 2]
    python -m tools.bench_peers --search [--threads 1 2]
    python -m tools.bench_peers --peers encodec --memory 10 [--side ours]

The first prints the median seconds of encoding and decoding by each, and how many times faster this package is: CPU
seconds for one thread, because other programs do not count then, elapsed seconds for several. The second prints the
search of residual codebooks beside its bare matrix products, the third the peak memory of processes that encode and
decode that many minutes. The weights are random, because speed does not depend on them. Needs the packages of the
peers; one that cannot be imported is said.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import codec
from codec.checkpoint import save_model
from codec.models.base import Codec, StepCodec, split_scale
from codec.nn.quantize.residual import ResidualVQ
from codec.streams import StreamDecoder, StreamEncoder

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


def rustymimi(folder: Path) -> Pair:
    """moshi's Mimi in Rust, with the weights of `moshi` under the names of the released file."""
    from rustymimi import Tokenizer

    ours = moshi(folder).ours
    weights = load_file(folder / "moshi.safetensors")
    names = {name: re.sub(r"(in|out)_projs\.0\.weight", rename, name) for name in weights}
    save_file({names[name]: tensor for name, tensor in weights.items()}, folder / "released.safetensors")
    net = Tokenizer(str(folder / "released.safetensors"), num_codebooks=32)
    return Pair(lambda audio: net.encode(audio.numpy()), net.decode, ours)


def rename(match: re.Match[str]) -> str:
    """The released name of a projection of moshi's attention."""
    return "in_proj_weight" if match[1] == "in" else "out_proj.weight"


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


def dac(folder: Path, rate: int, strides: list[int], codebooks: int) -> Pair:
    """The package descript-audio-codec."""
    from dac.model.dac import DAC

    kwargs = {
        "encoder_dim": 64,
        "encoder_rates": strides,
        "decoder_dim": 1536,
        "decoder_rates": strides[::-1],
        "latent_dim": 1024,
        "n_codebooks": codebooks,
        "codebook_size": 1024,
        "codebook_dim": 8,
        "sample_rate": rate,
    }
    net = DAC(**kwargs).eval()
    torch.save({"state_dict": net.state_dict(), "metadata": {"kwargs": kwargs}}, folder / "dac.pth")
    return Pair(
        lambda audio: net.encode(net.preprocess(audio, rate))[1],
        lambda codes: net.decode(net.quantizer.from_codes(codes)[0]),
        codec.load(folder / "dac.pth", device="cpu"),
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
    "dac-24khz": lambda folder: dac(folder, 24000, [2, 4, 5, 8], 32),
    "dac-44khz": lambda folder: dac(folder, 44100, [2, 4, 8, 8], 9),
    "moshi": moshi,
    "rustymimi": rustymimi,
    "transformers-mimi": transformers_mimi,
    "snac": snac,
}

SEARCHES = ((128, 1024, 8), (128, 1024, 32), (256, 2048, 8), (256, 2048, 32))
"""Dimensions, entries and number of the codebooks of `--search`: those of EnCodec and of Mimi."""


def medians(runs: list[Run], repeats: int) -> list[float]:
    """Median seconds of each run; one round of all after another, so that a busy machine slows all alike."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: list[list[float]] = [[] for _ in runs]
    for number in range(repeats + 1):
        for run, times in zip(runs, taken, strict=True):
            begin = clock()
            run()
            if number:  # the first round allocates
                times.append(clock() - begin)
    return [statistics.median(times) for times in taken]


def made(name: str) -> Pair:
    """A peer and our model, made outside of inference mode, as users load models."""
    with tempfile.TemporaryDirectory() as folder:
        return PEERS[name](Path(folder))


@torch.inference_mode()
def row(name: str, pair: Pair, seconds: float, repeats: int) -> str:
    """One row of the table."""
    ours = pair.ours
    audio = 0.1 * torch.randn(1, ours.channels, round(seconds * ours.sample_rate))
    theirs, own = pair.encode(audio), ours.encode(audio)
    encoding = medians([lambda: pair.encode(audio), lambda: ours.encode(audio)], repeats)
    decoding = medians([lambda: pair.decode(theirs), lambda: ours.decode(own)], repeats)
    cells = [name, f"{seconds:g}", str(torch.get_num_threads())]
    for peer, here in (encoding, decoding):
        cells += [f"{peer:.2f}", f"{here:.2f}", f"{peer / here:.2f}"]
    cells.append(f"{1000 * frame(ours, audio, repeats):.1f}" if isinstance(ours, StepCodec) else "-")
    return f"| {' | '.join(cells)} |"


def frame(ours: StepCodec, audio: Tensor, repeats: int) -> float:
    """Seconds of encoding and decoding one frame of a stream, after some frames."""
    encoder, decoder = ours.encoder_state(1), ours.decoder_state(1)
    hop = ours.frame_spec.hop
    taken = []
    for part in torch.split(audio[..., : 10 * max(1, repeats) * hop], hop, dim=-1):
        if part.shape[-1] < hop:
            break
        begin = time.perf_counter()
        codes, encoder = ours.encode_step(part, encoder)
        _, decoder = ours.decode_step(split_scale(codes)[0], decoder)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


@torch.no_grad()
def search_row(dim: int, size: int, codebooks: int, repeats: int) -> str:
    """The search of 1000 frames beside the products of all frames with the codebooks alone."""
    quantizer = ResidualVQ(dim, codebooks, size).eval()
    latents = torch.randn(1, dim, 1000)
    rows = latents[0].T.contiguous()
    tables = [stage.codebook.T.contiguous() for stage in quantizer.stages]
    out = torch.empty(1000, size)

    def products() -> None:
        for table in tables:
            torch.mm(rows, table, out=out)

    bare, ours = medians([products, lambda: quantizer.encode(latents)], repeats)
    cells = [f"{codebooks} x {size} x {dim}", str(torch.get_num_threads())]
    return f"| {' | '.join([*cells, f'{1000 * bare:.1f}', f'{1000 * ours:.1f}', f'{bare / ours:.2f}'])} |"


def memory_row(name: str, minutes: float) -> str:
    """Peak memory of two processes in MB, the peer's and ours."""
    peaks = []
    for side in ("peer", "ours"):
        command = [sys.executable, "-m", "tools.bench_peers", "--peers", name, "--memory", str(minutes), "--side", side]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        peaks.append(f"{int(ended.stdout):d}" if ended.returncode == 0 else f"ended by {ended.returncode}")
        if ended.returncode > 0:
            print(f"{name}, {side}: {ended.stderr.strip().rpartition(chr(10))[2]}", file=sys.stderr)
    return f"| {name} | {minutes:g} | {' | '.join(peaks)} |"


def written(name: str, path: Path) -> None:
    """Write our model of a peer's weights."""
    save_model(path, made(name).ours, training={})


def made_elsewhere(name: str) -> Codec:
    """Our model, with the peer's made in another process, whose memory does not count."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.safetensors"
        maker = multiprocessing.get_context("spawn").Process(target=written, args=(name, path))
        maker.start()
        maker.join()
        return codec.load(path, device="cpu")


@torch.inference_mode()
def peak(name: str, minutes: float, side: str) -> int:
    """Peak memory of this process in MB after encoding and decoding: by the peer at once, by ours as streams."""
    with torch.inference_mode(False):
        pair = made(name) if side == "peer" else None
        ours = pair.ours if pair else made_elsewhere(name)
    time = round(60 * minutes * ours.sample_rate)
    if pair:
        pair.decode(pair.encode(0.1 * torch.randn(1, ours.channels, time)))
    else:
        encoder, decoder = StreamEncoder(ours), StreamDecoder(ours, length=time)
        for begin in range(0, time, ours.sample_rate):
            part = 0.1 * torch.randn(1, ours.channels, min(ours.sample_rate, time - begin))
            decoder.push(encoder.push(part))
        decoder.push(encoder.flush())
        decoder.flush()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Measure other projects' codecs beside the same models here.")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--search", action="store_true", help="the search of residual codebooks alone")
    parser.add_argument("--memory", type=float, metavar="MINUTES", help="peak memory instead of times")
    parser.add_argument("--side", choices=["peer", "ours"], help="with --memory: one process alone")
    arguments = parser.parse_args()
    if arguments.side:
        print(peak(arguments.peers[0], arguments.memory, arguments.side))
    elif arguments.memory:
        print("| peer | minutes | its peak memory, MB | ours |\n|---|---|---|---|")
        for name in arguments.peers:
            print(memory_row(name, arguments.memory), flush=True)
    elif arguments.search:
        print("| codebooks | threads | products, ms | search, ms | times |\n|---|---|---|---|---|")
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for sizes in SEARCHES:
                print(search_row(*sizes, arguments.repeats), flush=True)
    else:
        print("| peer | seconds | threads | its encode | ours | times | its decode | ours | times | a frame, ms |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            os.environ["RAYON_NUM_THREADS"] = str(threads)  # of rustymimi, which reads it once
            for name in arguments.peers:
                try:
                    pair = made(name)
                except ImportError as error:
                    print(f"{name}: {error}")
                    continue
                for seconds in arguments.seconds:
                    print(row(name, pair, seconds, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
