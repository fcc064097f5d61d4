"""Size of .codec files beside the bits of their codes, the rules of other containers, and other codecs.

    python tools/format_report.py recording.wav --codebooks 3 --seconds 1 10
    python tools/format_report.py talk/*.flac --codebooks 3 --seconds 1 10 600 --others

Recordings are joined and encoded once; files of each length hold the first frames. Sizes in bytes:

    codes       every code in ceil(log2(size of its codebook)) bits, without a container
    none        .codec, codes packed (coder 0); adaptive and model: coders 1 and 2
    version 1   .codec of release 0.1.0: 93 bytes and the name, 20 bytes per second, 20 bytes for the end packet
    .dac        16 bits per code, without its pickled dictionary (descript-audio-codec 1.0.0, DACFile.save)
    .ecdc       codes packed after a header of 5 bytes and its JSON (encodec 0.1.1, compress.py, without its LM)

and with --others, of the mono recording at the model's sample rate:

    opus, mp3   the least bit rate whose PESQ is that of the codec or better, on the first SCORED seconds
    flac        16 bits, without loss
"""

import argparse
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import soundfile
import torch

from codec import pretrained
from codec.compression import header_of
from codec.evaluation.baselines import MP3_KBPS, Baseline, Floats, find_baselines
from codec.evaluation.signal import pesq_wb
from codec.io import entropy
from codec.io.audio import read_audio
from codec.io.bitstream import Codes, Header, Writer

SCORED = 10  # seconds
OPUS_KBPS = (6, 7, 8, 10, 12, 16, 20, 24, 32)  # to try


def file_size(codes: Codes, header: Header, coder: int) -> int:
    """Bytes of a .codec file with these codes [rows, codebooks, frames]."""
    writer = Writer(io.BytesIO(), header, coder=coder)
    writer.write(codes)
    writer.close(time=header.time)
    return writer.size


def sizes(codes: Codes, header: Header) -> dict[str, int]:
    """Bytes by container."""
    packed = entropy.bytes_for(header.codebook_sizes, codes.shape[0] * codes.shape[2])
    packets = math.ceil(codes.shape[2] / header.frame_spec.frames_per_packet())
    about = json.dumps({"m": header.model, "al": header.time, "nc": codes.shape[1], "lm": False})
    coded = {name: file_size(codes, header, number) for number, name in enumerate(entropy.NAMES)}
    return {
        "codes": packed,
        **coded,
        "version 1": 93 + len(header.model.encode()) + 20 * (packets + 1) + packed,
        ".dac": 2 * codes.size,
        ".ecdc": 9 + len(about) + packed,
    }


def others(audio: Floats, rate: int, aim: float) -> dict[str, Baseline]:
    """The settings of Opus and MP3 with the least bit rate whose PESQ on audio [time] reaches `aim`, or the largest."""
    found = {}
    for name, rates in {"opus": OPUS_KBPS, "mp3": MP3_KBPS}.items():
        for kbps in rates:
            (baseline,) = find_baselines(f"{name}:{kbps}")
            score = pesq_wb(audio, baseline.round_trip(audio, rate=rate).audio, rate=rate)
            if score >= aim:
                break
        found[name] = baseline
        print(f"{name} at {kbps} kbit/s: PESQ {score:.2f}")
    return found


def flac_size(audio: Floats, rate: int) -> int:
    """Bytes of audio [time] as FLAC."""
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format="FLAC", subtype="PCM_16")
    return len(file.getvalue())


def joined(recordings: Sequence[str], rate: int, seconds: float) -> Floats:
    """The first seconds of recordings, one after another: [time], mixed down."""
    parts: list[Floats] = []
    for name in recordings:
        if sum(map(len, parts)) < seconds * rate:
            parts.append(read_audio(name, rate=rate, mono=True)[0][0])
    return np.concatenate(parts)[: round(seconds * rate)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+")
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--codebooks", type=int)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--packet", type=float, help="seconds of a packet; by default as codec encode")
    parser.add_argument("--others", action="store_true", help="Opus and MP3 at equal PESQ, and FLAC")
    options = parser.parse_args()
    model = pretrained.load(options.model, device="cpu")
    rate = model.sample_rate
    audio = joined(options.recordings, rate, max(options.seconds))
    codes = model.encode(torch.from_numpy(audio)[None, None], num_codebooks=options.codebooks).numpy()
    print(f"{options.model}, {codes.shape[1]} codebooks")
    baselines = {}
    if options.others:
        scored = audio[: SCORED * rate]
        decoded = model.decode(torch.from_numpy(codes[:, :, : model.frame_spec.frames(len(scored))]))
        score = pesq_wb(scored, decoded[0, 0, : len(scored)].numpy(), rate=rate)
        print(f"{options.model}: PESQ {score:.2f}")
        baselines = others(scored, rate, score)
    rows = []
    for seconds in options.seconds:
        piece = audio[: round(seconds * rate)]
        part = np.ascontiguousarray(codes[:, :, : model.frame_spec.frames(len(piece))])
        header = header_of(model, rate, 1, codes.shape[1], options.packet, seconds=len(piece) / rate)
        found = sizes(part, replace(header, time=len(piece)))
        found |= {name: baseline.round_trip(piece, rate=rate).file_bytes for name, baseline in baselines.items()}
        rows.append((len(piece) / rate, found | ({"flac": flac_size(piece, rate)} if options.others else {})))
    print(f"{'seconds':>8}" + "".join(f"{name:>11}" for name in rows[0][1]))
    for seconds, found in rows:
        print(f"{seconds:8g}" + "".join(f"{size:11d}" for size in found.values()))


if __name__ == "__main__":
    main()
