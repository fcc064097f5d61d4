#!/usr/bin/env bash
# What: soundfile reads and writes the channels of Ogg files (Opus, Vorbis) in the order of the Vorbis specification (left, center, right, ..., LFE
#   last), those of WAV and FLAC in the order of WAV (left, right, center, LFE, ...). Nothing says which order an array has.
# Why it surprises: one function reads both, and the usual conversion (read one, write the other) looks right for mono and stereo. For 5.1 the center,
#   where speech is, comes out of the right front speaker, and the LFE channel out of a surround speaker.
# Consequence: reorder by container: WAV channel i is channel [0 2 1 5 3 4][i] of a 5.1 Ogg file. A model that takes "channel 2" for speech gets
#   another channel for each container.
# Versions: soundfile 0.14.0 (wheel with libsndfile 1.2.2), numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soundfile==0.14.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import struct
import sys

import numpy as np
import soundfile as sf

print("soundfile", sf.__version__, "libsndfile", sf.__libsndfile_version__)
time = np.arange(48000) / 48000
array = np.stack([0.2 * np.sin(2 * np.pi * 20 * (7 - n) * time) for n in range(6)], 1)  # column n has its own tone, the last the lowest


def columns(samples):
    """Which column of `array` each channel is."""
    return [7 - round(int(np.abs(np.fft.rfft(samples[:, n])).argmax()) * 48000 / len(samples) / 20) for n in range(samples.shape[1])]


def raw_order(name):
    """Positions of the format's own channels: by the channel mask of a WAV, by mapping family 1 of an Opus header."""
    data = open(name, "rb").read()
    if name.endswith(".wav"):
        at = data.index(b"fmt ") + 8
        mask = struct.unpack("<I", data[at + 20 : at + 24])[0]
        return [label for bit, label in enumerate("FL FR FC LFE BL BR".split()) if mask >> bit & 1] if mask else "no mask"
    at = data.index(b"OpusHead")
    family = data[at + 18]
    return {1: "FL FC FR BL BR LFE".split()}[family]  # RFC 7845, section 5.1.1.2


found = {}
for name, options in (("a.wav", {"format": "WAVEX", "subtype": "PCM_16"}), ("a.flac", {}), ("a.opus", {"format": "OGG", "subtype": "OPUS"}), ("a.ogg", {"subtype": "VORBIS"})):
    sf.write(name, array, 48000, **options)
    found[name] = columns(sf.read(name)[0])
    print(f"{name:7} column written -> column read {found[name]}")
wav, opus = raw_order("a.wav"), raw_order("a.opus")
print("column 1 is", wav[1] if wav != "no mask" else "FR (WAV's order)", "in the WAV file and", opus[1], "in the Opus file")
print("expected: one order of columns for all containers, or a way to ask for it")
same = all(order == [0, 1, 2, 3, 4, 5] for order in found.values()) and opus[1] == "FC"
print("seen: each column goes to the same number of channel, whatever that channel is" if same else "the behavior has changed")
sys.exit(not same)
EOF
