#!/usr/bin/env bash
# What: sphn.read (the audio package of Kyutai, which moshi uses) of a part of a file, by start_sec and duration_sec, takes it from the wrong place where the
#   container is Ogg Vorbis: half a long block late, 1024 samples at 44.1 kHz, 512 at 24 kHz (21 to 23 ms). In Matroska and WebM the part begins up to two packets
#   late and one second of it has 1000 samples, 23 ms.
# Why it surprises: the whole file is read rightly (88 samples too many in Vorbis), parts of WAV and FLAC too, and seconds have one meaning. There,
#   the seconds are counted in the ticks of the container, which are samples in FLAC and milliseconds in Matroska.
# Consequence: crops of Vorbis sets are shifted against their transcripts and against crops of other formats, and those of WebM are 44 times too short:
#   padded, they are silence. Read whole files and cut the array.
# Versions: sphn 0.2.1, soundfile 0.14.0, av 18.1.0 (puts the packets into Matroska as they are), numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile sphn==0.2.1 soundfile==0.14.0 av==18.1.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import av
import numpy as np
import soundfile
import sphn

print("sphn", importlib.metadata.version("sphn"))


def remux(source, target):
    with av.open(source) as before, av.open(target, "w") as after:
        stream = after.add_stream_from_template(before.streams.audio[0])
        for packet in before.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)


def read(path, **part):
    return np.asarray(sphn.read(path, **part)[0])[0]


same = True
for rate, half_block in ((44100, 1024), (24000, 512)):
    sound = 0.2 * np.random.default_rng(0).standard_normal(10 * rate)
    for name, options in (("a.wav", {}), ("a.flac", {}), ("a.ogg", {"subtype": "VORBIS"})):
        soundfile.write(name, sound, rate, **options)
    remux("a.flac", "flac.mka")
    remux("a.ogg", "vorbis.webm")
    for name in ("a.wav", "a.flac", "a.ogg", "flac.mka", "vorbis.webm"):
        whole = read(name)
        seen = []
        for seconds in (1, 4, 7):
            part = read(name, start_sec=float(seconds), duration_sec=1.0)
            views = np.lib.stride_tricks.sliding_window_view(whole[seconds * rate - 3000 : seconds * rate + 3999], 999)
            seen.append((int(np.abs(views - part[:999]).max(axis=1).argmin()) - 3000, len(part)))
        print(f"{rate} Hz, {name:11}: {len(whole)} samples in all; seconds 1, 4, 7 (shift, samples): {seen}")
        shifts, lengths = zip(*seen)
        if name in ("flac.mka", "vorbis.webm"):
            same &= set(lengths) == {1000} and max(shifts) > 100
        else:
            same &= set(lengths) == {rate} and set(shifts) == {half_block if name == "a.ogg" else 0}
print("expected: a shift of 0, as many samples as a second has")
print("seen: parts of Vorbis files are late, those of Matroska have 1000 samples" if same else "the behavior has changed")
sys.exit(not same)
EOF
