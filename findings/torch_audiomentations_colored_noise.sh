#!/usr/bin/env bash
# What: AddColoredNoise of torch-audiomentations documents f_decay as a decay of power by 1/f**f_decay, pink at 1, brown at 2, blue at -1, violet at -2, but applies the
#   exponent to the amplitude: pink falls by 6 dB per octave instead of 3, brown by 12 instead of 6, blue and violet rise twice as steeply. And it draws one second of noise
#   and repeats it: from the second second on the noise is the first again, sample by sample, and it is the same in all channels.
# Why it surprises: the colors are named in the docstring, the SNR is the one asked for, white noise (0) is right, and one second of it sounds as it should.
# Consequence: at the same SNR, "pink" noise has 5 to 8 dB less from 2 to 7 kHz than pink noise has, "brown" 13 to 19 dB, so a codec or an enhancer is trained on less than
#   stated, and a model that sees more than a second can subtract the noise exactly instead of learning to remove it. Halve f_decay, and make noise of the full length.
# Versions: torch-audiomentations 0.12.0, torch 2.11.0, torchaudio 2.11.0, scipy 1.17.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch-audiomentations==0.12.0 torch-pitch-shift==1.2.5 julius==0.2.8 torch==2.11.0 torchaudio==2.11.0 scipy==1.17.1 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import scipy.signal
import torch
from torch_audiomentations import AddColoredNoise

torch.set_num_threads(1)
torch.manual_seed(0)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torch-audiomentations", "torch", "torchaudio", "scipy", "numpy")))
LENGTH, SNR = 20, 10.0  # seconds, dB
COLORS = {"violet": -2.0, "blue": -1.0, "white": 0.0, "pink": 1.0, "brown": 2.0}


def colored(decay, rate, channels=1):
    """The noise that is added to a sine, and its SNR."""
    sine = (0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(LENGTH * rate, dtype=torch.float64) / rate)).float().expand(1, channels, -1)
    add = AddColoredNoise(SNR, SNR, decay, decay, p=1.0, sample_rate=rate, output_type="dict")
    noise = (add(sine).samples - sine)[0].double().numpy()
    return noise, 10 * np.log10(sine.square().mean().item() / np.square(noise).mean())


def by_definition(decay, rate):
    """White noise times f**(-decay / 2) in amplitude, so f**-decay in power, from 20 Hz on."""
    frequencies = np.fft.rfftfreq(LENGTH * rate, 1 / rate)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(LENGTH * rate))
    return np.fft.irfft(np.where(frequencies >= 20, np.maximum(frequencies, 20) ** (-decay / 2), 0) * spectrum)


def measure(noise, rate):
    """Slope in dB per octave from 1.6 to 6.4 kHz, and the level from 2 to 7 kHz relative to all, dB."""
    frequencies, power = scipy.signal.welch(noise, rate, nperseg=rate // 5)
    around = [power[(frequencies > f / 1.2) & (frequencies < f * 1.2)].mean() for f in (1600, 6400)]
    share = power[(frequencies >= 2000) & (frequencies < 7000)].sum() / power.sum()
    return 5 * np.log10(around[1] / around[0]), 10 * np.log10(share)


same = True
print("color, sample rate: SNR asked for and seen; dB per octave by the definition and seen; level from 2 to 7 kHz relative to all, dB, by the definition and seen; second 1 minus second 2")
for rate in (16_000, 24_000, 48_000):
    for color, decay in COLORS.items():
        noise, snr = colored(decay, rate)
        (slope, level), (true_slope, true_level) = measure(noise[0], rate), measure(by_definition(decay, rate), rate)
        seconds = noise[0].reshape(LENGTH, rate)
        difference = 10 * np.log10(np.square(seconds[1:] - seconds[:1]).mean() / np.square(seconds).mean() + 1e-20)
        print(f"  {color:6} {rate}: {SNR:.0f} and {snr:.1f}; {true_slope:+.1f} and {slope:+.1f}; {true_level:.1f} and {level:.1f}; {difference:.0f} dB")
        same &= abs(snr - SNR) < 0.2 and difference < -100
        same &= abs(true_slope + 10 * np.log10(2) * decay) < 0.5 and abs(slope + 20 * np.log10(2) * decay) < 0.8
        if color == "pink":
            same &= true_level - level > 4.5

left, right = colored(1.0, 24_000, channels=2)[0]
print(f"stereo: left minus right {10 * np.log10(np.square(left - right).mean() / np.square(left).mean() + 1e-20):.0f} dB")
same &= np.square(left - right).mean() < 1e-10 * np.square(left).mean()
print("expected: 3 dB per octave for each step of f_decay, and noise that does not repeat: the difference of two seconds is +3 dB")
print("seen: 6 dB per octave for each step, and one second of noise again and again" if same else "the behavior has changed")
sys.exit(not same)
EOF
