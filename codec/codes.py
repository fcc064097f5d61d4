"""A view of codes with their number of frames, duration and bit rate, which can be cut in time.

Example at 24 kHz, hop 480, 12 codebooks of 1024, decoder delay 480 samples:

    view = model.codes(audio)  # 24000 samples: 51 frames
    view.seconds, view.bitrate  # 1.0 s, 6.0 kbit/s
    view[:26].seconds  # 0.5 s: 26 frames hold 26 * 480 - 480 = 12000 samples
    model.decode(view)  # [1, 1, 24000]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from codec.errors import UsageError
from codec.frames import FrameSpec


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes of a model with its frame spec, as `Codec.codes` returns them and `Codec.decode` takes them.

    `codes` is int64 [batch, codebooks, frames], not a copy. `length` is the number of samples at the model's rate that
    `decode` returns, at most `frame_spec.time(frames)`.
    """

    codes: Tensor
    frame_spec: FrameSpec
    length: int

    def __post_init__(self) -> None:
        if self.codes.ndim != 3:
            raise UsageError(f"codes are {list(self.codes.shape)}; give [batch, codebooks, frames]")
        if not 0 <= self.length <= (holds := self.frame_spec.time(self.frames)):
            raise UsageError(f"{self.frames} frames hold 0 to {holds} samples, not {self.length}")

    @property
    def frames(self) -> int:
        """Number of frames, including frames that flush the decoder's delay."""
        return self.codes.shape[2]

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks of these codes; codebook 0 is the coarsest."""
        return self.codes.shape[1]

    @property
    def seconds(self) -> float:
        """Duration of the decoded audio."""
        return self.frame_spec.seconds(self.length)

    @property
    def bitrate(self) -> float:
        """Bit rate in kbit/s per row at fixed width (10 bits for a codebook of 1024), without a container."""
        return self.frame_spec.bitrate(self.num_codebooks)

    def numpy(self) -> NDArray[np.int64]:
        """The codes as an int64 array [batch, codebooks, frames] on the CPU."""
        array: NDArray[np.int64] = self.codes.detach().cpu().numpy()
        return array

    def __getitem__(self, frames: slice) -> Codes:
        """Slice frames as in any sequence: view[10:60], view[-50:].

        A decoder that begins in the middle lacks the frames before: the first hop of its audio fades in.

        Raises UsageError for a slice with a step, and for anything but a slice of whole numbers.
        """
        if not isinstance(frames, slice) or frames.step not in (None, 1):
            raise UsageError(f"{frames!r} is not a slice of frames: write view[10:60], or between(0.2, 1.2) in seconds")
        try:
            first, last, _ = frames.indices(self.frames)
        except TypeError as error:
            raise UsageError(
                f"{frames!r} is not a slice of whole frames: write view[10:60], or between(0.2, 1.2) in seconds"
            ) from error
        last = max(first, last)
        holds = self.frame_spec.time(last - first)
        return Codes(
            self.codes[:, :, first:last],
            self.frame_spec,
            min(holds, max(0, self.length - first * self.frame_spec.hop)),
        )

    def between(self, start: float, stop: float) -> Codes:
        """Cut the audio from `start` to `stop` seconds; it begins with the frame that contains `start`.

        Raises UsageError unless 0 <= start <= stop <= `seconds`.
        """
        if not 0 <= start <= stop <= self.seconds:
            raise UsageError(f"{start:g} to {stop:g} s is not within the {self.seconds:g} s of these codes")
        spec = self.frame_spec
        end = min(spec.samples(stop), self.length)
        first = spec.whole_frames(spec.samples(start))
        time = max(0, end - first * spec.hop)
        return Codes(self.codes[:, :, first : first + spec.frames(time)], spec, time)


def entropy(counts: Tensor) -> Tensor:
    """Entropy in bits of code counts [..., codebook_size]; 0 without codes. The perplexity is 2 ** entropy."""
    share = counts.double() / counts.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    return -(share * share.clamp(min=1e-300).log2()).sum(dim=-1)
