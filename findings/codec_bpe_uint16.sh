#!/usr/bin/env bash
# What: codec_bpe.codes_to_chars adds its Unicode offset in the type of the codes. For codebooks of 65536 entries (X-Codec 2, NeuCodec, SimVQ) its README asks
#   for the offset 0xE000, and codes in uint16 from 8192 on wrap around to the characters from 0 on, without an error.
# Why it surprises: uint16 holds exactly these codes, in a quarter of the bytes of int64; the same array in int32 or int64 is right. Where int16, uint8 or
#   uint16 do not suffice for smaller codebooks, numpy raises OverflowError, because there the offset alone exceeds the type.
# Consequence: 7 of 8 codes are lost. chars_to_codes drops them as inconsistent, so a shorter signal comes back; without this check they are 65536 too low.
#   The text has control characters, spaces and halves of surrogate pairs. Convert to int32 before the call.
# Versions: codec-bpe 1.4.1, numpy 2.4.6, torch 2.14.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-compile --no-deps codec-bpe==1.4.1 # the converter uses numpy and torch alone
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import logging
import sys

import numpy as np
import torch
from codec_bpe import UNICODE_OFFSET_LARGE, chars_to_codes, codes_to_chars

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("codec-bpe", "numpy", "torch")))
logging.disable(logging.WARNING)  # one line for each dropped code
codes = np.random.default_rng(0).integers(0, 65536, (1, 4000))
assert UNICODE_OFFSET_LARGE == 0xE000
same = True
for name, given in {
    "int64": codes,
    "int32": codes.astype(np.int32),
    "uint16": codes.astype(np.uint16),
    "torch.uint16": torch.from_numpy(codes.astype(np.uint16)),
}.items():
    assert (np.asarray(given) == codes).all()
    text = codes_to_chars(given, 65536, unicode_offset=UNICODE_OFFSET_LARGE)
    back = chars_to_codes(text, 1, 65536, unicode_offset=UNICODE_OFFSET_LARGE)
    unchecked = np.array(chars_to_codes(text, 1, 65536, False, False, unicode_offset=UNICODE_OFFSET_LARGE))
    wrong = unchecked != codes
    points = [ord(character) for character in text]
    print(f"{name}: 4000 codes, {len(text)} characters from {min(points):#x} to {max(points):#x}, {len(back[0])} codes back, {wrong.sum()} wrong")
    lost = codes >= 8192 if name.endswith("uint16") else np.zeros_like(wrong)
    same &= np.array_equal(wrong, lost) and np.array_equal(back[0], codes[~lost]) and (unchecked[wrong] == codes[wrong] - 65536).all()
print("expected: characters from 0xe000 to 0x1dfff and 4000 codes back, whatever the type, or an error")
print("seen: codes in uint16 wrap around from 8192 on" if same else "the behavior has changed")
sys.exit(not same)
EOF
