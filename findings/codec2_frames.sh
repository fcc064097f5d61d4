#!/usr/bin/env bash
# What: a round trip through c2enc and c2dec loses the end of the recording, up to a frame, and delays the rest by 160 samples (20 ms).
# Why it surprises: samples that do not fill the last frame are neither padded nor reported, so up to 39.9 ms of speech is gone; and the
#   delay is the same in the modes with 20 ms frames and in the modes with 40 ms frames, so it is not the frame that the reader of the bit rates would guess.
#   Nothing in the stream or the tools says either number.
# Consequence: as a baseline in a comparison, every measure without its own alignment (SI-SNR, mel distance, STOI) scores the shift instead of the
#   codec: append 40 ms of silence, cut 160 samples from the front and cut to the input's length before measuring.
# Versions: Debian package codec2 (seen with 1.0.5-1), numpy 2.4.6. Delays are medians over eight signals: a vocoder moves a single one by up to 3 ms.
set -euo pipefail
for tool in c2enc c2dec; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install codec2" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile numpy==2.4.6
cd "$work"
dpkg-query -W -f '${Package} ${Version}\n' codec2 2>/dev/null || true
venv/bin/python - <<'EOF'
import subprocess
import sys

import numpy as np

RATE = 8000


def voice(samples, seed):
    random = np.random.default_rng(seed)
    time = np.arange(samples) / RATE
    phase = np.cumsum(2 * np.pi * random.uniform(90, 220) * 2 ** (0.3 * np.sin(2 * np.pi * 0.61 * time + random.uniform(0, 6))) / RATE)
    tone = sum(np.sin(k * phase + random.uniform(0, 2 * np.pi)) / k for k in range(1, 15))
    loudness = np.convolve(random.standard_normal(samples + 800), np.hanning(801), "valid")[:samples]
    loudness = np.clip(loudness / loudness.std(), 0, 3)
    return (10000 * tone * loudness / np.abs(tone * loudness).max()).astype("<i2")


def envelope(signal):
    window = np.hanning(161)
    smooth = np.convolve(np.abs(signal.astype(float)), window / window.sum(), "same")
    return smooth - smooth.mean()


def delay(before, after):
    size = 2 * len(before)
    product = np.conj(np.fft.rfft(envelope(before), size)) * np.fft.rfft(envelope(after), size)
    return int(np.fft.irfft(product)[:1000].argmax())


same = True
for mode, frame in (("3200", 160), ("2400", 160), ("1600", 320), ("1400", 320), ("1300", 320), ("1200", 320)):
    delays, lost = [], set()
    for seed in range(8):
        sound = voice(151 * frame - 1, seed)
        bits = subprocess.run(["c2enc", mode, "-", "-"], input=sound.tobytes(), capture_output=True, check=True).stdout
        back = np.frombuffer(subprocess.run(["c2dec", mode, "-", "-"], input=bits, capture_output=True, check=True).stdout, "<i2")
        lost.add(len(sound) - len(back))
        delays.append(delay(sound[: len(back)], back))
    print(f"{mode} bit/s, frames of {frame}: lost samples {lost}, delay {np.median(delays):.0f} samples (from {min(delays)} to {max(delays)})")
    same &= lost == {frame - 1} and 140 <= np.median(delays) <= 185
print("expected: as many samples out as in, aligned with the input")
print("seen: the last incomplete frame is lost, the rest comes 160 samples late" if same else "the behavior has changed")
sys.exit(not same)
EOF
