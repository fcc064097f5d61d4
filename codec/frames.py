"""The only place that converts seconds, samples, frames, codebooks and bit rates."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from codec.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Count = TypeVar("Count", "int", "NDArray[np.int64]")


@dataclass(frozen=True)
class FrameSpec:
    """Conversions of one model.

    Example: 24000 Hz, hop 320, decoder delay 320, 8 codebooks of 1024: 75 frames/s, 10 bits per code, 6 kbit/s; one
    second (24000 samples) takes 75 + 1 frames, and 76 frames hold 24000 samples.

    `hop` and `decoder_delay`, the delay of the decoder's output, are in samples. Raises ConfigError for sizes that no
    model can have.

    With `segment`, a signal is coded as segments of that many samples that begin every `segment_stride` samples, each
    in its own frames. Example: hop 320, segments of 48000 (150 frames) every 47520; 95500 samples are segments of
    48000, 47980 and 460 samples, and take 150 + 150 + 2 frames.
    """

    sample_rate: int
    hop: int
    decoder_delay: int
    num_codebooks: int
    codebook_size: int
    segment: int = 0
    segment_stride: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("sample_rate", 1),
            ("hop", 1),
            ("decoder_delay", 0),
            ("num_codebooks", 1),
            ("codebook_size", 2),
        ):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{name} is {value}: it must be at least {least}")
        if self.segment and not self.segment <= 2 * self.segment_stride <= 2 * self.segment:
            raise ConfigError(f"segment_stride is {self.segment_stride}: it must be half to all of {self.segment}")

    @property
    def frame_rate(self) -> float:
        """Frames per second, in Hz."""
        return self.sample_rate / self.hop

    @property
    def bits_per_code(self) -> int:
        """Bits of a code at fixed width: ceil(log2(codebook_size))."""
        return (self.codebook_size - 1).bit_length()

    def frames(self, time: int) -> int:
        """Frames that hold `time` samples, including the frames that flush the decoder's delay; 0 for 0 samples."""
        if time <= 0:
            return 0
        if not self.segment:
            return _ceil_div(time + self.decoder_delay, self.hop)
        whole = self.whole_segments(time)
        rest = time - whole * self.segment_stride
        return whole * _ceil_div(self.segment, self.hop) + sum(_ceil_div(part, self.hop) for part in self._parts(rest))

    def whole_segments(self, time: int) -> int:
        """Segments that are complete after the first `time` samples."""
        return max(0, (time - self.segment) // self.segment_stride + 1)

    def segments(self, frames: int) -> list[int]:
        """Frames of each segment of a signal of that many frames. Lengths of as many frames have the same segments."""
        return [_ceil_div(part, self.hop) for part in self._parts(self.time(frames))]

    def _parts(self, time: int) -> list[int]:
        """Samples of each segment."""
        return [min(self.segment, time - first) for first in range(0, time, self.segment_stride)]

    def frames_of(self, times: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """`frames` of each length of an array."""
        if self.segment:
            out = times.copy()
            out[:] = [self.frames(int(time)) for time in times]
            return out
        return _ceil_div(times + self.decoder_delay, self.hop) * (times > 0)

    def whole_frames(self, time: int) -> int:
        """Frames that are complete after the first `time` samples."""
        return time // self.hop

    def time(self, frames: int) -> int:
        """Length in samples of the longest signal that fits in `frames` frames."""
        if self.segment:
            return bisect_right(range(frames * self.hop + 1), frames, key=self.frames) - 1
        return max(0, frames * self.hop - self.decoder_delay)

    def seconds(self, time: int) -> float:
        """Duration of `time` samples at the model's rate."""
        return time / self.sample_rate

    def samples(self, seconds: float) -> int:
        """Number of samples nearest to `seconds` at the model's rate."""
        return round(seconds * self.sample_rate)

    def frames_per_packet(self, seconds: float = 1.0) -> int:
        """Number of frames nearest to `seconds`, at least one."""
        return max(1, round(seconds * self.frame_rate))

    def frames_per_equal_packet(self, seconds: float, *, frames: int) -> int:
        """Number of frames of packets of about `seconds` that divide a signal of `frames` frames equally.

        Example: 51 frames of 20 ms in packets of about 1 s are one packet of 51 frames instead of 50 and 1.
        """
        return _ceil_div(frames, max(1, round(frames / self.frames_per_packet(seconds))))

    def bitrate(self, num_codebooks: int) -> float:
        """Bit rate of the codes of `num_codebooks` codebooks in kbit/s per channel, without the container."""
        return num_codebooks * self.bits_per_code * self.sample_rate / (1000 * self.hop)

    def codebooks_for_bitrate(self, kbps: float, *, choices: Sequence[int] | None = None) -> int:
        """Largest number of codebooks whose bit rate is at most `kbps` kbit/s.

        `choices` are the numbers of codebooks to choose from, 1 to `num_codebooks` if None. Raises ConfigError if the
        fewest codebooks have a higher bit rate.
        """
        choices = range(1, self.num_codebooks + 1) if choices is None else choices
        fitting = [number for number in choices if self.bitrate(number) <= kbps]
        if not fitting:
            lowest = _ceil_div(min(choices) * self.bits_per_code * self.sample_rate, self.hop) / 1000
            raise ConfigError(f"{kbps} kbit/s is below this model's lowest rate: ask for {lowest:.12g} kbit/s or more")
        return max(fitting)


def resampled_length(time: int, from_rate: int, to_rate: int) -> int:
    """Length after resampling `time` samples from `from_rate` to `to_rate` Hz: the exact quotient, rounded up."""
    return _ceil_div(time * to_rate, from_rate)


def real_time(speed: float) -> str:
    """A speed in seconds of audio per second, as reports state it: "28 × real time", "0.042 × real time"."""
    return f"{speed:.0f} × real time" if speed >= 10 else f"{speed:.2g} × real time"


def is_narrowband(rate: int, model_rate: int) -> bool:
    """Whether a recording has less than half of a model's sample rate: the upper half of the model's band is empty."""
    return 2 * rate < model_rate


@dataclass
class Narrowband:
    """Recordings with less than half of a model's sample rate, counted by the two rates in Hz.

    Example: of three recordings of 8 kHz for a model of 24 kHz, `notes("file")` is ["3 files: 8 kHz, resampled to
    24 kHz: nothing above 4 kHz"].
    """

    found: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)
    """The name of the first recording and the number of all, by sample rate and model's sample rate."""

    def add(self, name: str, rate: int, model_rate: int) -> None:
        """Count a recording if it is one."""
        if is_narrowband(rate, model_rate):
            self._count((rate, model_rate), name, 1)

    def update(self, other: "Narrowband") -> None:
        """Count the recordings of another count too."""
        for rates, (name, count) in other.found.items():
            self._count(rates, name, count)

    def notes(self, noun: str) -> list[str]:
        """What these recordings lack, a line for each pair of rates; `noun` is that of one recording."""
        return [
            f"{name if count == 1 else f'{count} {noun}s'}: {rate / 1000:g} kHz, resampled to {model_rate / 1000:g} "
            f"kHz: nothing above {rate / 2000:g} kHz"
            for (rate, model_rate), (name, count) in sorted(self.found.items())
        ]

    def _count(self, rates: tuple[int, int], name: str, count: int) -> None:
        first, before = self.found.get(rates, (name, 0))
        self.found[rates] = first, before + count


def _ceil_div(numerator: "Count", denominator: int) -> "Count":
    # integers, because ten hours at 96 kHz times a sample rate exceeds the 53 bits of a float
    return -(-numerator // denominator)
