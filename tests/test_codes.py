"""The view of codes: its arithmetic by hand, and cuts against what a model decodes."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from codec.codes import Codes
from codec.errors import UsageError
from codec.frames import FrameSpec
from tests.tiny import tiny_model

MATH = FrameSpec(sample_rate=24000, hop=480, decoder_delay=480, num_codebooks=12, codebook_size=1024)
CODES = torch.arange(12 * 51).view(1, 12, 51)
VIEW = Codes(CODES, MATH, 24000)


def test_the_example_of_the_docstring() -> None:
    assert (VIEW.frames, VIEW.num_codebooks, VIEW.seconds, VIEW.bitrate) == (51, 12, 1.0, 6.0)
    assert VIEW[:26].seconds == 0.5
    assert Codes(CODES[:, :4], MATH, 24000).bitrate == 2.0


def test_numpy_is_int64() -> None:
    array = VIEW.numpy()
    assert array.dtype == np.int64
    assert np.array_equal(array, CODES)


@pytest.mark.parametrize(
    ("cut", "frames", "length"),
    [
        (slice(None), range(51), 24000),
        (slice(0, 26), range(26), 12000),
        (slice(10, 20), range(10, 20), 9 * 480),
        (slice(-11, None), range(40, 51), 24000 - 40 * 480),
        (slice(50, None), range(50, 51), 0),
        (slice(20, 10), range(0), 0),
        (slice(40, 1000), range(40, 51), 24000 - 40 * 480),
        (slice(np.int64(3), np.int64(5)), range(3, 5), 480),
    ],
)
def test_slices_of_frames(cut: slice, frames: range, length: int) -> None:
    part = VIEW[cut]
    assert torch.equal(part.codes, CODES[..., list(frames)])
    assert part.length == length


@pytest.mark.parametrize("cut", [3, slice(0, 9, 2), slice(0.5, 1.5), "a", (slice(1), slice(1))])
def test_invalid_slices(cut: Any) -> None:
    with pytest.raises(UsageError, match=r"write view\[10:60\], or between"):
        VIEW[cut]


@pytest.mark.parametrize(
    ("start", "stop", "first", "length"),
    [
        (0.0, 1.0, 0, 24000),
        (0.5, 1.0, 25, 12000),
        (0.51, 0.6, 25, 2400),
        (0.1, 0.1, 5, 0),
        (0.333, 0.334, 16, 8016 - 7680),
    ],
)
def test_cuts_by_seconds(start: float, stop: float, first: int, length: int) -> None:
    part = VIEW.between(start, stop)
    frames = MATH.frames(length)
    assert torch.equal(part.codes, CODES[..., first : first + frames])
    assert part.length == length


@pytest.mark.parametrize("span", [(-0.1, 0.5), (0.5, 0.4), (0.5, 1.1), (float("nan"), 1.0)])
def test_seconds_out_of_range(span: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="is not within the 1 s of these codes"):
        VIEW.between(*span)


def test_a_slice_decodes_to_its_part_of_the_audio() -> None:
    """From its second hop on, because the first fades in and networks depend on a few past frames."""
    model = tiny_model()  # whose networks are silent
    audio = 0.2 * torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    view = model.codes(audio)
    whole = model.decode(view)
    for part, begin in ((view[10:30], 800), (view.between(0.1, 0.3), 800), (view.between(0.2, 0.5), 1600)):
        decoded = model.decode(part)
        assert decoded.shape[-1] == part.length
        assert part.seconds == part.length / 8000
        same = decoded[..., 80:] - whole[..., begin + 80 : begin + part.length]
        assert same.abs().max() < 0.02


def test_invalid_views() -> None:
    with pytest.raises(UsageError, match=r"codes are \[51\]"):
        Codes(CODES[0, 0], MATH, 5)
    with pytest.raises(UsageError, match="51 frames hold 0 to 24000 samples, not 24001"):
        Codes(CODES, MATH, 24001)


def test_views_pickle() -> None:
    copy = pickle.loads(pickle.dumps(VIEW))
    assert torch.equal(copy.codes, CODES)
    assert (copy.frame_spec, copy.length) == (MATH, 24000)
