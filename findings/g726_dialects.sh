#!/usr/bin/env bash
# What: neither FFmpeg nor libsndfile codes G.726 (G.721, G.723) as ITU-T G.726 says, nor as the other does. A stream of the recommendation at 40 kbit/s has
#   an SNR of 31 dB in a decoder of the recommendation, 8 in FFmpeg and 19 in libsndfile; at 32 kbit/s 26, 25 and 18. A stream of libsndfile at 32 kbit/s
#   has 26 dB in libsndfile, 19 by the recommendation and 18 in FFmpeg. FFmpeg (1) rounds the mixed scale factor otherwise (MIX) and (2) at 40 kbit/s lets
#   the zeros of the predictor leak by 2^-8 instead of 2^-9 (UPB); libsndfile leaves out the 48 that FMULT adds before its shift. (3) FFmpeg's writer of AU
#   gives 24 and 40 kbit/s the number of 32 kbit/s, and its own reader then returns noise.
# Why it surprises: the recommendation fixes every bit and comes with test sequences, and each library reads its own streams well, which is what a test
#   does. FFmpeg calls its code "a very straightforward rendition" of the recommendation. An adaptive predictor drifts away and does not come back.
# Consequence: recordings of telephone systems sound rough where they need not, and a comparison with "G.726" that was decoded by another library than it
#   was encoded with measures the mismatch. Use one library at both ends, and SoX for files of others.
# Versions: av 18.1.0 (FFmpeg 8.1.2), soundfile 0.14.0 (libsndfile 1.2.2), numpy 2.4.6. The coder below is the recommendation block by block: its codes and
#   samples equal those of spandsp 0.0.6 and its samples those of SoX 14.4.2 in every bit, and with the changes named above those of FFmpeg and libsndfile.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile av==18.1.0 soundfile==0.14.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import sys

import av
import numpy as np
import soundfile

RATE = 8000
# For each number of bits: decision levels (encoder only), then for each magnitude of a code its log2, W and F. G.726, tables 7 to 13.
TABLES = {
    3: ([8, 218, 331], [-2048, 135, 273, 373], [-4, 30, 137, 582], [0, 1, 2, 7]),
    4: (
        [-124, 80, 178, 246, 300, 349, 400],
        [-2048, 4, 135, 213, 273, 323, 373, 425],
        [-12, 18, 41, 64, 112, 198, 355, 1122],
        [0, 0, 0, 1, 1, 1, 3, 7],
    ),
    5: (
        [-122, -16, 68, 139, 198, 250, 298, 339, 378, 413, 445, 475, 502, 528, 553],
        [-2048, -66, 28, 104, 169, 224, 274, 318, 358, 395, 429, 459, 488, 514, 539, 566],
        [14, 14, 24, 39, 40, 41, 58, 100, 141, 179, 219, 280, 358, 440, 529, 696],
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 6],
    ),
}
ENCODINGS = {3: 25, 4: 23, 5: 26}  # in the header of an AU file
SUBTYPES = {3: "G723_24", 4: "G721_32", 5: "G723_40"}


def to_float(magnitude):
    exponent = magnitude.bit_length()
    return exponent, (magnitude << 6) >> exponent if magnitude else 32


def clip(value, limit):
    return max(-limit, min(limit, value))


class G726:
    """ITU-T G.726, with switches for what FFmpeg and libsndfile do otherwise."""

    def __init__(self, bits, leak=None, floor_mix=False, added=48):
        self.bits, self.floor_mix, self.added = bits, floor_mix, added
        self.levels, self.log, self.w, self.f = TABLES[bits]
        self.leak = leak or (9 if bits == 5 else 8)
        self.a, self.b, self.signs = [0, 0], [0] * 6, [False, False]
        self.dq, self.sr = [(False, 0, 32)] * 6, [(False, 0, 32)] * 2
        self.yu, self.yl, self.dms, self.dml, self.ap, self.tone = 544, 34816, 0, 0, 0, False

    def fmult(self, coefficient, sample):
        exponent, mantissa = to_float(coefficient >> 2 if coefficient >= 0 else -(coefficient >> 2) & 8191)
        exponent += sample[1]
        product = ((mantissa * sample[2] + self.added) >> 4) << 7
        product = product >> (26 - exponent) if exponent <= 26 else (product << (exponent - 26)) & 32767
        return -product if sample[0] != (coefficient < 0) else product

    def predict(self):
        zeros = sum(map(self.fmult, self.b, self.dq))
        self.sez, self.se = zeros >> 1, (zeros + sum(map(self.fmult, self.a, self.sr))) >> 1
        al, difference = min(self.ap >> 2, 64), self.yu - (self.yl >> 6)
        if self.floor_mix:
            self.y = (self.yl + difference * al) >> 6
        else:
            change = abs(difference) * al >> 6
            self.y = (self.yl >> 6) + (change if difference >= 0 else -change)

    def update(self, code):
        negative = bool(code >> (self.bits - 1))
        index = (1 << self.bits) - 1 - code if negative else code
        log = self.log[index] + (self.y >> 2)
        magnitude = (128 + (log & 127) << 7) >> (14 - (log >> 7 & 15)) if log >= 0 else 0
        integer, fraction = self.yl >> 15, self.yl >> 10 & 31
        threshold = 31 << 10 if integer > 9 else (32 + fraction) << integer
        transition = self.tone and magnitude > (threshold + (threshold >> 1)) >> 1
        dq = -magnitude if negative else magnitude
        sr, pole_part = self.se + dq, self.sez + dq
        sign = pole_part < 0
        a1, a2 = self.a
        unlike1, unlike2 = sign != self.signs[0], sign != self.signs[1]
        if pole_part:
            share = clip(a1, 8191) << 2
            step1, step2 = -192 if unlike1 else 192, (-16384 if unlike2 else 16384) + (share if unlike1 else -share) >> 7
        else:
            step1 = step2 = 0
        a2 = clip(a2 + step2 - (a2 >> 7), 12288)
        a1 = clip(a1 + step1 - (a1 >> 8), 15360 - a2)
        steps = [0 if magnitude == 0 else -128 if negative != past[0] else 128 for past in self.dq]
        b = [value + step - (value >> self.leak) for value, step in zip(self.b, steps)]
        tone = a2 < -11776
        self.yu = max(544, min(5120, self.y + ((self.w[index] << 5) - self.y >> 5)))
        self.yl += self.yu + (-self.yl >> 6)
        self.dms += (self.f[index] << 9) - self.dms >> 5
        self.dml += (self.f[index] << 11) - self.dml >> 7
        fast = self.y < 1536 or tone or abs((self.dms << 2) - self.dml) >= self.dml >> 3
        self.ap += (512 if fast else 0) - self.ap >> 4
        if transition:
            a1, a2, b, tone, self.ap = 0, 0, [0] * 6, False, 256
        self.a, self.b, self.tone, self.signs = [a1, a2], b, tone, [sign, self.signs[0]]
        self.dq = [(negative, *to_float(magnitude)), *self.dq[:5]]
        self.sr = [(sr < 0, *to_float(abs(sr))), self.sr[0]]
        return sr

    def decode(self, codes):
        samples = []
        for code in codes:
            self.predict()
            samples.append(self.update(int(code)))
        return np.array(samples) / 8192

    def encode(self, samples):
        codes, last = [], (1 << self.bits) - 1
        for sample in samples:  # of 14 bits
            self.predict()
            difference = int(sample) - self.se
            magnitude = abs(difference)
            exponent = max(0, magnitude.bit_length() - 1)
            log = (exponent << 7) + (((magnitude << 7) >> exponent) & 127) - (self.y >> 2)
            index = sum(log >= level for level in self.levels)
            codes.append(last - index if difference < 0 or index == 0 else index)
            self.update(codes[-1])
        return np.array(codes)


def write_au(path, codes, bits):
    body = np.packbits((codes[:, None] >> np.arange(bits) & 1).astype(np.uint8).ravel(), bitorder="little").tobytes()
    with open(path, "wb") as file:
        file.write(b".snd" + np.array([32, len(body), ENCODINGS[bits], RATE, 1], ">u4").tobytes() + bytes(8) + body)


def read_au(path, bits):
    with open(path, "rb") as file:
        data = file.read()
    rows = np.unpackbits(np.frombuffer(data[int.from_bytes(data[4:8], "big") :], np.uint8), bitorder="little")
    rows = rows[: len(rows) // bits * bits].reshape(-1, bits).astype(int)
    return rows @ (1 << np.arange(bits)), int.from_bytes(data[12:16], "big")


def ffmpeg_write(path, samples, bits):
    with av.open(path, "w") as file:
        stream = file.add_stream("g726le", rate=RATE)
        stream.layout, stream.bit_rate = "mono", bits * RATE
        frame = av.AudioFrame.from_ndarray((32768 * samples).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for given in (frame, None):
            file.mux(stream.encode(given))


def ffmpeg_read(path):
    with av.open(path) as file:
        return np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)]) / 32768


def snr(samples, other):
    size = min(len(samples), len(other))
    return 10 * np.log10(np.sum(samples[:size] ** 2) / np.sum((samples[:size] - other[:size]) ** 2))


def equal(samples, other):
    size = min(len(samples), len(other))
    return size > 15000 and np.array_equal(samples[:size], other[:size])


print("av", av.__version__, "FFmpeg", av.ffmpeg_version_info, "soundfile", soundfile.__version__, soundfile.__libsndfile_version__)
random = np.random.default_rng(0)
sound = np.convolve(random.standard_normal(2 * RATE), np.hanning(6), "same")  # low-pass noise at -20 dBFS
sound = np.round(8192 * 0.1 * sound / sound.std()) / 8192
same = True
print("SNR in dB: rows are encoders, columns decoders")
for bits in TABLES:
    print(f"\n{8 * bits} kbit/s                 G.726  FFmpeg  libsndfile")
    write_au("itu.au", G726(bits).encode(8192 * sound), bits)
    soundfile.write("libsndfile.au", sound, RATE, subtype=SUBTYPES[bits])
    ffmpeg_write("ffmpeg.au", sound, bits)
    codes, encoding = read_au("ffmpeg.au", bits)
    same &= encoding == ENCODINGS[4]
    own = snr(sound, ffmpeg_read("ffmpeg.au"))
    write_au("ffmpeg.au", codes, bits)  # the header that belongs to these codes
    table = {}
    for path in ("itu.au", "ffmpeg.au", "libsndfile.au"):
        codes = read_au(path, bits)[0]
        decoded = [G726(bits).decode(codes), ffmpeg_read(path), soundfile.read(path)[0]]
        table[path] = [snr(sound, samples) for samples in decoded]
        print(f"{path.removesuffix('.au'):22}", *(f"{value:7.1f}" for value in table[path]))
        same &= equal(G726(bits, leak=8, floor_mix=True).decode(codes), decoded[1])
        same &= equal(G726(bits, added=0).decode(codes), decoded[2])
    print(f"FFmpeg read its own file with {own:.1f} dB, which has encoding {encoding} instead of {ENCODINGS[bits]}")
    values = np.array(list(table.values()))
    same &= np.ptp(np.diag(values)) < 1 and values[0, 0] > {3: 18, 4: 25, 5: 30}[bits]
    same &= values[2, 0] < values[0, 0] - 3 and values[0, 2] < values[0, 0] - 1
    same &= bits < 5 or (values[0, 1] < 10 and values[1, 0] < 10)
    same &= own < 0 if bits != 4 else own > 25
print("\nexpected: the SNR of the diagonal everywhere")
print("seen: three dialects, equal to G.726 with the changes named above bit by bit" if same else "the behavior has changed")
sys.exit(not same)
EOF
