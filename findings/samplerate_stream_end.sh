#!/usr/bin/env bash
# What: samplerate.Resampler, the streaming class of the Python binding of libsamplerate, loses the end of every stream that comes in more than one chunk:
#   144 samples of the lower rate with the default sinc_best, 9 ms between 16 kHz and any higher rate, 18 ms from 8 kHz, whatever the size of the chunks.
#   process(..., end_of_input=True) has room for chunk * ratio samples only, and what the filter still holds does not fit; another call with an empty chunk gives none.
#   With "linear", samples that do not fit are lost in the middle too: one of 457 from 16 to 24 kHz in chunks of 441, so that the sound runs ahead by 2.2 ms per second.
# Why it surprises: end_of_input is there to get the rest out, samplerate.resample says in its notes that Resampler gives "better results" for chunks, and the example in
#   the documentation, one chunk, is right: with one chunk nothing has been held back yet.
# Consequence: clips that went through it are short by up to a codec frame, a last plosive is gone, and a reference that was resampled at once has another length.
#   Add 20 ms of silence to the end (more than 144 samples of the lower rate) and cut the result to len * ratio: the same samples as at once, bit by bit.
# Versions: samplerate 0.2.4, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile samplerate==0.2.4 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import samplerate

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("samplerate", "numpy")))


def stream(sound, ratio, size, converter="sinc_best", silence=0):
    """Resample in chunks, the last one with end_of_input."""
    resampler = samplerate.Resampler(converter)
    chunks = [sound[i : i + size] for i in range(0, len(sound), size)]
    if silence:
        chunks.append(np.zeros(silence, np.float32))
    parts = [resampler.process(chunk, ratio, end_of_input=i == len(chunks) - 1) for i, chunk in enumerate(chunks)]
    more = resampler.process(np.zeros(0, np.float32), ratio, end_of_input=True)
    return np.concatenate([*parts, more])


def scene(rate):
    """One second, a tone of 500 Hz at 0.1 and in the last 8 ms one of 1 kHz at 0.8 more; by formula, so at any rate."""
    time = np.arange(rate) / rate
    return (0.1 * np.sin(2 * np.pi * 500 * time) + 0.8 * np.sin(2 * np.pi * 1000 * time) * (time >= 0.992)).astype(np.float32)


same = True
print("one second with a burst in its last 8 ms, sinc_best: samples of the stream by size of chunk, milliseconds lost, peak of the last 8 ms by formula, at once and as a stream")
for rate, other in ((16_000, 24_000), (24_000, 16_000), (48_000, 16_000), (16_000, 48_000), (44_100, 48_000), (48_000, 44_100), (8000, 48_000)):
    sound, ratio = scene(rate), other / rate
    at_once = samplerate.resample(sound, ratio, "sinc_best")
    streams = {size: stream(sound, ratio, size) for size in (100, 480, 1000, 4096)}
    lost = [other - len(x) for x in streams.values()]
    expected = 144 * max(1, ratio)
    last = int(0.992 * other) + 1
    peaks = [np.abs(x[last:]).max(initial=0) for x in (scene(other), at_once, streams[480])]
    padded = stream(sound, ratio, 480, silence=rate // 50)[: len(at_once)]
    print(f"  {rate} to {other} Hz: {', '.join(str(len(x)) for x in streams.values())} of {other}, {1000 * lost[1] / other:.1f} ms; {peaks[0]:.2f}, {peaks[1]:.2f} and {peaks[2]:.2f}; with 20 ms of silence {len(padded)}, equal: {np.array_equal(padded, at_once)}")
    same &= len(at_once) == other and abs(peaks[1] - peaks[0]) < 0.3
    same &= all(abs(n - expected) < 4 for n in lost)
    same &= all(np.array_equal(x, at_once[: len(x)]) for x in streams.values())
    same &= np.array_equal(padded, at_once) and np.array_equal(stream(sound, ratio, rate), at_once)
    same &= (peaks[2] < 0.02) if min(rate, other) <= 16_000 else True

print("the numbers 0 to 15999 from 16 to 24 kHz, linear: outputs, steps of more than two thirds (an input is missing)")
ramp = np.arange(16_000, dtype=np.float32)
for size, short in ((16_000, False), (441, True), (333, True)):
    seen = stream(ramp, 1.5, size, "linear")
    skipped = int((np.diff(seen[3:-3]) > 1).sum())
    print(f"  chunks of {size}: {len(seen)} outputs, {skipped} steps, the output at 0.9 s is {seen[21_600]:.1f} (14400 or, as linear is one sample late, 14399)")
    same &= (skipped >= 30 and len(seen) < 23_960 and seen[21_600] > 14_425) if short else (skipped == 0 and abs(seen[21_600] - 14_399.5) < 1)
print("expected: a stream of chunks gives the samples of one call, whatever their size")
print("seen: the last 144 samples of the lower rate never come out, and linear drops samples between chunks" if same else "the behavior has changed")
sys.exit(not same)
EOF
