#!/usr/bin/env bash
# What: AudioSignal.convolve of descript-audiotools, and with it apply_ir and the transform RoomImpulseResponse, convolves in a circle: the reverberation
#   of the end of a clip comes out at its beginning. Both Fourier transforms have the length of the signal, and no zeros are added before them.
# Why it surprises: it is documented as "Convolves self with other. This function uses FFTs to do the convolution", and in every other respect the result
#   is that of a linear convolution, cut to the length of the signal. An FFT is taken for the speed; scipy's fftconvolve pads by itself.
# Consequence: a clip that ends in speech, as most excerpts do, begins with an echo from its own future, here 8 dB below the speech and where the clip
#   has digital silence. A model is trained on sound that no room makes, and a causal one cannot learn it. Append zeros of the length of the
#   impulse response before the call (zero_pad) and cut them off after it (truncate_samples).
# Versions: descript-audiotools 0.7.2, torch 2.14.1, torchaudio 2.11.0, numpy 2.4.6, scipy 1.17.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile descript-audiotools==0.7.2 torch==2.14.1 torchaudio==2.11.0 numpy==2.4.6 scipy==1.17.1
OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

import torch
from audiotools import AudioSignal
from scipy.signal import fftconvolve

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("descript-audiotools", "torch", "scipy")))
RATE = 16000
generator = torch.Generator().manual_seed(0)
clip = torch.zeros(2 * RATE)
clip[RATE:] = 0.1 * torch.randn(RATE, generator=generator)  # a second of silence, a second of sound
room = 0.05 * torch.randn(RATE, generator=generator) * 10 ** (-3 * torch.arange(RATE) / RATE / 0.6)  # RT60 of 0.6 s
room[0] = 1  # the direct sound


def signal(samples):
    return AudioSignal(samples[None, None].clone(), RATE)


full = torch.from_numpy(fftconvolve(clip.numpy(), room.numpy()))
linear = full[: len(clip)]
circular = linear.clone()
circular[: len(full) - len(clip)] += full[len(clip) :]
padded = signal(clip)
padded.zero_pad(0, RATE)
padded.convolve(signal(room)).truncate_samples(len(clip))
rows = {
    "linear convolution, cut": linear,
    "convolve": signal(clip).convolve(signal(room)).audio_data[0, 0],
    "apply_ir": signal(clip).apply_ir(signal(room)).audio_data[0, 0],
    "convolve with zeros appended": padded.audio_data[0, 0],
}
levels = {}
print("level in dB by steps of 0.2 s; the first five are silence in the clip")
for label, samples in rows.items():
    levels[label] = 10 * torch.log10(samples.reshape(10, -1).square().mean(1) + 1e-15)
    print(f"{label:30}", *(f"{level:6.1f}" for level in levels[label]))
errors = [float((rows["convolve"] - other).abs().max()) for other in (linear, circular)]
print(f"largest difference of convolve from the linear convolution {errors[0]:.2g}, from the circular one {errors[1]:.2g}")
same = errors[0] > 0.1 and errors[1] < 1e-5
for label in ("convolve", "apply_ir"):
    same &= float(levels[label][5:].mean() - levels[label][0]) < 10
same &= float((rows["convolve with zeros appended"] - linear).abs().max()) < 1e-5
print("expected: silence before the sound")
print("seen: the reverberation of the end at the beginning" if same else "the behavior has changed")
sys.exit(not same)
EOF
