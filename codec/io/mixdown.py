"""One channel of several: their average, or the loudest channel where they cancel in the average.

    mixdown = Mixdown(2)
    for block in blocks:  # [channels, time], all of a recording
        mixdown.push(block)
    mono = [mixdown.mix(block) for block in blocks]  # [1, time]

Two channels of opposite phase, as of a microphone cable that is wired wrong, have the average 0:

    left              0.5  -0.2   0.1
    right            -0.5   0.2  -0.1
    average           0     0     0          so the left channel is used alone

Channels without anything in common lose 3 dB in an average of two, so the limit of 10 dB leaves them alone.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.float32]  # [channels, time]

CANCELED = 0.1  # 10 dB: energy of the average, relative to the mean energy of the channels
EQUAL = 10**-0.1  # 1 dB: of channels this close to the loudest, the first is used

Note = Callable[[str], None]


class Mixdown:
    """Mix the channels of one recording down, after all its blocks have been measured by `push`."""

    def __init__(self, channels: int) -> None:
        self._energies = np.zeros(channels)
        self._of_average = 0.0

    def push(self, block: Block) -> None:
        """Measure the next samples [channels, time]."""
        self._energies += np.square(block, dtype=np.float64).sum(axis=1)
        self._of_average += float(np.square(block.mean(axis=0), dtype=np.float64).sum())

    @property
    def channel(self) -> int | None:
        """The channel to use alone; None for the average."""
        if self._of_average >= CANCELED * self._energies.mean():
            return None
        return int((self._energies >= EQUAL * self._energies.max()).argmax())

    @property
    def silent(self) -> bool:
        """Whether all samples are 0."""
        return not self._energies.any()

    def mix(self, block: Block) -> Block:
        """Samples [1, time] of samples [channels, time]."""
        channel = self.channel
        return block.mean(axis=0, keepdims=True) if channel is None else block[channel : channel + 1]

    def say(self, label: str, note: Note | None) -> None:
        """Call `note` with a line that names the recording if its channels cancel."""
        if note is not None and self.channel is not None:
            note(
                f"{label}: its channels cancel in their average (opposite phase), so channel {self.channel + 1} of "
                f"{len(self._energies)} is used alone"
            )


def mixed_down(blocks: Sequence[Block], *, label: str = "", note: Note | None = None) -> list[Block]:
    """The blocks [channels, time] of a whole recording as blocks [1, time]."""
    mixdown = Mixdown(len(blocks[0]))
    for block in blocks:
        mixdown.push(block)
    mixdown.say(label, note)
    return [mixdown.mix(block) for block in blocks]


def with_channels(audio: Block, channels: int, *, label: str = "", note: Note | None = None) -> Block:
    """A whole signal [any channels, time] as [channels, time]: one channel is repeated, more are mixed down first."""
    if len(audio) == channels:
        return audio
    (mono,) = mixed_down([audio], label=label, note=note)
    return mono.repeat(channels, axis=0)
