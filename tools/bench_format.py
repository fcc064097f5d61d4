"""Speed and memory of .codec files: coding, parts of long files, entropy coders, changes on codes alone.

    python tools/bench_format.py recording.flac --rounds 5
    python tools/bench_format.py recording.flac --against ../codec-0.1.0

Times are of the process's CPU, on one thread, and the measurements of a table take turns, so that they can be compared
on a machine that others use. `--against` is the tree of another release, whose `codec encode` and `codec decode` are
run beside this one's with `--entropy none`, each in processes of its own.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits

from codec import backend, pretrained
from codec.compression import compress, decompress
from codec.frames import FrameSpec
from codec.io import bitstream, entropy, entropy_compiled
from codec.io.entropy_model import EntropyModel, find
from codec.models.base import Codec
from codec.transcoding import concat, transcode

HERE = Path(__file__).parents[1]
LONG = 36_000  # seconds
PART = 10  # seconds
CHANGED, CUT = 60, 3600  # seconds
CODEBOOKS = (3, 6, 12)

Codes = bitstream.Codes


class Used(NamedTuple):
    """What a process has used."""

    seconds: float
    megabytes: float


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording")
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--seconds", type=int, default=LONG, help="length of the long file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="tree of another release; only it is compared then")
    parser.add_argument("--codebooks", type=int, help="of the files that are compared with another release")
    options = parser.parse_args()
    os.environ[backend.VARIABLE] = "torch"  # only the coder called "compiled" is, whatever was coded before
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):  # threads that wait for others use time too
        if options.against:
            more = ["--codebooks", str(options.codebooks)] if options.codebooks else []
            report_against(options.against, options.recording, options.model, options.rounds, Path(folder), more)
            return
        report_coders(options.recording, options.model, options.rounds, Path(folder))
        report_long(options.recording, options.model, options.seconds, options.rounds, Path(folder))


# entropy coders


def report_coders(recording: str, model: str, rounds: int, folder: Path) -> None:
    """Speed of the payload coders on packets of one second."""
    codec = pretrained.load(model, "cpu")
    print("coder      codebooks  encode x real time  decode x real time")
    for number in (number for number in CODEBOOKS if number in codec.codebook_choices):
        packets = packets_of(recording, codec, number, folder / "coders.codec")
        runs: dict[str, Callable[[], object]] = {}
        for coder in coders(codec, number):
            payloads = [(coder.encode(codes), len(codes), codes.shape[2]) for codes in packets]
            runs[f"{coder.name} encode"] = partial(all_of, coder.encode, [(codes,) for codes in packets])
            runs[f"{coder.name} decode"] = partial(all_of, coder.decode, payloads)
        speeds = speeds_of(runs, duration(codec.frame_spec, packets), rounds)
        for name in (coder.name for coder in coders(codec, number)):
            print(f"{name:10} {number:9}  {speeds[f'{name} encode']:18.0f}  {speeds[f'{name} decode']:18.0f}")


class Coder(NamedTuple):
    """A payload coder for codes [rows, codebooks, frames] of codebooks with these sizes."""

    name: str
    sizes: tuple[int, ...]
    network: EntropyModel | None = None

    def encode(self, codes: Codes) -> bytes:
        """The payload of a packet."""
        if self.name == "none":
            return entropy.pack(codes, self.sizes)
        return entropy.encode_adaptive(codes, self.sizes, self.network)

    def decode(self, payload: bytes, rows: int, frames: int) -> Codes:
        """The codes of a payload."""
        if self.name == "none":
            return entropy.unpack(payload, self.sizes, rows=rows, frames=frames)
        return entropy.decode_adaptive(payload, self.sizes, rows=rows, frames=frames, model=self.network)


def coders(codec: Codec, num_codebooks: int) -> list[Coder]:
    """The payload coders that a codec has."""
    sizes = codec.codebook_sizes[:num_codebooks]
    network = find(codec.weights_hash or "", sizes)
    found = [Coder("none", sizes), Coder("adaptive", sizes)]
    if network:
        compiled = copy.copy(network)
        entropy_compiled.prepare(compiled)
        found += [Coder("model", sizes, network), Coder("compiled", sizes, compiled)]
    return found


def all_of(function: Callable[..., object], arguments: Sequence[tuple[object, ...]]) -> None:
    """Call a function with each tuple of arguments."""
    for each in arguments:
        function(*each)


def packets_of(recording: str, codec: Codec, num_codebooks: int, path: Path) -> list[Codes]:
    """The codes of a recording."""
    compress(recording, path, model=codec, num_codebooks=num_codebooks, entropy="none", channels=1, force=True)
    with bitstream.open_reader(path) as reader:
        return list(reader.packets())


def duration(spec: FrameSpec, packets: Sequence[Codes]) -> float:
    """Seconds of all packets."""
    return spec.seconds(spec.hop * sum(codes.shape[2] for codes in packets))


# long files


def report_long(recording: str, model: str, seconds: int, rounds: int, folder: Path) -> None:
    """A part of a long file against a file of this part, and changes on codes alone."""
    codec = pretrained.load(model, "cpu")
    long, short, plain = (folder / f"{name}.codec" for name in ("long", "short", "plain"))
    repeated(recording, codec, long, seconds=seconds)
    begin = seconds // 2
    transcode(long, short, start=begin, end=begin + PART)
    length = seconds_of(long)
    restore = partial(decompress, target=folder / "out.wav", model=codec, force=True)
    used = medians(
        {"long": lambda: restore(long, start=begin, end=begin + PART), "short": lambda: restore(short)}, rounds
    )
    ratio = used["long"] / used["short"]
    print(f"decode {PART} s of {length / 3600:.1f} h: {ratio:.2f} x the time of a file of {PART} s")
    out = folder / "out.codec"
    minute = folder / "minute.codec"
    transcode(long, minute, end=CHANGED)
    transcode(minute, plain, entropy="none")
    half, few = max(1, codec.num_codebooks // 2), max(1, codec.num_codebooks // 4)
    short_packets, varying = (folder / f"{name}.codec" for name in ("short_packets", "varying"))
    compress(recording, short_packets, model=codec, channels=1, packet=1.0)
    compress(recording, varying, model=codec, channels=1, vbr=half)
    changes: dict[str, tuple[Path, dict[str, Any]]] = {
        "copy": (minute, {}),
        "a part of": (minute, {"start": 1.5}),
        f"{half} codebooks, --entropy none, of packets of coder 0": (plain, {"num_codebooks": half, "entropy": "none"}),
    }
    for count in sorted({1, half, codec.num_codebooks - 1}):
        changes[f"{count} codebooks"] = minute, {"num_codebooks": count}
    for source, name in ((short, f"of {PART} s"), (short_packets, "of packets of 1 s"), (varying, f"of --vbr {half}")):
        changes[f"{few} codebooks {name}"] = source, {"num_codebooks": few}
    runs: dict[str, Callable[[], object]] = {
        name: partial(transcode, source, out, force=True, **options) for name, (source, options) in changes.items()
    }
    runs["concat"] = partial(concat, [minute], out, force=True)
    for name, time in medians(runs, rounds).items():
        source = changes[name][0] if name in changes else minute
        print(f"transcode, {name}: {seconds_of(source) / time:.0f} x real time")
    transcode(long, minute, end=CUT, force=True)
    for name, speed in speeds_of({"a part of": runs["a part of"]}, seconds_of(minute), rounds).items():
        print(f"transcode, {name} {seconds_of(minute):.0f} s: {speed:.0f} x real time")


def repeated(recording: str, codec: Codec, path: Path, *, seconds: int) -> None:
    """A file of at least `seconds`, the recording again and again."""
    piece, block = path.with_name("piece.codec"), path.with_name("block.codec")
    compress(recording, piece, model=codec, channels=1, force=True)
    count = -(-seconds // max(1, int(seconds_of(piece))))
    side = max(1, round(count**0.5))  # files that are open at once
    concat([piece] * side, block, force=True)
    concat([block] * -(-count // side), path, force=True)


def seconds_of(path: Path) -> float:
    """Duration of a .codec file."""
    with bitstream.open_reader(path) as reader:
        return reader.header.seconds


# another release


def report_against(
    tree: Path, recording: str, model: str, rounds: int, folder: Path, encode_options: Sequence[str]
) -> None:
    """CPU time and memory of `codec encode` and `codec decode` against those of another tree."""
    none = {HERE: ["--entropy", "none"], tree: []}
    print(f"{'':8}{'CPU s':>8}{'of ' + tree.name:>20}{'ratio':>8}{'MB':>8}{'of ' + tree.name:>20}{'ratio':>8}")
    used: dict[tuple[str, Path], list[Used]] = {}
    for _ in range(rounds):
        for root in (HERE, tree):
            coded, restored = folder / f"{root.name}.codec", folder / f"{root.name}.wav"
            common = ["--force", "--device", "cpu", "--model", model]
            encode = ["encode", recording, str(coded), *none[root], *common, *encode_options]
            used.setdefault(("encode", root), []).append(in_process(root, encode))
            decode = ["decode", str(coded), str(restored), *common]
            used.setdefault(("decode", root), []).append(in_process(root, decode))
    for job in ("encode", "decode"):
        columns = ""
        for kind, digits in (("seconds", 2), ("megabytes", 0)):
            ours, others = (statistics.median(getattr(one, kind) for one in used[job, root]) for root in (HERE, tree))
            columns += f"{ours:8.{digits}f}{others:20.{digits}f}{ours / others:8.3f}"
        print(f"{job:8}{columns}")


def in_process(root: Path, arguments: Sequence[str]) -> Used:
    """Run a command of the package in `root`; return what its process used."""
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "codec", *arguments]
    silent = [(os.POSIX_SPAWN_OPEN, output, os.devnull, os.O_WRONLY, 0) for output in (1, 2)]
    process = os.posix_spawn(command[0], command, environment, file_actions=silent, setsigdef=[])
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"codec {' '.join(arguments)} of {root} failed")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Used(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


# time


def speeds_of(runs: Mapping[str, Callable[[], object]], seconds: float, rounds: int) -> dict[str, float]:
    """Seconds of the recording per second of CPU time."""
    return {name: seconds / used for name, used in medians(runs, rounds).items()}


def medians(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median CPU time of each run; they take turns, and the first round does not count."""
    used: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = process_time()
            run()
            if number:
                used[name].append(process_time() - began)
    return {name: statistics.median(times) for name, times in used.items()}


if __name__ == "__main__":
    main()
