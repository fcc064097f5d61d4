#!/usr/bin/env bash
# What: FFmpeg 8.1 (in the PyAV wheel) cuts the end of Apple Lossless in CAF: where the last frame is more than half full, it loses as many samples as the frame
#   lacks, up to 2048 (43 ms at 48 kHz). Half of all lengths are cut, its own files and those of libsndfile alike; the same sound in M4A and Matroska is whole.
# Why it surprises: the codec is lossless, all samples are in the file, and nothing warns. CAF states how many samples the last packet lacks to 4096, and the
#   frame of Apple Lossless states the number that it has; the samples are taken off a second time. Where more are missing than the frame has, FFmpeg leaves it.
# Consequence: a lossless archive comes back shorter, by another number for each recording, and pairs of a CAF file and its WAV have unequal lengths. Use FLAC,
#   or M4A for Apple Lossless, or read CAF with soundfile.
# Versions: av 18.1.0 (FFmpeg 8.1.2), soundfile 0.14.0, numpy 2.4.6. Debian's FFmpeg 5.1.9 reads all samples of the files of libsndfile.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile av==18.1.0 soundfile==0.14.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import av
import numpy as np
import soundfile

print("av", importlib.metadata.version("av"), "with FFmpeg", av.ffmpeg_version_info, "soundfile", importlib.metadata.version("soundfile"), soundfile.__libsndfile_version__)
FRAME = 4096


def write(path, sound):
    with av.open(path, "w") as container:
        stream = container.add_stream("alac", rate=48000, layout="mono")
        stream.format = "s16p"
        for start in range(0, len(sound), FRAME):
            frame = av.AudioFrame.from_ndarray(sound[None, start : start + FRAME], format="s16p", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read(path):
    with av.open(path) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def read_packets(path):
    """What the packets hold, decoded without what the container says of its end."""
    with av.open(path) as container:
        decoder = av.CodecContext.create("alac", "r")
        decoder.extradata, decoder.sample_rate, decoder.layout = container.streams.audio[0].codec_context.extradata, 48000, "mono"
        packets = [av.Packet(bytes(packet)) for packet in container.demux(audio=0) if packet.size]
        return np.concatenate([frame.to_ndarray()[0] for packet in packets for frame in decoder.decode(packet)])


same = True
for extra in (1, 1000, 2047, 2048, 2049, 3000, 4000, 4095):
    sound = np.random.default_rng(extra).integers(-9000, 9000, 10 * FRAME + extra).astype(np.int16)
    for container in ("caf", "m4a", "mka"):
        write(f"a.{container}", sound)
    soundfile.write("libsndfile.caf", sound, 48000, subtype="ALAC_16")
    lacks = FRAME - extra if extra >= FRAME // 2 else 0
    lost = {}
    for path in ("a.caf", "libsndfile.caf", "a.m4a", "a.mka"):
        seen = read(path)
        lost[path] = len(sound) - len(seen)
        same &= np.array_equal(seen, sound[: len(seen)]) and lost[path] == (lacks if path.endswith("caf") else 0)
    whole = np.array_equal(read_packets("a.caf"), sound) and np.array_equal(soundfile.read("libsndfile.caf", dtype="int16")[0], sound)
    same &= whole
    print(f"10 frames and {extra} samples: lost at the end {lost}; the packets of a.caf and soundfile give {'all' if whole else 'others'}")
print("expected: a lossless format gives back what was written")
print("seen: FFmpeg cuts what a last frame of CAF lacks off its samples" if same else "the behavior has changed")
sys.exit(not same)
EOF
