#!/usr/bin/env bash
# What: FFmpeg's filter apsnr, "Measure Audio Peak Signal-to-Noise Ratio", prints 168 dB where the ratio is 40, and the more the larger the error is: an
#   error with ten times the amplitude adds 4.6 dB instead of taking off 20. It prints 2 ln(FLT_MAX) + ln(mean squared error): the natural logarithm instead
#   of ten times the decimal one, the largest number of the type as the peak, and the other sign. Samples as doubles give 1410 dB.
# Why it surprises: its two siblings in the same source, asdr and asisdr, are right to 0.01 dB for the same pair, and the unit is stated: "Results are in
#   dB per channel at end of either input". One number alone looks like a good codec, and it moves with the error, so a smoke test passes.
# Consequence: a search for the best bit rate or the best checkpoint by apsnr finds the worst. Use asdr or asisdr (FFmpeg 5.1 of Debian 12 has no apsnr
#   and prints twice the decibels of asdr), or turn the number around: 10 (2 ln(FLT_MAX) - x) / ln(10).
# Versions: av 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6; the same in av 12.3.0 (FFmpeg 6.1), 13.1.0 and 16.1.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile av==18.1.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import gc
import math
import re
import sys
from fractions import Fraction

import av
import av.logging
import numpy as np

RATE = 48000
av.logging.set_level(av.logging.INFO)
av.logging.set_skip_repeated(False)
print("av", av.__version__, "FFmpeg", av.ffmpeg_version_info, "libavfilter", av.library_versions["libavfilter"])


def measure(name, reference, other, sample_format):
    """The number that a filter of two inputs prints when it ends."""
    graph = av.filter.Graph()
    sources = [graph.add_abuffer(sample_rate=RATE, format=sample_format, layout="mono", time_base=Fraction(1, RATE)) for _ in range(2)]
    node, sink = graph.add(name), graph.add("abuffersink")
    for index, source in enumerate(sources):
        source.link_to(node, 0, index)
    node.link_to(sink)
    graph.configure()
    with av.logging.Capture(local=False) as lines:
        for start in range(0, len(reference), 1000):
            for source, samples in zip(sources, (reference, other)):
                frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1000].copy(), format=sample_format, layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
                source.push(frame)
            sink.pull()
        del graph, sources, source, node, sink
        gc.collect()
    (number,) = [re.search(r"ch0: (\S+) dB", line[2])[1] for line in lines if "ch0" in line[2]]
    return float(number)


random = np.random.default_rng(0)
sound, noise = 0.1 * random.standard_normal((2, RATE))
same = True
for sample_format, dtype in (("fltp", np.float32), ("dblp", np.float64)):
    for amplitude in (0.001, 0.01, 0.1, 1.0):
        reference, other = sound.astype(dtype), (sound + amplitude * noise).astype(dtype)
        error = (reference.astype(float) - other) ** 2
        psnr = -10 * math.log10(error.mean())  # the peak of floating-point sound is 1
        sdr = 10 * math.log10((reference.astype(float) ** 2).sum() / error.sum())
        target = (reference @ other.astype(float)) / (reference.astype(float) ** 2).sum() * reference
        si_sdr = 10 * math.log10((target**2).sum() / ((other - target) ** 2).sum())
        printed = [measure(name, reference, other, sample_format) for name in ("apsnr", "asdr", "asisdr")]
        guess = 2 * math.log(float(np.finfo(dtype).max)) + math.log(error.mean())
        print(
            f"{sample_format}, error {amplitude:5g} of the sound: apsnr {printed[0]:8.2f} dB, expected {psnr:5.2f};"
            f" asdr {printed[1]:5.2f}, expected {sdr:5.2f}; asisdr {printed[2]:5.2f}, expected {si_sdr:5.2f}; 2 ln(max) + ln(error) = {guess:.2f}"
        )
        same &= abs(printed[0] - guess) < 0.01 and abs(printed[1] - sdr) < 0.01 and abs(printed[2] - si_sdr) < 0.01 and printed[0] - psnr > 50
print("expected: apsnr of 80, 60, 40 and 20 dB, as asdr of 60, 40, 20 and 0")
print("seen: 159 to 173 dB, 1401 to 1415 for doubles, and more for larger errors" if same else "the behavior has changed")
sys.exit(not same)
EOF
