#!/usr/bin/env bash
# What: the effect tempo of SoX leaves out sounds of 15 ms, such as a stop consonant, a tick or a drum hit: of 100, 9 at a factor of 1.1, 28 at 1.25 and 40 at 1.5; in noise at -50 dBFS 3, 18 and 38. With the
#   options for speech (-s) 31 and 39 at 1.25 and 1.5, in noise 3 and 16. sonic and FFmpeg's atempo, which overlap segments of the waveform as well, leave out none in silence and one at most in noise, SoundTouch none up to 1.25.
# Why it surprises: at 1.1, a tenth of the sound is to go, and there is silence between the bursts to take it from, which the others find; nothing in the manual says that sounds may disappear.
# Consequence: an augmentation of speech by tempo (lhotse, torchaudio's sox_effects, Kaldi-style recipes) makes words whose /t/ and /k/ are in the transcript but not in the sound, and rhythms with
#   missing beats. Change the speed instead, or use sonic for speech.
# Versions: Debian packages sox (seen with 14.4.2+git20190427-3.5), sonic (0.2.0-12), soundstretch (2.3.2), ffmpeg (5.1.9); numpy 2.4.6.
set -euo pipefail
for tool in sox sonic soundstretch ffmpeg; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install sox sonic soundstretch ffmpeg" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile numpy==2.4.6
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' sox sonic soundstretch ffmpeg 2>/dev/null || true
venv/bin/python - <<'EOF'
import subprocess
import sys
import wave

import numpy as np

RATE = 16000
BURSTS = 100
rng = np.random.default_rng(1)
starts = 0.4 + 0.55 * np.arange(BURSTS) + rng.uniform(0, 0.2, BURSTS)  # s
bursts = np.zeros(60 * RATE)
for start in starts:
    first, length = int(start * RATE), int(0.015 * RATE)
    bursts[first : first + length] += 0.5 * np.sin(2 * np.pi * 1000 * np.arange(length) / RATE) * np.hanning(length)


def write(sound):
    with wave.open("in.wav", "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.round(32767 * sound).astype("<i2").tobytes())


def read():
    with wave.open("out.wav") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        return np.frombuffer(file.readframes(10**9), "<i2") / 32768


def found(sound, tempo):
    """How often each burst occurs within 0.12 s of its place."""
    level = np.sqrt(np.convolve(sound * sound, np.ones(80) / 80, "same"))
    begins = np.flatnonzero((level[1:] > 0.06) & (level[:-1] <= 0.06)) / RATE
    return np.array([np.sum(np.abs(begins - start / tempo) < 0.12) for start in starts])


def commands(tempo):
    yield "sox tempo", ["sox", "in.wav", "out.wav", "tempo", str(tempo)]
    yield "sox tempo -s", ["sox", "in.wav", "out.wav", "tempo", "-s", str(tempo)]
    yield "sonic", ["sonic", "-s", str(tempo), "in.wav", "out.wav"]
    yield "soundstretch", ["soundstretch", "in.wav", "out.wav", f"-tempo={100 * (tempo - 1):g}"]
    yield "ffmpeg atempo", ["ffmpeg", "-y", "-v", "error", "-i", "in.wav", "-af", f"atempo={tempo}", "out.wav"]


TEMPOS = (1.1, 1.25, 1.5)
NAMES = ("silence", "noise at -50 dBFS")
lost = {}
for name, background in zip(NAMES, (0.0, 10 ** (-50 / 20))):
    write(bursts + background * rng.standard_normal(len(bursts)))
    print(f"of 100 bursts of 15 ms in {name} are left out:")
    for tempo in TEMPOS:
        for tool, command in commands(tempo):
            subprocess.run(command, check=True, capture_output=True)
            sound = read()
            assert abs(len(sound) - len(bursts) / tempo) < 0.3 * RATE
            lost[tool, tempo, name] = int((found(sound, tempo) == 0).sum())
        print(f"  {tempo}: " + ", ".join(f"{lost[tool, tempo, name]} by {tool}" for tool, _ in commands(tempo)))
same = bool((found(bursts, 1) == 1).all())
for name in NAMES:
    same &= lost["sox tempo", 1.25, name] >= 12 and lost["sox tempo", 1.5, name] >= 25
    same &= all(lost[tool, tempo, name] <= 2 for tool in ("sonic", "ffmpeg atempo") for tempo in TEMPOS)
    same &= all(lost["soundstretch", tempo, name] <= 2 for tempo in TEMPOS[:2])
same &= lost["sox tempo", 1.1, "silence"] >= 5 and lost["sox tempo -s", 1.25, "silence"] >= 15
print("expected: every burst, as with the others up to 1.25" if same else "changed")
sys.exit(not same)
EOF
