#!/usr/bin/env bash
# What: FFmpeg's writer of W64 (Sony Wave64) counts the padding behind the samples as samples: 24 001 samples of 16 bits in one channel become
#   24 004, 24 002 become 24 004, and 24 001 of 8 bits become 24 008. FFmpeg itself and libsndfile read them so.
#   In WAV, RF64, CAF, AIFF and AU, the same samples stay 24 001.
# Why it surprises: the format asks for padding to whole words of 8 bytes after each chunk, and the size of a chunk leaves it out, as RIFF does;
#   libsndfile's writer states 24 001. PCM in W64 is taken for lossless, and a round trip through it lengthens seven of eight recordings of 8 bits.
# Consequence: recordings that were converted to W64 and back no longer align with labels, stems or checksums of their samples. Nothing in the file distinguishes padding
#   from digital silence. Keep long recordings as RF64 or CAF, or write W64 with libsndfile.
# Versions: av 18.1.0 (FFmpeg 8), soundfile 0.14.0, numpy 2.4.6. Debian's ffmpeg 5.1.9 behaves alike.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile av==18.1.0 soundfile==0.14.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import io
import sys

import av
import numpy as np
import soundfile as sf

print("av", av.__version__, "FFmpeg", av.library_versions["libavformat"], "libsndfile", sf.__libsndfile_version__)
noise = np.random.default_rng(0).integers(1, 250, 24_001)


def written(container, codec, samples):
    """The samples by FFmpeg's writer."""
    sample_format, dtype = {"pcm_u8": ("u8", np.uint8)}.get(codec, ("s16", np.int16))
    options = {"rf64": "always"} if container == "rf64" else {}
    file = io.BytesIO()
    with av.open(file, "w", format="wav" if container == "rf64" else container, options=options) as output:
        stream = output.add_stream(codec, rate=8000, layout="mono", format=sample_format)
        frame = av.AudioFrame.from_ndarray(samples.astype(dtype)[None], format=sample_format, layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            output.mux(packet)
    return file.getvalue()


def lengths(data):
    with av.open(io.BytesIO(data)) as source:
        by_ffmpeg = sum(frame.samples for frame in source.decode(audio=0))
    return by_ffmpeg, sf.info(io.BytesIO(data)).frames


seen = {}
for container, codec, count in (
    ("w64", "pcm_s16le", 24_000),
    ("w64", "pcm_s16le", 24_001),
    ("w64", "pcm_s16le", 24_002),
    ("w64", "pcm_u8", 24_001),
    ("wav", "pcm_s16le", 24_001),
    ("rf64", "pcm_s16le", 24_001),
    ("caf", "pcm_s16be", 24_001),
    ("aiff", "pcm_s16be", 24_001),
    ("au", "pcm_s16be", 24_001),
):
    found = lengths(written(container, codec, np.resize(noise, count)))
    seen[container, codec, count] = found
    print(f"{container:5} {codec:9} {count} samples written, {found[0]} read by FFmpeg, {found[1]} by libsndfile")
file = io.BytesIO()
sf.write(file, np.resize(noise, 24_001).astype(np.int16), 8000, format="W64", subtype="PCM_16")
own = lengths(file.getvalue())
print(f"w64   by libsndfile's writer: {own[0]} read by FFmpeg, {own[1]} by libsndfile")
print("expected: as many samples as were written, each time")
longer = {key: value for key, value in seen.items() if value != (key[2],) * 2}
same = own == (24_001, 24_001) and longer == {
    ("w64", "pcm_s16le", 24_001): (24_004, 24_004),
    ("w64", "pcm_s16le", 24_002): (24_004, 24_004),
    ("w64", "pcm_u8", 24_001): (24_008, 24_008),
}
print("seen: FFmpeg's W64 files have their padding as samples" if same else "the behavior has changed")
sys.exit(not same)
EOF
