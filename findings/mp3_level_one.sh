#!/usr/bin/env bash
# What: soundfile documents compression_level from 0 to 1 and checks that range itself, but writing MP3 with exactly 1 (the smallest file) fails in
#   every bitrate mode; 0.99 works. Opus, Vorbis and FLAC take 1.
# Why it surprises: the ends of a documented range are the values that people try first, and the message is "Garbled error message from libsndfile".
# Consequence: map a requested MP3 rate to levels below 1.
# Versions: soundfile 0.14.0 (wheel with libsndfile 1.2.2), numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soundfile==0.14.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import io
import sys

import numpy as np
import soundfile as sf

print("soundfile", sf.__version__, "libsndfile", sf.__libsndfile_version__)
noise = np.random.default_rng(0).uniform(-0.3, 0.3, 240000).astype(np.float32)


def written(level, **options):
    """Size in bytes of 10 s at 24 kHz, or the error."""
    file = io.BytesIO()
    try:
        sf.write(file, noise, 24000, compression_level=level, **options)
    except sf.LibsndfileError as error:
        return str(error)
    return len(file.getvalue())


results = {}
for mode in ("CONSTANT", "AVERAGE", "VARIABLE"):
    for level in (0.0, 0.5, 0.99, 1.0):
        results[mode, level] = written(level, format="MP3", bitrate_mode=mode)
        print("MP3", mode, level, results[mode, level])
for format_, subtype in (("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")):
    results[subtype, 1.0] = written(1.0, format=format_, subtype=subtype)
    print(format_, subtype, 1.0, results[subtype, 1.0])
refused = sorted(f"{name} {level}" for (name, level), result in results.items() if isinstance(result, str))
expected = ["AVERAGE 1.0", "CONSTANT 1.0", "VARIABLE 1.0"]
sys.exit(0 if refused == expected else f"behavior changed: refused are {refused}")
EOF
