"""Several recordings one after another in one file, as recorders of web radio and `cat` leave them, read as one.

libsndfile reads the first one of Ogg streams and of FLAC files, and nothing of the others. `Chain` reads all of them:

    radio.ogg      stream of 3 s | stream of 5 s | stream of 2 s
    links          bytes of each, 3 s, 5 s, 2 s
    seek(4 s)      opens the second stream, 1 s from its start
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from codec.errors import UnsupportedAudio
from codec.io import flac, ogg
from codec.io.pieces import Pieces

Open = Callable[[Pieces], soundfile.SoundFile]
SETTLING = {"VORBIS": 16384, "MPEG_LAYER_III": 4096}
"""Samples to decode before a part, by subtype: after one in five Vorbis seeks, libsndfile 1.2.2 decodes a thousand
samples wrongly, and near the end of a file it may be at another position (findings/vorbis_seek.sh)."""
UNKNOWN = 2**63 - 1  # samples, libsndfile's SF_COUNT_MAX: the header states no length
_SEEK_PAST_END = ("ALAC_16", "ALAC_20", "ALAC_24", "ALAC_32")
"""Subtypes in whose files libsndfile seeks beyond the last packet that is there, and reads silence."""
_BLOCK = 2**14  # samples that are decoded at once to be passed over
_SMALL_BLOCK = 2**10  # samples that are decoded at once to be counted
_MOST_KNOWN = 2**16


class Link(NamedTuple):
    """One recording of a chain: its bytes, and the samples per channel that can be read."""

    first: int
    end: int
    time: int


_known: dict[tuple[int, ...], tuple[Link, ...]] = {}
"""The links of files by device, inode, size and time of change, because training opens the same files many times."""


def links(file: BinaryIO, open_link: Open, label: str) -> tuple[Link, ...]:
    """The recordings that follow each other in an Ogg or FLAC file; none if it has only one that libsndfile reads.

    Raises UnsupportedAudio if one of them cannot be read or differs in sample rate, channels or sample format.
    """
    status = os.fstat(file.fileno())
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    found = _known.get(identity)
    if found is None:
        found = _found(file, open_link, label)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[identity] = found
    return found


def _found(file: BinaryIO, open_link: Open, label: str) -> tuple[Link, ...]:
    starts = ogg.starts(file) or flac.starts(file)
    if len(starts) < 2 and not (starts and ogg.flac(file, 0, 1)):
        return ()
    runs = list(zip(starts, [*starts[1:], file.seek(0, os.SEEK_END)], strict=True))
    kinds = []
    found = []
    for number, (first, end) in enumerate(runs, 1):
        try:
            with _opened(open_link, file, first, end) as source:
                kinds.append((source.samplerate, source.channels, source.subtype))
            found.append(Link(first, end, readable_length(partial(_opened, open_link, file, first, end))))
        except soundfile.LibsndfileError as error:
            if len(runs) == 1:
                return ()
            raise UnsupportedAudio(
                f"{label} holds {len(runs)} recordings one after another, and libsndfile cannot read number "
                f"{number} at byte {first}: split it, or convert it to WAV or FLAC first"
            ) from error
    if len(set(kinds)) > 1:
        each = ", ".join(dict.fromkeys(f"{rate} Hz, {channels} ch, {subtype}" for rate, channels, subtype in kinds))
        raise UnsupportedAudio(
            f"{label} holds {len(runs)} recordings of different kinds one after another ({each}): split it, or "
            "convert it to WAV or FLAC first (encode and tokenize take --ffmpeg)"
        )
    return tuple(found)


def _opened(open_link: Open, file: BinaryIO, first: int, end: int) -> soundfile.SoundFile:
    return open_link(Pieces(file, b"", ogg.flac(file, first, end) or [(first, end)]))


def readable_length(opened: Callable[[], soundfile.SoundFile]) -> int:
    """Samples that can be read: the stated number if the last one is there, else counted by decoding up to the end or
    to the first damage."""
    with opened() as source, suppress(soundfile.LibsndfileError):
        stated = UNKNOWN if source.subtype in _SEEK_PAST_END else source.frames
        place = max(0, stated - SETTLING.get(source.subtype, 1))
        if stated < UNKNOWN and source.seek(place) == place and place + _count(source) == stated:
            return int(stated)
    with opened() as source:  # again, because a seek that failed may leave it anywhere
        return _count(source)


def _count(source: soundfile.SoundFile) -> int:
    """Samples from here on; of a block with damage in it, none."""
    buffer = np.empty((_SMALL_BLOCK, source.channels), np.float32)
    count = 0
    with suppress(soundfile.LibsndfileError):
        while read := source.buffer_read_into(buffer, "float32"):
            count += read
    return count


class Chain:
    """The part of a SoundFile that is needed to read one, for recordings that follow each other."""

    def __init__(self, file: BinaryIO, found: tuple[Link, ...], open_link: Open) -> None:
        self._file, self._links, self._open = file, found, open_link
        self._starts = [0, *accumulate(link.time for link in found)]  # and the end
        self._number = 0
        self._source = self._opened()
        self.samplerate, self.channels = self._source.samplerate, self._source.channels
        self.format, self.subtype = self._source.format, self._source.subtype
        self.frames = self._starts[-1]

    def _opened(self) -> soundfile.SoundFile:
        link = self._links[self._number]
        return _opened(self._open, self._file, link.first, link.end)

    def close(self) -> None:
        """Close the recording that is open."""
        self._source.close()

    def buffer_read_into(self, buffer: NDArray[np.float32], dtype: str) -> int:
        """Fill `buffer` [time, channels], across the ends of recordings; the number of samples read."""
        read = 0
        while read < len(buffer):
            count = self._source.buffer_read_into(buffer[read:], dtype)
            read += count
            if count == 0 and not self._enter(self._number + 1):
                break
        return read

    def seek(self, frame: int) -> int:
        """Move to a sample and return it; the end if it is beyond the end."""
        frame = min(frame, self.frames)
        self._enter(min(bisect_right(self._starts, frame), len(self._links)) - 1)
        inside = frame - self._starts[self._number]
        # Not close to the end of a recording, where a seek may be inexact.
        place = max(0, min(inside, self._links[self._number].time - SETTLING.get(self.subtype, 0)))
        if self._source.seek(place) != place:
            raise soundfile.LibsndfileError(0, "seeking: ")
        self._pass_over(inside - place)
        return frame

    def _pass_over(self, time: int) -> None:
        buffer = np.empty((min(time, _BLOCK), self.channels), np.float32)
        while time > 0 and (read := self._source.buffer_read_into(buffer[:time], "float32")):
            time -= read

    def _enter(self, number: int) -> bool:
        """Open a recording at its first sample, unless it is open; False if there is none."""
        if number >= len(self._links):
            return False
        if number != self._number:
            self._source.close()
            self._number = number
            self._source = self._opened()
        return True
