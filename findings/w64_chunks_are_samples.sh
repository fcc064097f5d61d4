#!/usr/bin/env bash
# What: libsndfile reads everything behind the samples of a W64 (Sony Wave64) file as more samples: the padding to whole words of 8 bytes that the
#   format asks for after each chunk, and the chunks that follow, such as `list` with the title. 48 001 samples in 16 bits become 48 004 with the
#   padding and 48 036 with a chunk of 64 bytes. In WAV, RF64, AIFF and CAF, the same chunks behind the samples are passed over.
# Why it surprises: the chunk `data` states its size, and the size of the file in the header is right. Neither an error nor a warning: `frames` and the samples that
#   are read agree with each other, and the recording ends in a click of up to full scale.
# Consequence: W64 files that were edited or tagged end in noise, and the length of a recording depends on the container that it was kept in. Give
#   libsndfile such files through a stream that ends with the samples.
# Versions: soundfile 0.14.0 (wheel with libsndfile 1.2.2), numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soundfile==0.14.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import io
import struct
import sys

import numpy as np
import soundfile as sf

print("soundfile", sf.__version__, "libsndfile", sf.__libsndfile_version__)
samples = np.random.default_rng(0).uniform(-0.5, 0.5, 48001)
GUID = bytes.fromhex("F3ACD3118CD100C04F8EDB8A")  # the end of the names of chunks in W64


def written(container):
    file = io.BytesIO()
    sf.write(file, samples, 48000, format=container, subtype="PCM_16")
    return file.getvalue()


def read(name, data):
    with sf.SoundFile(io.BytesIO(data)) as file:
        frames, found = file.frames, file.read()
    assert frames == len(found) and np.abs(found[:48001] - samples).max() < 1e-4
    print(f"{name:28} {frames} samples, peak of those behind the last one {np.abs(found[48001:]).max(initial=0):.2f}")
    return frames


seen = {}
w64 = written("W64")
padded = w64 + bytes(-len(w64) % 8)
text = (b"INFOINAM" + struct.pack("<I", 28) + b"a title of twenty-eight char").ljust(40, b"\0")
chunked = bytearray(padded + b"list" + GUID + struct.pack("<Q", 24 + len(text)) + text)
chunked[16:24] = struct.pack("<Q", len(chunked))  # the size of the file
at = w64.index(b"data" + GUID) + 16
print("the chunk of samples states", (struct.unpack_from("<Q", w64, at)[0] - 24) // 2, "samples")
seen["W64"] = read("W64", w64)
seen["padded"] = read("W64, padded", padded)
seen["chunk"] = read("W64, padded, with a chunk", bytes(chunked))
others = [read(f"{name}, with a chunk", written(name) + chunk) for name, chunk in (
    ("WAV", b"LIST" + struct.pack("<I", 40) + text),
    ("RF64", b"LIST" + struct.pack("<I", 40) + text),
    ("AIFF", b"ANNO" + struct.pack(">I", 40) + text),
    ("CAF", b"info" + struct.pack(">q", 40) + text),
)]
print("expected: 48001 samples each time")
same = others == [48001] * 4 and seen == {"W64": 48001, "padded": 48004, "chunk": 48036}
print("seen: padding and chunks of W64 are samples" if same else "the behavior has changed")
sys.exit(not same)
EOF
