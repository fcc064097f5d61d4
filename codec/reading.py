"""Random access to the audio of .codec files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from codec.compression import Model, model_of, restored_size
from codec.errors import UsageError
from codec.io import bitstream
from codec.io.audio import Block
from codec.splicing import Restoration


class CompressedFile:
    """The audio of a .codec file, decoded where it is asked for. Use `codec.open`.

    `rate` is the sample rate in Hz, `channels` the number of channels, `len(file)` the number of samples per channel.

    A part has the samples of the whole, whatever part it is:

        with codec.open("talk.codec") as talk:
            one_second = talk[talk.rate : 2 * talk.rate]  # float32 [channels, time]
    """

    def __init__(self, path: str | Path | bytes, *, model: Model | None, rate: int | None, device: str) -> None:
        with ExitStack() as stack:
            self._reader = stack.enter_context(bitstream.open_reader(path))
            if not self._reader.seekable:
                raise UsageError(f"{self._reader.label} is a pipe, which has no parts: save it as a file")
            self.rate, time = restored_size(self._reader, rate)
            self.channels = self._reader.header.channels
            self._time = time or 0
            self._model = model_of(self._reader, model, device)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def __len__(self) -> int:
        return self._time

    @property
    def seconds(self) -> float:
        """Duration."""
        return self._time / self.rate

    def __getitem__(self, part: slice) -> Block:
        """Decode samples [channels, time] as float32, full scale 1; slices as of any sequence, without a step.

        Raises UsageError for anything but such a slice, and DamagedFile if a packet of the part is damaged.
        """
        try:
            first, last, step = part.indices(self._time)
        except (AttributeError, TypeError) as error:
            raise UsageError(f"{part!r} is not a slice of whole samples: write file[16000:32000]") from error
        if step != 1:
            raise UsageError(f"{part!r} has a step: slice without one")
        blocks = list(self._blocks(first, last)) if last > first else []
        return np.concatenate([np.zeros((self.channels, 0), np.float32), *blocks], axis=1)

    def blocks(self, time: int) -> Iterator[Block]:
        """Decode the whole file as blocks [channels, time], the last one shorter. Raises as slices."""
        rest = np.zeros((self.channels, 0), np.float32)
        for block in self._blocks(0, self._time):
            rest = np.concatenate([rest, block], axis=1)
            while rest.shape[1] >= time:
                yield rest[:, :time]
                rest = rest[:, time:]
        if rest.shape[1]:
            yield rest

    def _blocks(self, first: int, last: int) -> Iterator[Block]:
        restoration = Restoration(self._reader, self._model, rate=self.rate, part=(first, last))
        for block in restoration.blocks():
            if restoration.damages:
                break
            yield block
        if restoration.damages:
            raise self._reader.damaged(restoration.damages[0])


def open(  # noqa: A001 (used as codec.open)
    path: str | Path | bytes, *, model: Model | None = None, rate: int | None = None, device: str = "auto"
) -> CompressedFile:
    """Open a .codec file, or its content as bytes, to decode parts of it: `codec.open("talk.codec")[16000:32000]`.

    The audio has the source's sample rate, or `rate` Hz. `model` and `device` as in `codec.decode_file`.

    Raises UsageError, InputNotFound, UnsupportedAudio, UnknownModel, WeightsMismatch, DamagedFile.
    """
    return CompressedFile(path, model=model, rate=rate, device=device)
