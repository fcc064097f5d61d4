#!/usr/bin/env bash
# What: lhotse cuts a temporal array along axis 0, whatever `temporal_dim` says: codes [codebooks, frames] that were attached with temporal_dim=1 come
#   back from a truncated cut with fewer codebooks and all their frames, without an error.
# Why it surprises: the parameter is documented as the axis of time, is stored in the manifest, and is used when the array is checked.
# Consequence: attach tokens as [frames, codebooks] with temporal_dim=0, or load the whole array and cut it by hand.
# Versions: lhotse 1.33.0. Seen below: 0.1 s of 50 frames a second is 5 frames; the array has 5 rows of 8 and 100 columns of 100.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/try.py" <<'EOF'
import sys

import lhotse
import numpy as np

codes = np.arange(8 * 100).reshape(8, 100)  # [codebooks, frames], 50 frames a second
shapes = {}
for axis, array in ((0, codes.T), (1, codes)):
    sound = lhotse.Recording("a", sources=[], sampling_rate=8000, num_samples=16000, duration=2.0)
    cut = lhotse.MonoCut("a", start=0.0, duration=2.0, channel=0, recording=sound)
    cut = cut.attach_tensor("codes", array, frame_shift=0.02, temporal_dim=axis)
    part = cut.truncate(offset=0.5, duration=0.1).load_codes()
    expected = array[25:30] if axis == 0 else array[:, 25:30]
    shapes[axis] = part.shape
    print(f"lhotse {lhotse.__version__}, temporal_dim={axis}: {expected.shape} expected, {part.shape} seen, "
          f"{'right' if np.array_equal(part, expected) else 'wrong'}")
sys.exit(0 if shapes[0] == (5, 8) and shapes[1] != (8, 5) else "behavior changed")
EOF
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile lhotse==1.33.0 numpy urllib3 # urllib3 is imported and not declared
"$work/venv/bin/python" -W ignore "$work/try.py"
