#!/usr/bin/env bash
# What: soxr.resample of int16 samples adds dither: digital silence comes back as noise, 23% of its samples are 1 or -1, even if both rates are
#   equal. int32 and floats stay silent.
# Why it surprises: nothing in the call asks for noise, and the type looks like a choice of precision alone. The noise depends on the sizes of the
#   chunks, so a stream (ResampleStream) differs from the same signal resampled at once; two equal channels come out unequal.
# Consequence: tests for silence (== 0), removal of duplicates by hash and "mono stored as stereo" checks fail behind it, and the codes of silence change.
#   Convert to float32 before, and round afterwards.
# Versions: soxr 1.1.0, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soxr==1.1.0 numpy==2.4.6
venv="$work/venv"
"$venv/bin/python" - <<'EOF'
import sys

import numpy as np
import soxr

print("soxr", soxr.__version__, "numpy", np.__version__)
silence = np.zeros(48000, np.int16)
share = {}
for rate, new_rate in ((48000, 16000), (44100, 24000), (16000, 16000)):
    for kind in ("int16", "int32", "float32"):
        share[rate, kind] = (soxr.resample(silence.astype(kind), rate, new_rate) != 0).mean()
        print(f"silence from {rate} to {new_rate} as {kind}: {share[rate, kind]:.1%} of the samples are not 0")
tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)).astype(np.int16)
stereo = soxr.resample(np.stack([tone, tone], 1), 48000, 16000)
unequal = (stereo[:, 0] != stereo[:, 1]).mean()
print(f"two equal channels: {unequal:.1%} of the samples differ afterwards")
same = unequal > 0.2 and all((part > 0.15) == (kind == "int16") for (_, kind), part in share.items())
print("expected: silence stays silence, equal channels stay equal")
print("seen: int16 gets noise, other types do not" if same else "the behavior has changed")
sys.exit(not same)
EOF
