"""Measure speed and memory of encoding and decoding, also of EnCodec if the package `encodec` is installed.

    python tools/bench.py                            speed and memory of the default model
    python tools/bench.py --model PATH --no-memory   speed alone
    python tools/bench.py --untrained                the causal family's default configuration, random weights
    python tools/bench.py --untrained encodec filters=4 dim=16 num_codebooks=4
                                                     a configuration of another family
    python tools/bench.py --live                     a frame at a time: compiled steps against torch
    python tools/bench.py --live --onnx DIR          and against the graphs of `codec export` in ONNX Runtime
    python tools/bench.py --pipe 0.1 0.2 1           delay of codec encode - - | codec decode - - by length of packets,
                                                     and how long it takes from the start until the delay is that

Speeds are real-time factors (seconds of audio per second of computation), medians over rounds in which all systems
alternate, so that other load affects them equally. Memory is the peak resident set size of a separate process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep
from typing import IO, cast

import numpy as np
import soundfile
import torch

from codec import backend as backends
from codec import checkpoint, compression, live, models, pretrained
from codec import streams as sessions
from codec.config import override_data
from codec.errors import CodecError
from codec.evaluation.codec import peak_memory
from codec.io import bitstream
from codec.models.base import Codec, StepCodec

RATE = 24_000  # Hz, of the synthetic audio
WARM_UP = live.LIVE_AFTER + 10  # frames of a live stream that are not timed
BLOCK = 10  # s of audio per block
STEP = RATE // 100  # samples that a pipe gets at once
MOST_START = 60.0  # s until a pipe must be live
NOT_LATE = 0.2  # s beyond the packet; a queue that remains is longer, or grows


@dataclass(frozen=True)
class System:
    """Something to time: `encode` keeps what `decode` then takes."""

    name: str
    encode: Callable[[], object]
    decode: Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of encoding and decoding.")
    parser.add_argument("--model", default=pretrained.DEFAULT, help="shipped name, .safetensors file or training run")
    parser.add_argument(
        "--untrained",
        nargs="*",
        metavar=("FAMILY", "KEY=VALUE"),
        help="random weights instead of --model; the causal family by default",
    )
    parser.add_argument("--codebooks", dest="num_codebooks", type=int, help="codebooks to use; all by default")
    parser.add_argument("--seconds", type=float, default=10, help="length of the signal that is timed (default 10)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the timing (default 7)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads (default 1 2)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 120], help="lengths for memory (default 2 120)")
    parser.add_argument("--live", action="store_true", help="only live streams, a frame at a time on one thread")
    parser.add_argument("--onnx", type=Path, help="folder of codec export, for --live")
    parser.add_argument("--pipe", type=float, nargs="+", help="lengths of packets in seconds: only the delay of pipes")
    parser.add_argument("--no-speed", action="store_true", help="leave the speed out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)  # compress|decompress SOURCE TARGET
    arguments = parser.parse_args()

    if arguments.worker:
        work(*arguments.worker, model=arguments.model, num_codebooks=arguments.num_codebooks)
        return
    if arguments.live:
        report_live(arguments.model, arguments.num_codebooks, arguments.seconds, arguments.onnx)
        return
    if arguments.pipe:
        report_pipes(arguments.model, arguments.pipe, arguments.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.untrained is not None:
            family, *keys = arguments.untrained or ["causal"]
            torch.manual_seed(0)
            arguments.model = str(Path(folder, "untrained.safetensors"))
            checkpoint.save_model(arguments.model, models.build(family, override_data({}, keys)), training={})
        if not arguments.no_speed:
            report_speed(
                arguments.model, arguments.num_codebooks, arguments.seconds, arguments.rounds, arguments.threads
            )
        if not arguments.no_memory:
            report_memory(arguments.model, arguments.num_codebooks, arguments.minutes, Path(folder))


# Speed


def report_speed(model: str, num_codebooks: int | None, seconds: float, rounds: int, threads: Sequence[int]) -> None:
    """Print the table of real-time factors."""
    audio = torch.from_numpy(sound(0, round(seconds * RATE)))[None, None]  # [batch, channels, time]
    systems = ours(model, num_codebooks, audio)
    try:
        systems.append(encodec(audio))
    except (ImportError, OSError) as error:  # OSError: torchaudio is incompatible with torch
        print(f"EnCodec skipped: the package encodec cannot be imported ({error})\n")
    took: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for turn in range(rounds + 1):
        for count in threads:
            torch.set_num_threads(count)
            for system in systems:
                pair = timed(system.encode), timed(system.decode)
                if turn:  # the first round is a warm-up
                    took.setdefault((system.name, count), []).append(pair)
    print(f"{seconds:g} s of mono at {RATE} Hz, medians (best) of {rounds} interleaved rounds, × real time")
    print(f"{'':24}{'threads':>8}{'encode':>18}{'decode':>18}")
    for (name, count), times in sorted(took.items()):
        cells = [f"{seconds / statistics.median(t):.1f} ({seconds / min(t):.1f})" for t in zip(*times, strict=True)]
        print(f"{name:24}{count:8}{cells[0]:>18}{cells[1]:>18}")
    print()


def ours(name: str, num_codebooks: int | None, audio: torch.Tensor) -> list[System]:
    """Our model on the whole signal, and streamed in blocks of one second, as for files."""
    model = pretrained.load(name, "cpu")
    codes = model.encode(audio, num_codebooks=num_codebooks)
    second = model.frame_spec.frames_per_packet()

    def stream_encode() -> None:
        session = sessions.StreamEncoder(model, num_codebooks=num_codebooks)
        for block in torch.split(audio, model.frame_spec.sample_rate, dim=2):
            session.push(block)
        session.flush()

    def stream_decode() -> None:
        session = sessions.StreamDecoder(model)
        for block in torch.split(codes, second, dim=2):
            session.push(block)
        session.flush()

    label = model.name or "model"
    return [
        System(
            f"{label}, whole", lambda: model.encode(audio, num_codebooks=num_codebooks), lambda: model.decode(codes)
        ),
        System(f"{label}, session", stream_encode, stream_decode),
    ]


def encodec(audio: torch.Tensor) -> System:
    """EnCodec at 24 kHz and 6 kbit/s with random weights, because the speed does not depend on the weights."""
    model = import_module("encodec").EncodecModel.encodec_model_24khz(pretrained=False).eval()
    model.set_target_bandwidth(6.0)
    with torch.inference_mode():
        frames = model.encode(audio)
    return System(
        "encodec, 6 kbit/s",
        torch.inference_mode()(lambda: model.encode(audio)),
        torch.inference_mode()(lambda: model.decode(frames)),
    )


# Live streams


class Live:
    """A stream of single frames through the encoder and the decoder in one backend, and the milliseconds they took."""

    def __init__(self, model: Codec, num_codebooks: int | None, backend: str) -> None:
        os.environ[backends.VARIABLE] = backend
        self.encoder = sessions.StreamEncoder(model, num_codebooks=num_codebooks)
        self.decoder = sessions.StreamDecoder(model)
        self.backend = live.backend_of(cast(StepCodec, model)) if backend == "auto" else backend
        self.took: list[tuple[float, float]] = []

    def push(self, audio: torch.Tensor) -> torch.Tensor:
        start = perf_counter()
        codes = self.encoder.push(audio)
        middle = perf_counter()
        self.decoder.push(codes)
        self.took.append((1e3 * (middle - start), 1e3 * (perf_counter() - middle)))
        return codes


class LiveGraphs:
    """The same with exported graphs in ONNX Runtime on one thread."""

    backend = "ONNX Runtime"

    def __init__(self, folder: Path, num_codebooks: int) -> None:
        from codec.export import onnx

        self.encoder, self.decoder = (onnx.Step(onnx.session(str(folder / name), 1), 1) for name in onnx.GRAPHS)
        self.num_codebooks = np.array(num_codebooks)
        self.took: list[tuple[float, float]] = []

    def push(self, audio: torch.Tensor) -> torch.Tensor:
        start = perf_counter()
        codes = self.encoder(audio.numpy(), num_codebooks=self.num_codebooks)
        middle = perf_counter()
        self.decoder(codes)
        self.took.append((1e3 * (middle - start), 1e3 * (perf_counter() - middle)))
        return torch.from_numpy(codes[:, : int(self.num_codebooks)])


def report_live(name: str, num_codebooks: int | None, seconds: float, graphs: Path | None) -> None:
    """Print milliseconds per frame in torch, in the backend of live streams and with `graphs`, which take turns.

    Turns of one frame find the caches of the CPU full of the other backend's weights; in turns of ten seconds, only one
    frame in 500 does, as in a program that runs one of them.
    """
    torch.set_num_threads(1)
    model = pretrained.load(name, "cpu")
    hop = model.frame_spec.hop
    blocks = torch.split(torch.from_numpy(sound(0, round(seconds * RATE)))[None, None], hop, dim=2)
    frames = len(blocks) - (blocks[-1].shape[2] < hop)
    print(f"{frames} frames of {1e3 * hop / model.sample_rate:g} ms, one at a time, one thread; medians, ms per frame")
    print(f"{'':24}{'encode':>10}{'decode':>10}{'both':>10}{'p99':>10}")
    for turn in (round(10 * model.frame_rate), 1):
        streams: list[Live | LiveGraphs] = [Live(model, num_codebooks, each) for each in ("torch", "auto")]
        if graphs:
            streams.append(LiveGraphs(graphs, num_codebooks or model.num_codebooks))
        codes: list[list[torch.Tensor]] = [[] for _ in streams]
        for first in range(0, frames, turn):
            for stream, parts in zip(streams, codes, strict=True):
                parts += [stream.push(block) for block in blocks[first : min(first + turn, frames)]]
        medians = [print_live(f"{stream.backend}, turns of {turn}", stream.took[WARM_UP:]) for stream in streams]
        expected, *others = (torch.cat(parts, dim=2) for parts in codes)
        for stream, median, found in zip(streams[1:], medians[1:], others, strict=True):
            different = int((expected != found).sum())
            print(f"{stream.backend}: {medians[0] / median:.2f} × as fast; {different} of {found.numel()} codes differ")


def print_live(label: str, took: Sequence[tuple[float, float]]) -> float:
    """Print a row of the table of live streams; the median of encoding and decoding a frame."""
    encode, decode = np.array(took).T
    both = encode + decode
    median = float(np.median(both))
    cells = np.median(encode), np.median(decode), median, np.percentile(both, 99)
    print(f"{label:24}" + "".join(f"{cell:10.2f}" for cell in cells))
    return median


# Pipes


def report_pipes(model: str, packets: Sequence[float], seconds: float) -> None:
    """Print the delay of a live signal through `codec encode - -` and `codec decode - -` by the length of packets."""
    print(f"{seconds:g} s of raw samples at {RATE} Hz in blocks of {1000 * STEP / RATE:g} ms, as they are recorded")
    print(f"{'packet':>8}{'first s':>10}{'live s':>10}{'median ms':>12}{'most ms':>10}{'median beyond':>16}")
    for packet in packets:
        pipe = piped(model, packet, seconds)
        start = f"{packet:8g}{pipe.first:10.1f}"
        if pipe.live is None:
            print(f"{start}{'never':>10}: {pipe.delays[-1]:.1f} s late after {MOST_START:g} s", flush=True)
            continue
        median, most = 1000 * float(np.median(pipe.delays)), 1000 * max(pipe.delays)
        print(f"{start}{pipe.live:10.1f}{median:12.0f}{most:10.0f}{median - 1000 * packet:16.0f}", flush=True)


@dataclass(frozen=True)
class Delays:
    """Delays of a pipe, in s."""

    first: float
    """From the start of both programs, and of the recording, to the first sample."""
    live: float | None
    """From the start to the first packet that had not waited for others, if there is one."""
    delays: list[float]
    """Of the packets from then on; of all packets if there is none."""


def piped(model: str, packet: float, seconds: float) -> Delays:
    """Record samples from the start of both programs on, and for `seconds` more once nothing waits in the pipes."""
    options = ["--model", model, "-", "-", "--raw", "--quiet"]
    command = [sys.executable, "-m", "codec"]
    read: list[tuple[float, int]] = []  # times, and samples so far
    began = perf_counter()
    with (
        subprocess.Popen(
            [*command, "encode", *options, "--rate", str(RATE), "--packet", str(packet)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        ) as encoder,
        subprocess.Popen(
            [*command, "decode", *options], stdin=encoder.stdout, stdout=subprocess.PIPE, bufsize=0
        ) as decoder,
    ):
        assert encoder.stdin
        assert encoder.stdout
        encoder.stdout.close()  # so that the encoder would know if the decoder ended
        reading = Thread(target=read_all, args=[decoder.stdout, read])
        reading.start()
        samples = (32767 * sound(0, round((MOST_START + seconds + packet + 1) * RATE))).astype("<i2")
        recorded, live = 0, None
        while recorded / RATE < (MOST_START if live is None else live + seconds + packet):
            recorded += STEP
            sleep(max(0.0, began + recorded / RATE - perf_counter()))
            encoder.stdin.write(samples[recorded - STEP : recorded].tobytes())
            if live is None:
                live = live_since(delays_of(read, began, packet), packet)
        encoder.stdin.close()
        reading.join()
    delays = delays_of(read, began, packet)
    after = [delay for at, delay in delays if live is not None and live <= at < live + seconds]
    return Delays(read[0][0] - began, live, after or [delay for _, delay in delays])


def delays_of(read: Sequence[tuple[float, int]], began: float, packet: float) -> list[tuple[float, float]]:
    """For each packet, when it was read in s, and the longest time from the writing of a sample to its reading.

    A block is written when its last sample is recorded, at `began` at the earliest; a pipe that takes it later is late.
    """
    longest: dict[int, tuple[float, float]] = {}
    before = 0
    for at, count in read:
        delay = at - began - (before // STEP + 1) * STEP / RATE  # of the first sample that was read
        number = int(before / RATE / packet + 1e-6)
        if delay > longest.get(number, (0.0, 0.0))[1]:
            longest[number] = at - began, delay
        before = count
    return [longest[number] for number in sorted(longest)]


def live_since(delays: Sequence[tuple[float, float]], packet: float) -> float | None:
    """When the first packet was read that had not waited for others."""
    return next((at for at, delay in delays if delay <= packet + NOT_LATE), None)


def read_all(stream: IO[bytes], read: list[tuple[float, int]]) -> None:
    """Note when samples of 16 bits arrive, and how many there are."""
    count = 0
    while data := stream.read(1 << 16):
        count += len(data) // 2
        read.append((perf_counter(), count))


def timed(run: Callable[[], object]) -> float:
    """Run a function and return the seconds it takes."""
    started = perf_counter()
    run()
    return perf_counter() - started


# Memory


def report_memory(model: str, num_codebooks: int | None, minutes: Sequence[float], folder: Path) -> None:
    """Print the peak memory of compression and decompression, each in a process of its own."""
    print(f"files of mono at {RATE} Hz, 16 bit: peak resident set and speed of a process of its own, one thread")
    print(f"{'minutes':>8}{'compress':>14}{'× real time':>13}{'decompress':>14}{'× real time':>13}{'kbit/s':>9}")
    for length in minutes:
        source, coded, restored = (folder / f"{length:g}.{suffix}" for suffix in ("wav", "codec", "restored.wav"))
        time = round(length * 60 * RATE)
        with soundfile.SoundFile(source, "w", RATE, 1, subtype="PCM_16") as file:
            for start in range(0, time, BLOCK * RATE):
                file.write(sound(start, min(BLOCK * RATE, time - start)))
        compressed = in_process("compress", source, coded, model, num_codebooks)
        source.unlink()  # because ten hours are 1.7 GB
        decompressed = in_process("decompress", coded, restored, model, num_codebooks)
        with bitstream.open_reader(coded) as reader:
            rate = coded.stat().st_size * 8 / 1000 / reader.header.seconds
        print(
            f"{length:8g}{compressed[0]:10.0f} MiB{length * 60 / compressed[1]:13.1f}"
            f"{decompressed[0]:10.0f} MiB{length * 60 / decompressed[1]:13.1f}{rate:9.2f}",
            flush=True,
        )
        coded.unlink()
        restored.unlink()


def in_process(job: str, source: Path, target: Path, model: str, num_codebooks: int | None) -> tuple[float, float]:
    """Peak memory in MiB and seconds of one job in a new process."""
    command = [sys.executable, __file__, "--model", model, "--worker", job, str(source), str(target)]
    if num_codebooks:
        command += ["--codebooks", str(num_codebooks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    memory, seconds = map(float, printed.split())
    return memory, seconds


def work(job: str, source: str, target: str, *, model: str, num_codebooks: int | None) -> None:
    """Run one job in this process and print MiB and seconds."""
    loaded = pretrained.load(model, "cpu")
    started = perf_counter()
    if job == "compress":
        compression.compress(Path(source), Path(target), model=loaded, num_codebooks=num_codebooks)
    else:
        compression.decompress(Path(source), Path(target), model=loaded)
    took = perf_counter() - started
    print(peak_memory() / 2**20, took)


def sound(start: int, time: int) -> np.ndarray:
    """Synthetic audio: `time` samples of a modulated tone over noise, starting at sample `start`."""
    seconds = (start + np.arange(time)) / RATE
    tone = np.sin(2 * np.pi * (200 * seconds + 40 * np.sin(seconds))) * np.clip(np.sin(3 * seconds), 0, 1)
    noise = np.random.default_rng(start).standard_normal(time)
    return np.asarray(0.3 * tone + 0.02 * noise, np.float32)


if __name__ == "__main__":
    try:
        main()
    except CodecError as error:
        sys.exit(f"bench: {error}")
