"""Size of .codec files beside the bits of their codes and the rules of other containers.

    python tools/format_report.py recording.wav --codebooks 3 --seconds 1 10

The recording is encoded once; files of each length hold its first frames. Sizes in bytes:

    codes       every code in ceil(log2(size of its codebook)) bits, without a container
    none        .codec, codes packed (coder 0); adaptive and model: coders 1 and 2
    version 1   .codec of release 0.1.0: 93 bytes and the name, 20 bytes per second, 20 bytes for the end packet
    .dac        16 bits per code, without its pickled dictionary (descript-audio-codec 1.0.0, DACFile.save)
    .ecdc       codes packed after a header of 5 bytes and its JSON (encodec 0.1.1, compress.py, without its LM)
"""

import argparse
import io
import json
import math
from dataclasses import replace

import numpy as np
import torch

from codec import pretrained
from codec.compression import header_of
from codec.io import entropy
from codec.io.audio import read_audio
from codec.io.bitstream import Codes, Header, Writer


def file_size(codes: Codes, header: Header, coder: int) -> int:
    """Bytes of a .codec file with these codes [rows, codebooks, frames]."""
    writer = Writer(io.BytesIO(), header, coder=coder)
    writer.write(codes)
    writer.close(time=header.time)
    return writer.size


def sizes(codes: Codes, header: Header) -> dict[str, int]:
    """Bytes by container."""
    packed = entropy.bytes_for(header.codebook_sizes, codes.shape[0] * codes.shape[2])
    packets = math.ceil(codes.shape[2] / header.frames_per_packet)
    about = json.dumps({"m": header.model, "al": header.time, "nc": codes.shape[1], "lm": False})
    coded = {name: file_size(codes, header, number) for number, name in enumerate(entropy.NAMES)}
    return {
        "codes": packed,
        **coded,
        "version 1": 93 + len(header.model.encode()) + 20 * (packets + 1) + packed,
        ".dac": 2 * codes.size,
        ".ecdc": 9 + len(about) + packed,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording")
    parser.add_argument("--model", default=pretrained.DEFAULT)
    parser.add_argument("--codebooks", type=int)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0])
    options = parser.parse_args()
    model = pretrained.load(options.model, device="cpu")
    audio, _ = read_audio(options.recording, rate=model.sample_rate, mono=True)
    audio = audio[:, : round(max(options.seconds) * model.sample_rate)]
    codes = model.encode(torch.from_numpy(audio)[None], num_codebooks=options.codebooks).numpy()
    header = header_of(model, model.sample_rate, 1, codes.shape[1], 1.0)
    rows = []
    for seconds in options.seconds:
        time = min(round(seconds * model.sample_rate), audio.shape[1])
        part = np.ascontiguousarray(codes[:, :, : model.frame_spec.frames(time)])
        rows.append((time / model.sample_rate, sizes(part, replace(header, time=time))))
    print(f"{options.recording}, {options.model}, {codes.shape[1]} codebooks")
    print(f"{'seconds':>8}" + "".join(f"{name:>11}" for name in rows[0][1]))
    for seconds, found in rows:
        print(f"{seconds:8g}" + "".join(f"{size:11d}" for size in found.values()))


if __name__ == "__main__":
    main()
