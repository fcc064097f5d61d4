"""The only place that converts seconds, samples, frames, codebooks and bit rates."""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    sample_rate: int
    hop: int
    decoder_delay: int
    num_codebooks: int
    codebook_size: int

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
        return _ceil_div(time + self.decoder_delay, self.hop) if time > 0 else 0

    def frames_of(self, times: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """`frames` of each length of an array."""
        return _ceil_div(times + self.decoder_delay, self.hop) * (times > 0)

    def whole_frames(self, time: int) -> int:
        """Frames that are complete after the first `time` samples."""
        return time // self.hop

    def time(self, frames: int) -> int:
        """Length in samples of the longest signal that fits in `frames` frames."""
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


def _ceil_div(numerator: "Count", denominator: int) -> "Count":
    # integers, because ten hours at 96 kHz times a sample rate exceeds the 53 bits of a float
    return -(-numerator // denominator)
