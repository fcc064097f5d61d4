#!/usr/bin/env bash
# What: libsndfile stamps floating-point WAV and AIFF files with the time of writing (chunk PEAK): the same samples, written twice in
#   different seconds, give files that differ in 1 byte or more. 16-bit WAV, and floating point in W64, RF64, CAF and AU, do not.
#   SFC_SET_ADD_PEAK_CHUNK with 0 leaves the chunk out of WAV and AIFF. In RF64, which has none by default, the same call with 0 adds it.
# Why it surprises: nothing in the call mentions time, most containers are deterministic, and the command that turns the chunk off turns it on.
# Consequence: caches keyed by the hash of a file, deduplication and byte comparisons of two runs fail now and then: within one second they hold,
#   so tests are flaky. Compare samples, or turn the chunk off (soundfile has no option for it).
# Versions: soundfile 0.14.0 (libsndfile 1.2.2), numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soundfile==0.14.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import io
import sys
import time

import numpy as np
import soundfile

print("soundfile", soundfile.__version__, "libsndfile", soundfile.__libsndfile_version__)
SET_ADD_PEAK_CHUNK = 0x1050
samples = np.linspace(-0.5, 0.5, 2000, dtype=np.float32).reshape(1000, 2)
cases = [(form, subtype) for form in ("WAV", "WAVEX", "AIFF", "W64", "RF64", "CAF", "AU") for subtype in ("FLOAT", "PCM_16")]


def written(form, subtype, turn_off):
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 2, subtype, format=form) as target:
        if turn_off:
            soundfile._snd.sf_command(target._file, SET_ADD_PEAK_CHUNK, soundfile._ffi.NULL, 0)
        target.write(samples)
    return file.getvalue()


first = {(case, off): written(*case, off) for case in cases for off in (False, True)}
time.sleep(2.1)
stamped = {False: set(), True: set()}
for (case, off), content in first.items():
    again = written(*case, off)
    assert len(again) == len(content)
    differing = sum(one != other for one, other in zip(content, again))
    if differing:
        stamped[off].add(case)
    asked = "asked for no PEAK" if off else "by default"
    print(f"{case[0]:5} {case[1]:6} {asked:17}: {differing} of {len(content)} bytes differ, PEAK {'in' if b'PEAK' in content else 'not in'} the file")
print("expected: the same samples give the same bytes, and asking for no PEAK chunk gives none")
same = stamped == {
    False: {("WAV", "FLOAT"), ("WAVEX", "FLOAT"), ("AIFF", "FLOAT")},
    True: {("RF64", "FLOAT")},
}
print("seen: WAV and AIFF of floats hold the time; asked for none, RF64 holds it instead" if same else "the behavior has changed")
sys.exit(not same)
EOF
