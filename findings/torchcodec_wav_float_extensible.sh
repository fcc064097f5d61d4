#!/usr/bin/env bash
# What: torchcodec's WavDecoder reads WAV files of 32-bit floats as integers, where the header has the format tag 0xFFFE (WAVE_FORMAT_EXTENSIBLE): the bits of
#   each float become an int32 divided by 2^31. A sample of 0.1 becomes 0.48, and -0.1 becomes -0.52. AudioDecoder of the same package reads these files rightly,
#   and WavDecoder itself reads integers and 64-bit floats with this tag, and floats with the tag 3.
# Why it surprises: nothing raises, metadata.codec says pcm_f32le and all values are in [-1, 1]. AudioDecoder's documentation advises WavDecoder for speed. The
#   same recording is right or wrong depending on who wrote it: FFmpeg 5.1 puts this tag on all floats, mono at 24 kHz too, FFmpeg 8.1 on more than two
#   channels or rates above 48 kHz, libsndfile on WAVEX.
# Consequence: sets of floating-point WAV files train on noise, in part or in whole. Use AudioDecoder or soundfile, or refuse float files with this tag.
# Versions: torchcodec 0.17.0, torch 2.14.1, av 18.1.0 (FFmpeg 8.1.2), soundfile 0.14.0, numpy 2.4.6, Debian package ffmpeg (seen with 5.1.9).
set -euo pipefail
command -v ffmpeg >/dev/null || { echo "ffmpeg is missing: apt-get install ffmpeg" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torchcodec==0.17.0 torch==2.14.1 av==18.1.0 soundfile==0.14.0 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=2 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import subprocess
import sys

import av
import numpy as np
import soundfile
from torchcodec.decoders import AudioDecoder, WavDecoder

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchcodec", "torch", "soundfile", "av")), "with FFmpeg", av.ffmpeg_version_info)
print(subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.splitlines()[0])
rng = np.random.default_rng(0)


def by_pyav(path, sound, rate, layout):
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def by_ffmpeg(path, sound, rate, codec):
    soundfile.write("plain.wav", sound, rate, subtype="FLOAT")
    subprocess.run(["ffmpeg", "-v", "error", "-i", "plain.wav", "-c:a", codec, path], check=True)


def noise(channels):
    return (0.1 * rng.standard_normal((24000, channels))).astype(np.float32)


WRITERS = {
    "libsndfile, WAV float": lambda path: soundfile.write(path, mono, 24000, subtype="FLOAT"),
    "libsndfile, WAVEX float": lambda path: soundfile.write(path, mono, 24000, format="WAVEX", subtype="FLOAT"),
    "libsndfile, WAVEX double": lambda path: soundfile.write(path, mono, 24000, format="WAVEX", subtype="DOUBLE"),
    "libsndfile, WAVEX 24 bits": lambda path: soundfile.write(path, mono, 24000, format="WAVEX", subtype="PCM_24"),
    "ffmpeg, float, mono, 24 kHz": lambda path: by_ffmpeg(path, mono, 24000, "pcm_f32le"),
    "ffmpeg, 32 bits, mono, 24 kHz": lambda path: by_ffmpeg(path, mono, 24000, "pcm_s32le"),
    "PyAV, float, mono, 24 kHz": lambda path: by_pyav(path, mono, 24000, "mono"),
    "PyAV, float, stereo, 96 kHz": lambda path: by_pyav(path, noise(2), 96000, "stereo"),
    "PyAV, float, 5.1, 48 kHz": lambda path: by_pyav(path, noise(6), 48000, "5.1"),
}
mono = noise(1)
same, wrong = True, 0
for number, (name, write) in enumerate(WRITERS.items()):
    path = f"{number}.wav"
    write(path)
    with open(path, "rb") as file:
        tag = int.from_bytes(file.read(22)[20:], "little")
    right = soundfile.read(path, dtype="float32", always_2d=True)[0]
    decoder = WavDecoder(path)
    seen = decoder.get_all_samples().data.numpy().T
    slow = AudioDecoder(path).get_all_samples().data.numpy().T
    bits = (right.view(np.int32) / 2**31).astype(np.float32)
    as_bits = np.abs(seen - bits).max() == 0
    error, slow_error = np.abs(seen - right).max(), np.abs(slow - right).max()
    print(f"{name:30} tag {tag:#x}, {decoder.metadata.codec}: WavDecoder off by up to {error:.2g}, AudioDecoder by {slow_error:.2g}", end="")
    print("; the samples are the bits of the floats" if as_bits else "")
    extensible_float = tag == 0xFFFE and decoder.metadata.codec == "pcm_f32le"
    same &= slow_error < 1e-6 and as_bits == extensible_float and (error > 0.5 if extensible_float else error < 1e-6)
    wrong += extensible_float
same &= wrong >= 3
print("expected: one decoder is as right as the other, only faster")
print("seen: 32-bit floats with the tag 0xfffe are read as integers" if same else "the behavior has changed")
sys.exit(not same)
EOF
