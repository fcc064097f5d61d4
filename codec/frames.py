"""The only place that converts seconds, samples, frames, codebooks and bit rates."""

from dataclasses import dataclass

from codec.errors import ConfigError


@dataclass(frozen=True)
class FrameSpec:
    """Conversions of one model.

    Example: 24000 Hz, hop 320, overlap 320, 8 codebooks of 1024: 75 frames/s, 10 bits per code, 6 kbit/s; one second (24000
    samples) takes 75 + 1 frames, and 76 frames hold 24000 samples.

    `hop` and `overlap` are in samples; `overlap` is how late the decoder's output is. Raises ConfigError for sizes that
    no model can have.
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
        """Whole bits that tell `codebook_size` values apart."""
        return (self.codebook_size - 1).bit_length()

    def frames(self, time: int) -> int:
        """Frames that hold `time` samples, with those that bring out the decoder's late end; 0 samples need none."""
        return _ceil_div(time + self.decoder_delay, self.hop) if time > 0 else 0

    def whole_frames(self, time: int) -> int:
        """Frames whose every sample is among the first `time`."""
        return time // self.hop

    def time(self, frames: int) -> int:
        """Samples of the longest signal that `frames` frames hold."""
        return max(0, frames * self.hop - self.decoder_delay)

    def seconds(self, time: int) -> float:
        """Duration of `time` samples at the model's rate."""
        return time / self.sample_rate

    def samples(self, seconds: float) -> int:
        """Samples nearest to `seconds` at the model's rate."""
        return round(seconds * self.sample_rate)

    def frames_per_packet(self, seconds: float = 1.0) -> int:
        """Frames nearest to `seconds`, at least one."""
        return max(1, round(seconds * self.frame_rate))

    def bitrate(self, num_codebooks: int) -> float:
        """Rate of the codes of `num_codebooks` codebooks, in kbit/s per channel, container not counted."""
        return num_codebooks * self.bits_per_code * self.sample_rate / (1000 * self.hop)

    def codebooks_for_bitrate(self, kbps: float) -> int:
        """Largest number of codebooks whose rate is at most `kbps` kbit/s, never more than the model has.

        Raises ConfigError where one codebook alone needs more.
        """
        fitting = [
            num_codebooks for num_codebooks in range(1, self.num_codebooks + 1) if self.bitrate(num_codebooks) <= kbps
        ]
        if not fitting:
            lowest = _ceil_div(self.bits_per_code * self.sample_rate, self.hop) / 1000
            raise ConfigError(f"{kbps} kbit/s is below this model's lowest rate: ask for {lowest:.12g} kbit/s or more")
        return fitting[-1]


def resampled_length(time: int, from_rate: int, to_rate: int) -> int:
    """Samples at `to_rate` Hz that cover `time` samples at `from_rate` Hz: the exact quotient, rounded up."""
    return _ceil_div(time * to_rate, from_rate)


def _ceil_div(numerator: int, denominator: int) -> int:
    # Integers throughout: ten hours at 96 kHz times a rate is past the 53 bits of a float.
    return -(-numerator // denominator)
