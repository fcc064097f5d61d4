#!/usr/bin/env bash
# What: after SoundFile.seek in an Ogg Vorbis file, the first samples read (up to about a thousand, 23 ms) are wrong in about one of five
#   random positions: loud sound of another place of the file, laid over the right one, then exact again to the last bit.
# Why it surprises: tell() returns the requested position, the read returns the requested length, no error is raised; four of five positions are exact, and
#   FLAC and Opus files written by the same library are exact at every one (MP3 fails about once in 200), though Opus blocks overlap as well.
#   After some seeks the overlap of the first Vorbis block is taken from a block that is not its neighbor. (Upstream knows of inexact
#   Vorbis seeks, issue 885 of 2022; the share of positions and the size of the error are measured here.)
# Consequence: random training crops taken by seek and read begin with a burst of foreign sound, at the level of the signal itself, that no
#   statistic of the data set shows. Convert Vorbis sets to FLAC or WAV first, or seek 4096 samples early and drop them.
# Versions: soundfile 0.14.0 (wheel with libsndfile 1.2.2), numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soundfile==0.14.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import sys

import numpy as np
import soundfile as sf

print("soundfile", sf.__version__, "libsndfile", sf.__libsndfile_version__)
noise = 0.1 * np.random.default_rng(0).standard_normal(441000)
starts = np.random.default_rng(1).integers(4096, len(noise) - 16384, 200)
wrong, wrong_early = {}, 0
for name, subtype in (("a.flac", "PCM_16"), ("a.mp3", "MPEG_LAYER_III"), ("a.opus", "OPUS"), ("a.ogg", "VORBIS")):
    with sf.SoundFile(name, "w", 48000 if subtype == "OPUS" else 44100, 1, subtype, format="OGG" if subtype in ("OPUS", "VORBIS") else None) as file:
        for at in range(0, len(noise), 4096):
            file.write(noise[at : at + 4096])
    whole = sf.read(name)[0]
    last, size = [], []
    with sf.SoundFile(name) as file:
        for start in starts:
            file.seek(start)
            assert file.tell() == start
            error = np.abs(file.read(8192) - whole[start : start + 8192])
            if error.max() > 1e-3:
                last.append(np.flatnonzero(error > 1e-3)[-1] + 1)
                size.append(np.sqrt(np.mean(error[: last[-1]] ** 2)) / whole.std())
            if subtype == "VORBIS":
                file.seek(start - 4096)
                wrong_early += np.abs(file.read(8192)[4096:] - whole[start : start + 4096]).max() > 1e-3
    wrong[subtype] = len(last)
    extent = f"; the first {int(np.median(last))} samples (median; at most {max(last)}), error {np.median(size):.2f} of the signal's RMS" if last else ""
    print(f"{subtype:15} wrong crops: {len(last):3d} of {len(starts)}{extent}")
print(f"VORBIS, sought 4096 samples early and dropped: {wrong_early} wrong")
print("expected: 0 wrong crops in each of the four formats")
same = wrong["PCM_16"] == wrong["OPUS"] == wrong_early == 0 and wrong["MPEG_LAYER_III"] < 10 and wrong["VORBIS"] >= 10
print("seen: Vorbis is wrong often, MP3 rarely" if same else "the behavior has changed")
sys.exit(not same)
EOF
