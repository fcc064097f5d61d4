"""Mutate .codec files and read them: nothing but CodecErrors, little memory, little time.

    python tools/fuzz.py --inputs 1000000 --seed 0
    pip install atheris; python tools/fuzz.py --inputs 1000000 --guided

A file is read to its end, from the middle, and as a pipe; half of the codebooks of its packets are left out. Mutations
flip bits, cut, insert, repeat and swap parts, put in extreme numbers, and half of the time repair checksums, as an
attacker would. Inputs that fail are written to --out. Allocations beyond the limit fail in the kernel (RLIMIT_AS),
because a tracer of allocations takes four times as long. With --guided, atheris (libFuzzer) chooses what to mutate by
the branches that are reached, and stops at the first failure. Coder 2 decodes the second half in its compiled loops.
"""

import argparse
import inspect
import io
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from codec import backend, compress
from codec.errors import CodecError
from codec.io import entropy_compiled, entropy_model
from codec.io.bitstream import Codes, Header, Reader, Writer
from codec.io.entropy import ADAPTIVE, NONE
from codec.io.synth import RATE, synthesize
from codec.io.tags import NO_TAGS, Cover, Tags

MARKER = b"\xf5\xc3"
MOST_MEMORY = 64 << 20  # bytes
MOST_SECONDS = 1.0
READERS = "bitstream", "packets", "entropy", "entropy_model", "range_coder", "fields", "tags"  # modules of codec.io
RENEWED_EVERY = 1000  # inputs, because the memory that the interpreter keeps grows slowly
EXTREMES = (
    b"\xff" * 9 + b"\x01",
    b"\x80" * 9 + b"\x01",
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f",
    b"\xff\xff\xff\x7f",
    b"\x80\x01",
)

TAGS = Tags((("title", "größe"), ("artist", "a"), ("artist", "b")), Cover("image/png", bytes(300)))
SPEECH = slice(RATE // 2, RATE * 7 // 10)

Random = np.random.Generator
Mutation = Callable[[bytearray, Random], None]


def corpus() -> list[bytes]:
    """Small files of different kinds: both versions, coders 0 and 1, scales, tags, ends of codebooks, frames with
    different numbers of codebooks.
    """
    files = [path.read_bytes() for path in sorted(Path(__file__).parents[1].glob("tests/golden/*.codec"))]
    random = np.random.default_rng(0)
    for channels, sizes, segment, packets in ((1, (1024,) * 3, 0, 1), (2, (20, 3, 1 << 16), 0, 12), (3, (8,), 2, 5)):
        codes = random.integers(
            0, np.array(sizes)[:, None], (1 if channels == 2 else channels, len(sizes), 4 * packets - 1)
        )
        files.append(file_of(codes, sizes, channels=channels, segment=segment))
        files.append(file_of(codes % 2, sizes, channels=channels, segment=segment, tags=TAGS))
        counts = random.integers(1, len(sizes) + 1, (len(codes), 1, codes.shape[2]))
        varying = np.where(np.arange(len(sizes))[:, None] < counts, codes, -1)
        files += [
            file_of(varying, sizes, channels=channels, segment=segment, coder=coder) for coder in (NONE, ADAPTIVE)
        ]
    files += [
        file_of(np.ones((rows, 13, 6), np.int64), (8,) * 13, channels=rows, segment=0, hop=24_000) for rows in (1, 3)
    ]
    return files


def modeled() -> list[bytes]:
    """Files by coder 2."""
    speech = synthesize()[:, SPEECH]
    options: list[dict[str, Any]] = [{"num_codebooks": 1}, {"num_codebooks": 3}, {"num_codebooks": 3, "vbr": 2.5}]
    files = [compress(speech, sample_rate=RATE, device="cpu", **each) for each in options]
    ended: list[dict[str, Any]] = [{"num_codebooks": 7}, {"num_codebooks": 5, "vbr": 3}]
    return [*files, *(with_ends(compress(speech, sample_rate=RATE, device="cpu", **each)) for each in ended)]


def with_ends(data: bytes) -> bytes:
    """The same file with packets of ten seconds, which have the ends of their codebooks."""
    reader, file = Reader(io.BytesIO(data), label="fuzz"), io.BytesIO()
    writer = Writer(file, replace(reader.header, frames_per_packet=10 * reader.header.frames_per_packet))
    for codes in reader.packets():
        writer.write(codes)
    writer.close(time=reader.header.time)
    return file.getvalue()


def file_of(
    codes: Codes,
    sizes: tuple[int, ...],
    *,
    channels: int,
    segment: int,
    tags: Tags = NO_TAGS,
    coder: int = ADAPTIVE,
    hop: int = 480,
) -> bytes:
    """A file of 44.1 kHz with codes [rows, codebooks, frames]; with two channels, both are decoded from one."""
    header = Header(
        model="tiny", family="causal", weights_hash="0" * 64, source_rate=44_100, channels=channels, sample_rate=24_000,
        hop=hop, decoder_delay=480, codebook_sizes=sizes, frames_per_packet=4, segment_frames=segment,
        sample_format="FLOAT", mix=((1.0,),) * 2 if channels == 2 else (), tags=tags,
    )  # fmt: skip
    file = io.BytesIO()
    writer = Writer(file, header, coder=coder)
    writer.write(codes, np.ones(codes.shape[::2], np.float32) if segment else None)
    writer.close(time=1000)
    return file.getvalue()


def flip(data: bytearray, random: Random) -> None:
    """Flip a bit."""
    data[random.integers(len(data))] ^= 1 << random.integers(8)


def cut(data: bytearray, random: Random) -> None:
    """Cut out a part."""
    first = random.integers(len(data))
    del data[first : first + random.integers(1, 64)]


def insert(data: bytearray, random: Random) -> None:
    """Insert random bytes, a marker or a part of the file."""
    first = random.integers(len(data))
    copy = bytes(data[first : first + random.integers(1, 400)])
    more = (random.bytes(int(random.integers(1, 64))), MARKER * random.integers(1, 50), copy)[random.integers(3)]
    at = random.integers(len(data))
    data[at:at] = more


def extreme(data: bytearray, random: Random) -> None:
    """Overwrite a place with a number at a limit."""
    number = EXTREMES[random.integers(len(EXTREMES))]
    at = random.integers(len(data))
    data[at : at + len(number)] = number


def repair(data: bytearray) -> None:
    """Give the header and every packet of a plausible length its checksum."""
    length = int.from_bytes(data[10:12], "little")
    if len(data) >= 16 + length:
        data[12 + length : 16 + length] = zlib.crc32(data[: 12 + length]).to_bytes(4, "little")
    at = data.find(MARKER)
    while 0 <= at < len(data) - 8:
        size, shift, place = 0, 0, at + 3
        while place < len(data) and shift < 35:
            size |= (data[place] & 127) << shift
            shift, place = shift + 7, place + 1
            if data[place - 1] < 128:
                break
        end = place + size
        if end + 4 <= len(data):
            data[end : end + 4] = zlib.crc32(data[at:end]).to_bytes(4, "little")
        at = data.find(MARKER, at + 2)


def mutated(files: list[bytes], random: Random) -> bytes:
    """One of the files with a few mutations."""
    data = bytearray(files[random.integers(len(files))])
    mutations: tuple[Mutation, ...] = (flip, cut, insert, extreme)
    for _ in range(random.integers(1, 5)):
        if len(data) > 1:
            mutations[random.integers(len(mutations))](data, random)
    if random.integers(2):
        repair(data)
    return bytes(data)


class Pipe(io.BytesIO):
    """Bytes that are read once."""

    def seekable(self) -> bool:
        """As a pipe."""
        return False


def read(data: bytes) -> None:
    """Read everything, then from the middle, then as a pipe. Raises whatever the reader raises but CodecErrors."""
    for way in (read_parts, thin):
        with suppress(CodecError):
            way(data)


def read_parts(data: bytes) -> None:
    """Read everything, then from the middle."""
    reader = Reader(io.BytesIO(data), label="fuzz")
    for _ in reader.parts():
        pass
    for _ in reader.parts(reader.header.frames // 2):
        pass


def thin(data: bytes) -> None:
    """Read a pipe without decoding codes, and leave out half of them."""
    reader = Reader(Pipe(data), label="fuzz")
    for packet in reader.coded():
        reader.thinned(packet, max(1, packet.num_codebooks // 2))
        reader.codebook_counts(packet)


def problem(data: bytes, clock: Callable[[], float] = time.perf_counter) -> str:
    """What is wrong with reading this input; empty if nothing is.

    An input that takes long by the wall clock is read again by CPU time, which takes longer to ask for than a file to
    read, because others may have used the machine.
    """
    start = clock()
    try:
        read(data)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    seconds = clock() - start
    if seconds <= MOST_SECONDS:
        return ""
    return f"{seconds:.2f} s" if clock is time.process_time else problem(data, time.process_time)


def functions_of(module: ModuleType) -> list[FunctionType]:
    """The functions and methods that a module defines."""
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    members = [member for one in own if inspect.isclass(one) for member in vars(one).values()]
    functions = [getattr(member, "fget", None) or getattr(member, "__func__", member) for member in (*own, *members)]
    return [function for function in functions if isinstance(function, FunctionType)]


def run_guided(files: list[bytes], options: argparse.Namespace) -> None:
    """Let libFuzzer mutate files and what reached new branches, with the mutations of this tool. Does not return."""
    import atheris

    ran = 0

    def run(data: bytes) -> None:
        nonlocal ran
        if ran % RENEWED_EVERY == 0:
            limit_memory()
        ran += 1
        if wrong := problem(data):
            raise RuntimeError(wrong)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        return mutated([data or files[0]], np.random.default_rng(seed))[:most]

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            Path(folder, f"{number}.codec").write_bytes(data)
        limits = [f"-runs={options.inputs}", f"-seed={options.seed + 1}", "-max_len=4096", "-rss_limit_mb=0"]
        for name in READERS:
            for function in functions_of(import_module(f"codec.io.{name}")):
                atheris.instrument_func(function)
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={options.out}/", folder], run, custom_mutator=mutate)
        atheris.Fuzz()


def compile_loops(data: bytes) -> None:
    """Let coder 2 use its compiled loops, which take more memory than an input, for files of the model of this one."""
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    header = Reader(io.BytesIO(data), label="fuzz").header
    network = entropy_model.find(header.weights_hash, header.codebook_sizes)
    assert network
    entropy_compiled.prepare(network)
    limit_memory()


def limit_memory() -> None:
    """Let allocations fail beyond MOST_MEMORY more than this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_MEMORY, resource.RLIM_INFINITY))


def main() -> None:
    """Run the loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    options = parser.parse_args()
    os.environ[backend.VARIABLE] = "torch"  # to compile loops within the limit of memory would fail
    random, files = np.random.default_rng(options.seed), [*corpus(), *modeled()]
    if options.guided:
        run_guided(files, options)
    failures = 0
    for number in range(options.inputs):
        if number == options.inputs // 2:
            compile_loops(files[-1])
        if number % RENEWED_EVERY == 0:
            limit_memory()
        data = mutated(files, random)
        if wrong := problem(data):
            failures += 1
            options.out.mkdir(parents=True, exist_ok=True)
            path = options.out / f"{options.seed}-{number}.codec"
            path.write_bytes(data)
            print(f"{path}: {wrong}", flush=True)
        if (number + 1) % 10_000 == 0:
            print(f"{number + 1} inputs so far", flush=True)
    print(f"{options.inputs} inputs, {failures} failures")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
