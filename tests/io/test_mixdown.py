"""io/mixdown.py: the average of channels, or the loudest where they cancel."""

from pathlib import Path

import numpy as np
import pytest

from codec.io.audio import read_audio, write_audio
from codec.io.mixdown import Mixdown, mixed_down, with_channels

RNG = np.random.default_rng(0)
A, B = RNG.normal(0, 0.1, (2, 4000)).astype(np.float32)


@pytest.mark.parametrize(
    ("channels", "used"),
    [
        ([A, A], None),
        ([A, B], None),  # an average of unrelated channels is 3 dB below them
        ([A, 0 * A], None),
        ([0 * A, 0 * A], None),
        ([A, -A], 0),
        ([0.95 * A, -A], 0),  # 0.4 dB louder
        ([0.8 * A, -A], 1),
        ([A, -0.49 * A], None),  # 9.8 dB
        ([A, -0.51 * A], 0),  # 10.2 dB
        ([B, A, -A, -B], 0),
    ],
)
def test_the_average_or_the_loudest_channel(channels: list[np.ndarray], used: int | None) -> None:
    audio = np.stack(channels)
    mixdown = Mixdown(len(audio))
    for block in np.array_split(audio, 3, axis=1):
        mixdown.push(block)
    assert mixdown.channel == used
    expected = audio.mean(axis=0) if used is None else audio[used]
    assert np.array_equal(mixdown.mix(audio), expected[None])


def test_a_recording_whose_channels_cancel_is_named() -> None:
    notes: list[str] = []
    assert np.array_equal(np.concatenate(mixed_down([np.stack([A, -A])], label="a.wav", note=notes.append)), A[None])
    mixed_down([np.stack([A, A])], label="b.wav", note=notes.append)
    assert notes == ["a.wav: its channels cancel in their average (opposite phase), so channel 1 of 2 is used alone"]


def test_channels_of_a_model() -> None:
    both = np.stack([A, B])
    assert with_channels(both, 2) is both
    assert np.array_equal(with_channels(A[None], 2), np.stack([A, A]))
    assert np.array_equal(with_channels(both, 1), both.mean(axis=0, keepdims=True))
    np.testing.assert_allclose(with_channels(np.stack([A, B, B]), 2), np.stack([(A + 2 * B) / 3] * 2), atol=1e-7)


def test_whole_files_are_mixed_down_alike(tmp_path: Path) -> None:
    write_audio(tmp_path / "anti.wav", np.stack([A, -A]), 8000)
    mono, _ = read_audio(tmp_path / "anti.wav", mono=True)
    both, _ = read_audio(tmp_path / "anti.wav")
    assert np.array_equal(mono, both[:1])
