#!/usr/bin/env bash
# What: sphn.write_opus (the audio package of Kyutai, which moshi uses) states a pre-skip of 3840 samples (80 ms) in the file, but its encoder delays by
#   only 310. Readers that follow the file, as libsndfile, cut the first 73.5 ms of the sound; sphn.read_opus cuts nothing and is 6.5 ms late.
# Why it surprises: the pair of functions of one package gives back as many samples as went in, so a round trip looks right; a
#   reader that follows the header loses the first syllable's onset, without an error. Opus files of other writers are 312 samples late in read_opus, too.
# Consequence: do not exchange Opus files between sphn and other readers, and measure the lag before comparing by SI-SNR or storing codes. The samples
#   that do not fill the last 20 ms are lost as well.
# Versions: sphn 0.2.1, soundfile 0.14.0 (wheel with libsndfile 1.2.2), numpy 2.4.6, scipy 1.17.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile sphn==0.2.1 soundfile==0.14.0 numpy==2.4.6 scipy==1.17.1
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import soundfile
import sphn
from scipy.signal import butter, sosfilt

RATE = 48000


def noise(samples):
    white = np.random.default_rng(0).standard_normal(samples)
    return sosfilt(butter(6, 3000, fs=RATE, output="sos"), 0.3 * white).astype(np.float32)


def lag(before, after):
    size = 2 * max(len(before), len(after))
    product = np.conj(np.fft.rfft(before, size)) * np.fft.rfft(after, size)
    shift = int(np.fft.irfft(product).argmax())
    return shift if shift < size // 2 else shift - size


def read(path):
    return np.asarray(sphn.read_opus(path)[0])[0], soundfile.read(path)[0]


print("sphn", importlib.metadata.version("sphn"), "soundfile", soundfile.__version__)
sound = noise(3 * RATE + 77)
sphn.write_opus("sphn.opus", sound, RATE)
soundfile.write("soundfile.opus", sound, RATE, format="OGG", subtype="OPUS")
header = open("sphn.opus", "rb").read(64)
preskip = int.from_bytes(header[header.index(b"OpusHead") + 10 :][:2], "little")
print(f"{len(sound)} samples written; pre-skip in the header of sphn.write_opus: {preskip}")
lags = {}
for writer in ("sphn", "soundfile"):
    for reader, back in zip(("sphn", "soundfile"), read(f"{writer}.opus"), strict=True):
        lags[writer, reader] = lag(sound, back)
        print(f"written by {writer}, read by {reader}: {len(back)} samples, lag {lags[writer, reader]}")
same = preskip == 3840 and -3540 < lags["sphn", "soundfile"] < -3520 and lags["soundfile", "soundfile"] == 0
same &= all(305 < lags[writer, "sphn"] < 320 for writer in ("sphn", "soundfile"))
print("expected: lag 0 in all four")
print("seen: one is cut by 73.5 ms at the beginning, two are 6.5 ms late" if same else "the behavior has changed")
sys.exit(not same)
EOF
