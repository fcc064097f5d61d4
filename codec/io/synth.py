"""Synthesize a few seconds of audio, a spoken sentence and plucked strings, as a test recording; deterministic.

The voice is a formant synthesizer after Klatt ("Software for a cascade/parallel formant synthesizer", 1980): harmonics
and noise, filtered by the resonances of a vocal tract that moves from phoneme to phoneme.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RATE = 44100
CONTROL_RATE = 200  # Hz; update rate of the vocal tract (5 ms)

Samples = NDArray[np.floating]


class Phoneme(NamedTuple):
    """One phoneme: the three lowest formants in Hz (Klatt's tables II and III), levels of voicing and noise."""

    formants: tuple[float, float, float]
    voice: float = 1.0
    noise: float = 0.0
    noise_from: float = 500.0  # Hz; cutoff of the high-pass noise of frication


PHONEMES = {
    "dh": Phoneme((270, 1290, 2540), 0.35, 0.02, 1400),
    "ih": Phoneme((400, 1800, 2570)),
    "s": Phoneme((320, 1390, 2530), 0.0, 0.60, 4200),
    "z": Phoneme((240, 1390, 2530), 0.25, 0.28, 4200),
    "ah": Phoneme((620, 1220, 2550)),
    "v": Phoneme((220, 1100, 2080), 0.35, 0.03, 1200),
    "o": Phoneme((550, 960, 2400)),
    "i": Phoneme((360, 1820, 2450)),
    "m": Phoneme((260, 1270, 2130), 0.40),
    "n": Phoneme((260, 1340, 2470), 0.40),
    "e": Phoneme((480, 1720, 2520)),
    "d": Phoneme((200, 1600, 2600), 0.06),
    "b": Phoneme((200, 1100, 2150), 0.06),
    "burst": Phoneme((300, 1600, 2600), 0.4, 0.12, 2500),
    "er": Phoneme((470, 1270, 1540)),
    ".": Phoneme((450, 1450, 2450), 0.0),
}

# "This is a voice, made of numbers." Phoneme, duration in ms, pitch in Hz.
SENTENCE = """
. 150 120  dh 60 122  ih 80 128  s 95 126  ih 75 120  z 70 116  ah 60 114  v 65 118  o 120 138  i 130 126  s 130 110
. 160 108  m 85 112  e 95 132  i 80 128  d 45 116  burst 12 114  ah 55 112  v 60 108  n 75 112  ah 115 124  m 80 108
b 45 100  burst 8 100  er 170 96  z 140 86  . 400 80
"""

NOTES = ((2.35, 261.63), (2.60, 329.63), (2.85, 392.00), (3.10, 523.25), (3.35, 493.88), (3.60, 392.00), (3.85, 261.63))
SECONDS = 5.5


def synthesize() -> NDArray[np.float32]:
    """Synthesize the recording: float32 [1, time] at `RATE` Hz, peak 0.7."""
    random = np.random.default_rng(0)
    time = np.arange(round(SECONDS * RATE)) / RATE
    audio = np.zeros(len(time))
    voice = _speak(random)
    audio[: len(voice)] = voice
    for start, pitch in NOTES:
        begin = round(start * RATE)
        audio[begin:] += 2.0 * _pluck(time[:-begin], pitch)
    hiss = 1e-4 * random.standard_normal(len(time))  # the noise floor of a quiet room
    recording = _reverberate(audio, random) + hiss
    return np.asarray(0.7 * recording / np.abs(recording).max(), dtype=np.float32)[None]


def _speak(random: np.random.Generator) -> Samples:
    formants, voice, noise, noise_from, pitch = _glide()
    control = np.arange(len(pitch)) / CONTROL_RATE
    time = np.arange(round(control[-1] * RATE)) / RATE
    pitch *= 1 + 0.012 * _smooth(random.standard_normal(len(control)), 15) * 15**0.5  # jitter, as in any voice
    phase = 2 * np.pi * np.cumsum(np.interp(time, control, pitch)) / RATE

    audio = np.zeros(len(time))
    rotation = np.exp(1j * phase)
    carrier = np.ones_like(rotation)
    for harmonic in range(1, int(10_000 / pitch.min())):
        frequency = harmonic * pitch
        carrier *= rotation
        # The glottal source falls by 12 dB per octave above 200 Hz; radiation at the lips adds 6 dB per octave.
        source = frequency / 200 / (1 + (frequency / 200) ** 2) * voice * (frequency < 11_000)
        shape = source * _tract(frequency, formants)
        audio += np.interp(time, control, shape.real) * carrier.real
        audio -= np.interp(time, control, shape.imag) * carrier.imag

    # Noise, filtered frame by frame: each control point is the center of a Hann window with half overlap.
    hop = RATE // CONTROL_RATE
    bins = np.fft.rfftfreq(2 * hop, 1 / RATE)
    window = np.hanning(2 * hop + 1)[:-1]
    for frame in range(len(control) - 2):
        edge = (bins / noise_from[frame]) ** 4
        breath = 0.02 * voice[frame] * np.abs(_tract(bins, formants[:, frame]))
        shape = breath + noise[frame] * edge / (1 + edge) / (1 + (bins / 9000) ** 4)
        hiss = np.fft.irfft(np.fft.rfft(random.standard_normal(2 * hop)) * shape)
        audio[frame * hop : (frame + 2) * hop] += window * hiss
    return audio


def _glide() -> tuple[Samples, ...]:
    """Formants [3, points]; levels of voice and noise, noise cutoff and pitch [points] over the sentence."""
    words = SENTENCE.split()
    ends = np.cumsum([float(length) for length in words[1::3]]) / 1000
    now = np.searchsorted(ends, np.arange(0, ends[-1], 1 / CONTROL_RATE))  # the phoneme of each point
    phonemes = [PHONEMES[words[3 * index]] for index in now]
    # Tongue and pitch move slowly (50 and 90 ms), glottis and constrictions fast (15 to 25 ms).
    return (
        np.stack([_smooth(np.array([phoneme.formants[i] for phoneme in phonemes]), 10) for i in range(3)]),
        _smooth(np.array([phoneme.voice for phoneme in phonemes]), 5),
        _smooth(np.array([phoneme.noise for phoneme in phonemes]), 3),
        np.array([phoneme.noise_from for phoneme in phonemes]),
        _smooth(np.array([float(words[3 * index + 2]) for index in now]), 18),
    )


def _tract(frequency: Samples, formants: Samples) -> NDArray[np.complex128]:
    """Frequency response of the resonances in cascade: `formants` [3, ...], then one per kHz; bandwidth increases."""
    response = np.ones(len(frequency), dtype=np.complex128)
    for index, center in enumerate([*formants, *np.arange(3500.0, 12_000.0, 1000.0)]):
        bandwidth = 60 + 30 * index
        response *= center**2 / (center**2 - frequency**2 + 1j * frequency * bandwidth)
    return response


def _pluck(time: Samples, pitch: float) -> Samples:
    """A plucked string: partials are slightly sharp, because strings are stiff; high partials decay first."""
    audio = np.zeros(len(time))
    for partial in range(1, 30):
        frequency = partial * pitch * (1 + 1e-4 * partial**2) ** 0.5
        loudness = np.sin(np.pi * partial * 0.19) / partial**1.4  # plucked at 0.19 of its length
        audio += loudness * np.exp(-time * (1.5 + partial)) * np.sin(2 * np.pi * frequency * time)
    return audio


def _reverberate(audio: Samples, random: np.random.Generator) -> Samples:
    """Add the reverberation of a small room: noise with a decay of 60 dB in 0.35 s, well below the direct sound."""
    tail = np.arange(round(0.35 * RATE))
    room = random.standard_normal(len(tail)) * 10 ** (-3 * tail / len(tail)) * 0.006
    room[0] = 1.0
    size = len(audio) + len(room)
    return np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(room, size), size)[: len(audio)]


def _smooth(values: Samples, width: int) -> Samples:
    """Moving average with a Hann window of `width` points; edge values are repeated."""
    window = np.hanning(width + 2)[1:-1]
    padded = np.pad(values, (width // 2, (width - 1) // 2), mode="edge")
    return np.convolve(padded, window / window.sum(), mode="valid")
