#!/usr/bin/env bash
# What: stereo read as mono is the mean of the channels, or 3 dB louder than the mean with peaks up to 1.41, depending on how it is asked for: in one
#   package, Audio() of datasets gives the mean as "array" and Audio(num_channels=1) the louder one. AudioDecoder(num_channels=1) of torchcodec is
#   louder, and PyAV's resampler and `ffmpeg -ac 1` are louder to floating point and give the mean to 16 bits.
# Why it surprises: both arrays are mono, float32 and of one length; asking for one channel explicitly looks like a safeguard. FFmpeg's library keeps the power
#   (each channel times 0.707) where the output can exceed 1, and scales to prevent clipping where it cannot.
# Consequence: a model trained on one and fed with the other sees levels 3 dB apart; loud music exceeds 1 and is clipped at the next conversion to 16 bits.
#   Read all channels and take the mean yourself.
# Versions: datasets 5.2.0, torchcodec 0.17.0, torch 2.14.1, av 18.1.0, soundfile 0.14.0, numpy 2.4.6, Debian package ffmpeg (seen with 5.1.9), which
#   torchcodec needs.
set -euo pipefail
command -v ffmpeg >/dev/null || { echo "ffmpeg is missing: apt-get install ffmpeg" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0 torchcodec==0.17.0 torch==2.14.1 av==18.1.0 soundfile==0.14.0 numpy==2.4.6
cd "$work"
HF_HOME=$work/cache venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import subprocess
import sys

import av
import numpy as np
import soundfile
from datasets import Audio, Dataset
from torchcodec.decoders import AudioDecoder

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("datasets", "torchcodec", "torch", "av")))
print(subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.splitlines()[0])
RATE = 48000
tone = 0.9 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
noise = 0.1 * np.random.default_rng(0).standard_normal((2 * RATE, 2))
sounds = {"equal channels": np.stack([tone, tone], 1), "unlike channels": noise}


def dataset(path, **options):
    return Dataset.from_dict({"audio": [path]}).cast_column("audio", Audio(**options))[0]["audio"]["array"]


def pyav(path, kind):
    with av.open(path) as file:
        resampler = av.AudioResampler(format=kind, layout="mono", rate=RATE)
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames + resampler.resample(None)])
    return samples / 32768 if kind == "s16" else samples


def ffmpeg(path, kind):
    command = ["ffmpeg", "-v", "error", "-i", path, "-ac", "1", "-f", kind, "-"]
    samples = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<i2" if kind == "s16le" else "<f4")
    return samples / 32768 if kind == "s16le" else samples


readers = {
    "mean of soundfile": lambda path: soundfile.read(path)[0].mean(axis=1),
    "datasets Audio()": lambda path: dataset(path),
    "datasets Audio(num_channels=1)": lambda path: dataset(path, num_channels=1),
    "torchcodec num_channels=1": lambda path: AudioDecoder(path, num_channels=1).get_all_samples().data[0].numpy(),
    "av to mono flt": lambda path: pyav(path, "flt"),
    "av to mono s16": lambda path: pyav(path, "s16"),
    "ffmpeg -ac 1 to f32le": lambda path: ffmpeg(path, "f32le"),
    "ffmpeg -ac 1 to s16le": lambda path: ffmpeg(path, "s16le"),
}
louder = {"datasets Audio(num_channels=1)", "torchcodec num_channels=1", "av to mono flt", "ffmpeg -ac 1 to f32le"}
same = True
for title, sound in sounds.items():
    soundfile.write("sound.flac", sound, RATE, subtype="PCM_24")
    mean = sound.mean(axis=1)
    for name, read in readers.items():
        samples = read("sound.flac")
        gain = 20 * np.log10(np.std(samples) / np.std(mean))
        print(f"{title}: {name:31} {len(samples)} samples, {gain:+.2f} dB, peak {np.abs(samples).max():.3f}")
        same &= len(samples) == len(mean) and abs(gain - 3.01 * (name in louder)) < 0.01
print("expected: one level")
print("seen: two, 3 dB apart" if same else "the behavior has changed")
sys.exit(not same)
EOF
