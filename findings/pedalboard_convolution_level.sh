#!/usr/bin/env bash
# What: Convolution of pedalboard scales every impulse response to an energy of 1/64 before it convolves: its gain is 0.125 / sqrt(sum of squares). A response of a single 1 makes sound
#   18 dB softer instead of leaving it as it is, a low-pass of gain 1 makes it 10 dB softer, rooms 8 to 36 dB, and a response times 10 or times 0.01 gives the same output. mix weights
#   the scaled sound: with mix=0.5 the dry sound has a weight of 0.5, and the convolution one of 0.01 to 0.2. Arrays and files are treated alike.
# Why it surprises: up to this gain it is exact (130 dB of SNR against scipy, in chunks as well), and neither the documentation nor a parameter speaks of a level.
#   Two channels of one response keep their ratio, so stereo and binaural responses look right; responses of two calls do not.
# Consequence: near and far positions in a room come out equally loud (10 dB apart by scipy), speech and noise that pass through two responses have another SNR than
#   was set, and sound stored in 16 bits loses up to 6 of them. Multiply the output by 8 * sqrt(sum of squares) of the louder channel, or use scipy.signal.fftconvolve.
# Versions: pedalboard 0.9.26, scipy 1.17.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pedalboard==0.9.26 scipy==1.17.1 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import scipy.io.wavfile
import scipy.signal
from pedalboard import Convolution

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("pedalboard", "scipy", "numpy")))
RATE = 48_000
rng = np.random.default_rng(0)
time = np.arange(2 * RATE) / RATE
syllables = np.sqrt(np.clip(np.sin(2 * np.pi * 2.2 * time), 0, None))
sound = (0.1 * rng.standard_normal(2 * RATE) * syllables).astype(np.float32)


def decibels(ratio):
    return 20 * np.log10(ratio)


def room(seconds, direct, tail, seed):
    """A direct sound and noise that decays to -60 dB."""
    length = int(seconds * RATE)
    response = tail * np.random.default_rng(seed).standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response[0] = direct
    return response.astype(np.float32)


def convolved(response, mix=1.0, chunk=None):
    effect = Convolution(response, mix, sample_rate=RATE)
    if chunk is None:
        return effect(sound, RATE)
    return np.concatenate([effect(sound[first : first + chunk], RATE, reset=False) for first in range(0, len(sound), chunk)])


def compared(got, reference):
    """The gain of the first signal over the second, and the SNR in dB that is left without it."""
    gain = (got @ reference) / (reference @ reference)
    error = got - gain * reference
    return gain, 10 * np.log10((gain * reference) @ (gain * reference) / (error @ error))


same = True
responses = {
    "a single 1": np.ones(1, np.float32),
    "1 and 100 zeros": np.eye(1, 101, dtype=np.float32)[0],
    "low-pass of 101 taps, gain 1 at 0 Hz": scipy.signal.firwin(101, 4000, fs=RATE).astype(np.float32),
    "small room, near": room(0.3, 1.0, 0.02, 1),
    "hall, near": room(1.0, 1.0, 0.005, 2),
    "hall, far": room(1.0, 0.1, 0.005, 2),
    "hall, far, wet": room(2.0, 0.1, 0.1, 3),
}
references = {name: scipy.signal.fftconvolve(sound.astype(float), response.astype(float))[: len(sound)] for name, response in responses.items()}
for name, response in responses.items():
    reference = references[name]
    gain, snr = compared(convolved(response), reference)
    chunks = compared(convolved(response, chunk=480), reference)[0]
    rule = 0.125 / np.sqrt((response.astype(float) ** 2).sum())
    loud, soft = (np.abs(convolved(factor * response) - convolved(response)).max() / np.abs(reference).max() for factor in (np.float32(10), np.float32(0.01)))
    print(f"{name}: {decibels(gain):.2f} dB against scipy (in chunks {decibels(chunks):.2f}, by the rule {decibels(rule):.2f})", end="")
    print(f", then an SNR of {snr:.0f} dB; times 10 and 0.01: {loud:.0e}, {soft:.0e} other")
    same &= abs(decibels(gain / rule)) < 0.01 and abs(decibels(chunks / rule)) < 0.01 and gain < 0.5 and snr > 110 and max(loud, soft) < 1e-4

near, far = "hall, near", "hall, far"
expected, seen = (decibels(np.std(one) / np.std(other)) for one, other in ((references[near], references[far]), (convolved(responses[near]), convolved(responses[far]))))
print(f"{near} against {far}: {expected:.2f} dB louder by scipy, {seen:.2f} dB here")
same &= expected > 6 and abs(seen) < 0.3
print("weights of the dry sound and of scipy's convolution with mix=0.5, expected 0.5 and 0.5:")
for name in (near, far, "hall, far, wet"):
    dry, wet = np.linalg.lstsq(np.stack([sound, references[name]], 1), convolved(responses[name], mix=0.5).astype(float), rcond=None)[0]
    print(f"  {name}: {dry:.4f} {wet:.4f}")
    same &= abs(dry - 0.5) < 0.01 and wet < 0.25
scipy.io.wavfile.write("response.wav", RATE, responses[near])
gain = compared(Convolution("response.wav")(sound, RATE), references[near])[0]
print(f"{near}, from a file: {decibels(gain):.2f} dB against scipy")
same &= gain < 0.13
response = np.stack([responses["small room, near"], 0.5 * responses["small room, near"]])
stereo = Convolution(response, 1.0, sample_rate=RATE)(np.stack([sound, sound]), RATE)
print(f"a response of two channels, the second half as loud: {np.std(stereo[0]):.5f} {np.std(stereo[1]):.5f}")
same &= abs(np.std(stereo[1]) / np.std(stereo[0]) - 0.5) < 0.01
print("expected: the convolution with the response as it is, or a word on its level" if same else "changed")
sys.exit(not same)
EOF
