#!/usr/bin/env bash
# What: libopus 1.6.1 as shipped inside the PyAV wheel has none of the neural parts that made 1.5 and 1.6 known: the speech enhancement of the decoder
#   (LACE, NoLACE) never acts. Asking for it is accepted: decoder complexity 10 is set and read back, and every sample stays as at complexity 0.
# Why it surprises: the release notes tie the enhancement to the version and to that one number; a number stored and read back looks like a feature switched on.
#   The parts are options of the build, off by default. The other neural options of the same build answer "unimplemented" (-5); this one cannot,
#   since its switch is an old control with another meaning in the encoder. (opusdec has no switch for it at all, whatever the library.)
# Consequence: "Opus 1.6" as a low-rate baseline is the classic decoder of 1.3: say so in a table, or build libopus with the options and show that
#   complexity 0 and 7 differ. The version string proves nothing.
# Versions: av 18.1.0 (libopus 1.6.1), numpy 2.4.6; Linux wheel.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile av==18.1.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import ctypes
import importlib.metadata
import importlib.util
import pathlib
import sys

import numpy as np

site = pathlib.Path(importlib.util.find_spec("av").origin).parent.parent
opus = ctypes.CDLL(str(next((site / "av.libs").glob("libopus*"))))
opus.opus_get_version_string.restype = ctypes.c_char_p
opus.opus_encoder_create.restype = opus.opus_decoder_create.restype = ctypes.c_void_p
print("av", importlib.metadata.version("av"), opus.opus_get_version_string().decode())
SET_BITRATE, SET_BANDWIDTH, SET_COMPLEXITY, GET_COMPLEXITY, SET_REDUNDANCY, SET_EXTENSION, UNIMPLEMENTED = 4002, 4008, 4010, 4011, 4050, 4054, -5
WIDEBAND, RATE, FRAME = 1103, 16000, 320
error = ctypes.c_int()
time = np.arange(6 * RATE) / RATE
phase = np.cumsum(2 * np.pi * 120 * 2 ** (0.3 * np.sin(2 * np.pi * 0.41 * time) + 0.1 * np.sin(2 * np.pi * 1.7 * time)) / RATE)
voice = sum(np.sin(k * phase + k) * (1.1 + np.cos(k * phase / 3)) / k**0.8 for k in range(1, 60)) * np.clip(np.sin(2 * np.pi * 3.1 * time), 0, 1)
voice = (0.5 * voice / np.abs(voice).max() + 0.001 * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)


def control(function, state, request, value):
    return function(ctypes.c_void_p(state), ctypes.c_int(request), value)


def encode(bits_per_second):
    encoder = opus.opus_encoder_create(RATE, 1, 2048, ctypes.byref(error))  # 2048: made for speech
    control(opus.opus_encoder_ctl, encoder, SET_BITRATE, ctypes.c_int(bits_per_second))
    control(opus.opus_encoder_ctl, encoder, SET_BANDWIDTH, ctypes.c_int(WIDEBAND))
    room, packets = (ctypes.c_ubyte * 1500)(), []
    for at in range(0, len(voice) - FRAME + 1, FRAME):
        frame = np.ascontiguousarray(voice[at : at + FRAME])
        size = opus.opus_encode_float(ctypes.c_void_p(encoder), frame.ctypes.data_as(ctypes.c_void_p), FRAME, room, 1500)
        packets.append(bytes(room[:size]))
    return packets


def decode(packets, complexity):
    decoder = opus.opus_decoder_create(RATE, 1, ctypes.byref(error))
    read = ctypes.c_int(-1)
    answer = control(opus.opus_decoder_ctl, decoder, SET_COMPLEXITY, ctypes.c_int(complexity))
    control(opus.opus_decoder_ctl, decoder, GET_COMPLEXITY, ctypes.byref(read))
    samples = np.zeros((len(packets), FRAME), np.float32)
    for packet, row in zip(packets, samples):
        opus.opus_decode_float(ctypes.c_void_p(decoder), packet, len(packet), row.ctypes.data_as(ctypes.c_void_p), FRAME, 0)
    return answer, read.value, samples


same = True
for bits_per_second in (9000, 12000, 16000):
    packets = encode(bits_per_second)
    wideband = sum(8 <= packet[0] >> 3 <= 11 for packet in packets)  # the kind the enhancement is made for
    _, _, plain = decode(packets, 0)
    for complexity in (6, 7, 10):
        answer, read, samples = decode(packets, complexity)
        equal = bool(np.array_equal(samples, plain))
        print(f"{bits_per_second} bit/s, {wideband} of {len(packets)} packets wideband speech: complexity {complexity} answered {answer}, read back {read}, as at 0: {equal}")
        same &= answer == 0 and read == complexity and equal
    same &= wideband > len(packets) // 2
encoder, decoder = opus.opus_encoder_create(RATE, 1, 2048, ctypes.byref(error)), opus.opus_decoder_create(RATE, 1, ctypes.byref(error))
redundancy = control(opus.opus_encoder_ctl, encoder, SET_REDUNDANCY, ctypes.c_int(10))
extension = control(opus.opus_decoder_ctl, decoder, SET_EXTENSION, ctypes.c_int(1))
print(f"deep redundancy answered {redundancy}, bandwidth extension answered {extension}")
same &= redundancy == UNIMPLEMENTED and extension == UNIMPLEMENTED and plain.std() > 0.01
print("expected: from complexity 6 on the samples differ, or the request is refused")
print("seen: accepted, and without effect" if same else "the behavior has changed")
sys.exit(not same)
EOF
