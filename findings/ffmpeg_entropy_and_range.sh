#!/usr/bin/env bash
# What: two of FFmpeg's measures depend on what they should not. (1) The spectral entropy of aspectralstats grows with the level: white noise has 0.02 at
#   -60 dBFS and 3.0 at -10, where the entropy of its spectrum is 0.98 of that of a flat one at every level. It is the sum of -m ln(m) over the magnitudes
#   themselves, which are not divided by their sum. (2) drmeter says "No data, dynamic range not measurable" for every clip whose length is a multiple of its
#   window of 3 s, of 30 s or 60 s as well, and -nan for all shorter than 9 s: it looks at the samples of the last window, and that has just been emptied.
# Why it surprises: entropy is defined for probabilities, the centroid, spread, crest and rolloff of the same filter do not depend on the level, and a value
#   below 1 looks normalized. One sample more or less gives the clip of 30 s its dynamic range back.
# Consequence: ranked by entropy, loud tones count as noisier than soft noise; a decoded signal with another gain differs from its original. Divide by the
#   level first or compute it from a spectrum. Excerpts are mostly cut to round lengths, and these have no dynamic range: set the window to a length that
#   does not divide them, as 2.9.
# Versions: av 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile av==18.1.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import gc
import re
import sys
from fractions import Fraction

import av
import av.logging
import numpy as np

RATE, SIZE, HOP = 16000, 2048, 1024
av.logging.set_level(av.logging.INFO)
av.logging.set_skip_repeated(False)
print("av", av.__version__, "FFmpeg", av.ffmpeg_version_info, "libavfilter", av.library_versions["libavfilter"])


def measure(name, options, samples):
    """What a filter logs, and the metadata of its frames."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=RATE, format="fltp", layout="mono", time_base=Fraction(1, RATE))
    node, sink = graph.add(name, options), graph.add("abuffersink")
    source.link_to(node)
    node.link_to(sink)
    graph.configure()
    rows = []
    with av.logging.Capture(local=False) as lines:
        for start in [*range(0, len(samples), HOP), None]:
            if start is None:
                source.push(None)
            else:
                frame = av.AudioFrame.from_ndarray(samples[None, start : start + HOP].astype(np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
                source.push(frame)
            try:
                while True:
                    rows.append(dict(sink.pull().metadata))
            except (av.BlockingIOError, av.EOFError):
                pass
        del graph, source, node, sink
        gc.collect()
    return "".join(line[2] for line in lines), rows


random = np.random.default_rng(0)
noise = random.standard_normal(4 * RATE)
tone = np.sqrt(2) * np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE)
window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(SIZE) / SIZE)
same = True
print("\n(1) aspectralstats, window of 2048: entropy, beside it the sum of -m ln(m) / ln(1024), and that of m divided by its sum; then the centroid in Hz")
entropies = {}
for label, sound in (("white noise", noise), ("tone of 1 kHz", tone)):
    for level in (-60, -40, -20, -10):
        clip = 10 ** (level / 20) * sound
        rows = measure("aspectralstats", f"win_size={SIZE}:overlap=0.5", clip)[1]
        printed, centroid = (
            np.mean([float(row[f"lavfi.aspectralstats.1.{key}"]) for row in rows[5:50]]) for key in ("entropy", "centroid")
        )
        plain, normalized = [], []
        for start in range(5 * HOP, 50 * HOP, HOP):
            magnitudes = np.abs(np.fft.rfft(window * clip[start : start + SIZE]))[: SIZE // 2] / SIZE
            shares = magnitudes / magnitudes.sum()
            plain.append(-(magnitudes * np.log(magnitudes + np.finfo(np.float32).eps)).sum() / np.log(SIZE // 2))
            normalized.append(-(shares * np.log(shares + 1e-30)).sum() / np.log(SIZE // 2))
        print(f"{label:13} at {level:3} dBFS: {printed:.4f}, {np.mean(plain):.4f}, {np.mean(normalized):.4f}; {centroid:.0f}")
        entropies[label, level] = printed
        same &= abs(printed / np.mean(plain) - 1) < 0.01
same &= entropies["white noise", -10] > 2 and entropies["white noise", -60] < 0.03 < entropies["tone of 1 kHz", -10]

print("\n(2) drmeter on white noise at -20 dBFS, a number of about 10 expected")
for seconds in (5, 8, 10, 12, 15, 20, 30, 60):
    for extra in (0, 1):
        clip = 0.1 * random.standard_normal(seconds * RATE + extra)
        said = measure("drmeter", "", clip)[0].strip().splitlines()[-1]
        print(f"{seconds:2} s and {extra} samples: {said}")
        match = re.search(r"Overall DR: (\S+)", said)
        if extra == 0 and seconds % 3 == 0:
            same &= match is None and "No data" in said
        elif seconds < 9:
            same &= "nan" in match[1]
        else:
            same &= 5 < float(match[1]) < 13
print("\nseen:", "so" if same else "the behavior has changed")
sys.exit(not same)
EOF
