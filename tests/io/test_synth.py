"""io/synth.py: a deterministic recording with the spectra of a voice and of strings."""

import numpy as np
import pytest

from codec.io.synth import NOTES, RATE, SECONDS, synthesize
from tests.helpers.signals import synthetic_recording


@pytest.mark.slow
def test_the_recording_is_deterministic_and_has_voice_and_strings() -> None:
    audio = synthetic_recording()
    assert audio.dtype == np.float32
    assert audio.shape == (1, round(SECONDS * RATE))
    assert np.isclose(np.abs(audio).max(), 0.7)
    assert np.array_equal(audio, synthesize())

    def spectrum(begin: float, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        piece = audio[0, round(begin * RATE) : round((begin + seconds) * RATE)]
        return np.fft.rfftfreq(len(piece), 1 / RATE), np.abs(np.fft.rfft(piece * np.hanning(len(piece)))) ** 2

    # The first pluck rings alone for a quarter of a second: its strongest partial is a multiple of its pitch.
    start, pitch = NOTES[0]
    frequencies, power = spectrum(start + 0.02, 0.2)
    multiple = frequencies[np.argmax(power)] / pitch
    assert abs(multiple - round(multiple)) < 0.05
    # The s of "this" is a hiss above 4 kHz, the vowel before it a voice below.
    share = {}
    for sound, begin in (("s", 0.32), ("ih", 0.22)):
        frequencies, power = spectrum(begin, 0.05)
        share[sound] = power[frequencies > 4000].sum() / power.sum()
    assert share["s"] > 0.3
    assert share["ih"] < 0.01
