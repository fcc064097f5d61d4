#!/usr/bin/env bash
# What: the same MP3 file has two lengths and two alignments by reader. Written by libsndfile: soundfile, PyAV and miniaudio give back the
#   input's length at lag 0, pedalboard 1533 samples more at lag 1105 (25 ms). Written by lameenc: all four are late by 1105.
# Why it surprises: both writers are the LAME encoder, and its delay is meant to travel in the file's first frame, so a modern reader cuts it. lameenc
#   writes no such frame; pedalboard skips the frame but not the delay. Neither the frame count nor any message shows the delay.
# Consequence: pairs (clean WAV, MP3 copy) for a restoration or a codec comparison are aligned or not by the package that made or read the copy, and a
#   reader changed in the loader shifts a whole set by 25 ms against its labels or stored codes. Measure the lag once per set.
# Versions: soundfile 0.14.0 (libsndfile 1.2.2), av 18.1.0, miniaudio 1.71, pedalboard 0.9.26, lameenc 1.9.0, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soundfile==0.14.0 av==18.1.0 miniaudio==1.71 pedalboard==0.9.26 lameenc==1.9.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import pathlib
import sys

import av
import lameenc
import miniaudio
import numpy as np
import pedalboard.io
import soundfile

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("soundfile", "av", "miniaudio", "pedalboard", "lameenc")), sep=", ")
rate, length = 44100, 88323
sound = 0.1 * np.convolve(np.random.default_rng(0).standard_normal(length), np.hanning(9) / 4.5, "same")
soundfile.write("libsndfile.mp3", sound, rate, format="MP3")
encoder = lameenc.Encoder()
encoder.set_bit_rate(192)
encoder.set_in_sample_rate(rate)
encoder.set_channels(1)
encoder.silence()
pathlib.Path("lameenc.mp3").write_bytes(bytes(encoder.encode((sound * 32767).astype("<i2").tobytes()) + encoder.flush()))


def by_av(path):
    with av.open(path) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def by_pedalboard(path):
    with pedalboard.io.AudioFile(path) as file:
        return file.read(file.frames)[0]


readers = {
    "soundfile": lambda path: soundfile.read(path)[0],
    "av": by_av,
    "miniaudio": lambda path: np.array(miniaudio.decode_file(path, nchannels=1, sample_rate=rate, output_format=miniaudio.SampleFormat.FLOAT32).samples),
    "pedalboard": by_pedalboard,
}
seen = {}
for path in ("libsndfile.mp3", "lameenc.mp3"):
    for name, read in readers.items():
        samples = read(path)
        lag = int(np.fft.irfft(np.conj(np.fft.rfft(sound, 1 << 18)) * np.fft.rfft(samples, 1 << 18))[:20000].argmax())
        seen[path, name] = len(samples) - length, lag
        print(f"{path:15} by {name:10}: {seen[path, name][0]:+5d} samples, lag {lag}")
print("expected: lag 0 and equal length from all, or one lag for both files")
same = all(seen["libsndfile.mp3", name] == (0, 0) for name in ("soundfile", "av", "miniaudio"))
same &= seen["libsndfile.mp3", "pedalboard"][1] == 1105 and all(seen["lameenc.mp3", name][1] == 1105 for name in readers)
print("seen: the writer and the reader decide" if same else "the behavior has changed")
sys.exit(not same)
EOF
