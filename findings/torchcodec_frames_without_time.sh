#!/usr/bin/env bash
# What: torchcodec's AudioDecoder leaves out frames that FFmpeg hands over without a time stamp or without a length. get_all_samples of WAV files in ADPCM (IMA
#   and Microsoft) gives the first block of each packet and joins these: 6% of the samples at 8 kHz mono, 25% of files by FFmpeg. Apple Lossless in
#   CAF and Matroska lacks its first 4096 samples (85 ms at 48 kHz) and Windows Media Audio its last 2048.
# Why it surprises: FFmpeg, on which torchcodec is built, soundfile and other readers give all samples of these files, metadata.duration_seconds is right, and
#   nothing warns. ADPCM comes with pts_seconds 0, as sound that jumps every few dozen ms; ALAC is lossless, and in M4A it is complete.
# Consequence: telephone and game recordings come out up to 16 times too short, garbled and without their transcript's times, in all that reads with torchcodec
#   (torchaudio, datasets). Compare the number of samples with duration_seconds, or decode with soundfile or PyAV.
# Versions: torchcodec 0.17.0, torch 2.14.1, av 18.1.0 (FFmpeg 8.1.2), soundfile 0.14.0, numpy 2.4.6, Debian package ffmpeg (seen with 5.1.9), which torchcodec needs.
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
from torchcodec.decoders import AudioDecoder

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchcodec", "torch", "soundfile", "av")), "with FFmpeg", av.ffmpeg_version_info)
print(subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.splitlines()[0])
rng = np.random.default_rng(0)


def by_libsndfile(path, rate, channels, **options):
    soundfile.write(path, 0.1 * rng.standard_normal((4 * rate, channels)), rate, **options)


def by_ffmpeg(path, codec):
    soundfile.write("plain.wav", 0.1 * rng.standard_normal(4 * 48000), 48000)
    subprocess.run(["ffmpeg", "-v", "error", "-i", "plain.wav", "-c:a", codec, path], check=True)


def ffmpeg_reads(path):
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "f32le", "-c:a", "pcm_f32le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.float32)


def pyav_counts(path):
    with av.open(path) as container:
        return sum(frame.samples for frame in container.decode(audio=0))


FILES = {  # how to write it, the part of the samples that torchcodec gives, at most
    "ima_8k.wav": (lambda path: by_libsndfile(path, 8000, 1, subtype="IMA_ADPCM"), 0.07),
    "ms_8k.wav": (lambda path: by_libsndfile(path, 8000, 1, subtype="MS_ADPCM"), 0.07),
    "ima_16k.wav": (lambda path: by_libsndfile(path, 16000, 1, subtype="IMA_ADPCM"), 0.13),
    "ms_44k_stereo.wav": (lambda path: by_libsndfile(path, 44100, 2, subtype="MS_ADPCM"), 0.52),
    "ima_ffmpeg.wav": (lambda path: by_ffmpeg(path, "adpcm_ima_wav"), 0.26),
    "ms_ffmpeg.wav": (lambda path: by_ffmpeg(path, "adpcm_ms"), 0.26),
    "alac.caf": (lambda path: by_libsndfile(path, 48000, 1, subtype="ALAC_16"), 0.98),
    "alac.mka": (lambda path: by_ffmpeg(path, "alac"), 0.98),
    "alac.m4a": (lambda path: by_ffmpeg(path, "alac"), 1),
    "a.wma": (lambda path: by_ffmpeg(path, "wmav2"), 0.99),
    "gsm.wav": (lambda path: by_libsndfile(path, 8000, 1, subtype="GSM610"), 1),
    "ulaw.wav": (lambda path: by_libsndfile(path, 8000, 1, subtype="ULAW"), 1),
    "pcm.wav": (lambda path: by_libsndfile(path, 8000, 1, subtype="PCM_16"), 1),
}
same = True
for path, (write, most) in FILES.items():
    write(path)
    decoder = AudioDecoder(path)
    samples = decoder.get_all_samples()
    seen, right = samples.data.numpy().T.ravel(), ffmpeg_reads(path)
    rate, channels = samples.sample_rate, samples.data.shape[0]
    others = {"ffmpeg": len(right) // channels, "PyAV": pyav_counts(path)}
    if path.endswith((".wav", ".caf")):
        others["soundfile"] = soundfile.info(path).frames
    count = len(seen) // channels
    runs = np.flatnonzero(seen[: len(right)] != right[: len(seen)]) if len(seen) else np.zeros(0)
    first = len(seen) // channels if not len(runs) else int(runs[0]) // channels
    print(f"{path:17} {count:6} samples of {others} ({count / others['ffmpeg']:.0%}),", end=" ")
    print(f"the first {first} are right; said to last {decoder.metadata.duration_seconds:.2f} s of 4, pts_seconds {samples.pts_seconds:.3f}")
    share = count / others["ffmpeg"]
    same &= (share == 1 and first == count) if most == 1 else share <= most and max(others.values()) == others["ffmpeg"]
    if path in ("alac.caf", "alac.mka"):
        same &= np.array_equal(seen, right[4096:])
    if path == "a.wma":
        same &= np.array_equal(seen, right[:-2048])
print("expected: all samples of each file, as FFmpeg gives them")
print("seen: blocks are missing, without an error" if same else "the behavior has changed")
sys.exit(not same)
EOF
