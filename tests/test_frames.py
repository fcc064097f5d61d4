"""frames.py against counting, exact fractions and numbers worked out by hand."""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec.errors import ConfigError
from codec.frames import FrameSpec, Narrowband, real_time, resampled_length

MATH = FrameSpec(sample_rate=24000, hop=320, decoder_delay=320, num_codebooks=8, codebook_size=1024)
frame_specs = st.builds(
    FrameSpec,
    sample_rate=st.integers(1, 200_000),
    hop=st.integers(1, 700),
    decoder_delay=st.integers(0, 1500),
    num_codebooks=st.integers(1, 20),
    codebook_size=st.integers(2, 5000),
)


def test_conversions_by_hand() -> None:
    assert MATH.frame_rate == 75
    assert MATH.bits_per_code == 10
    assert [MATH.frames(time) for time in (0, 1, 320, 321, 640, 24000)] == [0, 2, 2, 3, 3, 76]
    assert [MATH.time(frames) for frames in (0, 1, 2, 3, 76)] == [0, 0, 320, 640, 24000]
    assert [MATH.bitrate(num_codebooks) for num_codebooks in (1, 2, 8)] == [0.75, 1.5, 6.0]
    assert MATH.seconds(36000) == 1.5
    assert MATH.samples(1.5) == 36000
    assert MATH.frames_per_packet() == 75
    assert MATH.frames_per_packet(0.001) == 1


@given(math_=frame_specs, time=st.integers(1, 3000))
def test_frames_are_the_fewest_that_hold_the_signal(math_: FrameSpec, time: int) -> None:
    count = 0
    while count * math_.hop - math_.decoder_delay < time:
        count += 1
    assert math_.frames(time) == count
    assert math_.time(math_.frames(time)) >= time
    assert math_.time(math_.frames(time) - 1) < time


@given(math_=frame_specs, frames=st.integers(0, 10**9))
def test_time_is_the_longest_signal(math_: FrameSpec, frames: int) -> None:
    longest = math_.time(frames)
    assert math_.frames(longest) <= frames
    assert math_.frames(longest + 1) > frames


@pytest.mark.parametrize("size", [2, 3, 4, 5, 1000, 1024, 1025, 4096])
def test_bits_represent_every_code(size: int) -> None:
    bits = FrameSpec(24000, 320, 320, 8, size).bits_per_code
    assert 2 ** (bits - 1) < size <= 2**bits


@given(math_=frame_specs, time=st.integers(0, 10**13))
def test_whole_frames_have_all_their_samples(math_: FrameSpec, time: int) -> None:
    whole = math_.whole_frames(time)
    assert whole * math_.hop <= time < (whole + 1) * math_.hop


@given(math_=frame_specs, kbps=st.floats(0.001, 500))
def test_codebooks_for_bitrate_is_the_largest_that_fits(math_: FrameSpec, kbps: float) -> None:
    per_codebook = Fraction(math_.bits_per_code * math_.sample_rate, math_.hop * 1000)
    fitting = math.floor(Fraction(kbps) / per_codebook)
    if math.isclose(kbps, float(fitting * per_codebook)) or math.isclose(kbps, float((fitting + 1) * per_codebook)):
        return  # decided by rounding; the next test looks at exact rates
    if fitting == 0:
        with pytest.raises(ConfigError):
            math_.codebooks_for_bitrate(kbps)
    else:
        assert math_.codebooks_for_bitrate(kbps) == min(fitting, math_.num_codebooks)


@given(math_=frame_specs, data=st.data())
def test_the_bitrate_of_a_model_gives_all_its_codebooks(math_: FrameSpec, data: st.DataObject) -> None:
    num_codebooks = data.draw(st.integers(1, math_.num_codebooks))
    assert math_.codebooks_for_bitrate(math_.bitrate(num_codebooks)) == num_codebooks


def test_rounded_bit_rates() -> None:
    thirds = FrameSpec(
        sample_rate=24000, hop=360, decoder_delay=360, num_codebooks=12, codebook_size=1024
    )  # 2/3 kbit/s per codebook
    assert thirds.codebooks_for_bitrate(2.0) == 3
    assert thirds.codebooks_for_bitrate(float("inf")) == 12
    assert thirds.codebooks_for_bitrate(99) == 12


@given(math_=frame_specs)
def test_the_lowest_rate_in_the_message_is_accepted(math_: FrameSpec) -> None:
    with pytest.raises(ConfigError, match="lowest rate") as caught:
        math_.codebooks_for_bitrate(0)
    advice = Decimal(str(caught.value).split("ask for ")[1].split()[0])
    assert math_.codebooks_for_bitrate(float(advice)) >= 1


def test_nan_is_not_a_bitrate() -> None:
    with pytest.raises(ConfigError, match="nan"):
        MATH.codebooks_for_bitrate(float("nan"))


@pytest.mark.slow
@given(
    time=st.integers(0, 10**13),
    from_rate=st.sampled_from([1, 8000, 11025, 22050, 44100, 48000, 96000, 2**31 - 1]),
    to_rate=st.sampled_from([8000, 24000, 44100, 96000]),
)
def test_resampled_length_is_exact(time: int, from_rate: int, to_rate: int) -> None:
    length = resampled_length(time, from_rate, to_rate)
    assert length == math.ceil(Fraction(time) * to_rate / from_rate)


@pytest.mark.parametrize(
    ("field", "value"),
    [("sample_rate", 0), ("hop", 0), ("decoder_delay", -1), ("num_codebooks", 0), ("codebook_size", 1)],
)
def test_invalid_sizes(field: str, value: int) -> None:
    sizes = {"sample_rate": 24000, "hop": 320, "decoder_delay": 320, "num_codebooks": 8, "codebook_size": 1024}
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        FrameSpec(**{**sizes, field: value})


@pytest.mark.parametrize(
    ("speed", "text"), [(0.0417, "0.042"), (0.5, "0.5"), (2.34, "2.3"), (9.97, "10"), (28.4, "28"), (1234.5, "1234")]
)
def test_reports_of_slow_runs_state_a_figure(speed: float, text: str) -> None:
    assert real_time(speed) == f"{text} × real time"


def test_recordings_below_half_of_a_rate_are_counted_by_both_rates() -> None:
    one, other = Narrowband(), Narrowband()
    for number, rate in enumerate((8000, 11_999, 12_000, 24_000, 48_000)):
        one.add(f"{number}.wav", rate, 24_000)
    for name, rate, model_rate in (("a.wav", 8000, 24_000), ("b.wav", 8000, 44_100), ("c.wav", 22_050, 44_100)):
        other.add(name, rate, model_rate)
    one.update(other)
    assert one.notes("clip") == [
        "2 clips: 8 kHz, resampled to 24 kHz: nothing above 4 kHz",
        "b.wav: 8 kHz, resampled to 44.1 kHz: nothing above 4 kHz",
        "1.wav: 11.999 kHz, resampled to 24 kHz: nothing above 5.9995 kHz",
    ]
    assert len(other.notes("file")) == 2
