r"""The .codec container, version 2: a header, packets, an end packet with an index. Integers and bytes only.

Every number of a fixed size is little endian. In the column "bytes", `v` is a number in LEB128 (7 bits in each byte,
the lowest bits first, bit 7 set in every byte but the last; at most 64 bits), `t` is a `v` and that number of bytes of
UTF-8, `b` is a `v` and that number of bytes.

The header:

    bytes  field
        8  magic: 89 43 44 43 0D 0A 1A 0A (a copy in text mode or through 7-bit channels alters it)
        2  version: 2
        2  length of the fields from here to the checksum
       32  weights hash: SHA-256 of the model's weights
        t  family of the model
        t  model: its name; empty for a model without a name
        v  source rate, Hz
        v  channels of the source
        v  time: samples per channel that the source declares; 0 if it is not known before the end
        v  sample rate of the model, Hz
        v  hop, samples at the model's rate
        v  decoder delay, samples at the model's rate
        v  model channels: channels that are coded together
        v  segment frames: frames that share a scale; 0 for a model without a scale
        v  frames per packet, at most
        v  runs: groups of neighboring codebooks of equal size; for each, the coarsest codebooks first:
             v  number of codebooks
             v  size of each
           then tagged fields up to the checksum, each of them
             v  tag
             b  content; unknown tags are skipped
        4  CRC-32 of everything before it

    tag  content
      1  sample format of the source: libsndfile's name of the subtype, "FLOAT" for example; empty if it is not known;
         "PCM_16" without this field
      2  identity of the source: v, its size in bytes, then 8 bytes of the BLAKE2b-512 hash of its content and channels
      3  network of coder 2: the first 4 bytes of the hash of its tensors
      4  mix of the channels: v, the number of coded channels, then float32 numbers [channels, coded channels]; decoded
         audio is this matrix times the coded channels
      5  a packet of tags follows the header; the content is empty
      6  settings of the encoder that change the codes, as text; the defaults without it
      7  live: no sample of a packet of `frames per packet` frames lies behind the end of the recording, so what such a
         packet completes can be played before the next one comes; the content is empty

Magic, version, length and checksum have the same positions in every version, so that a newer file can be distinguished
from a damaged one.

Packets follow. A reader skips packets of an unknown kind.

    bytes  packet
        2  marker: F5 C3
        1  kind: 0 to 31 codes by this coder, 32 more with ends, 64 more if codebooks vary by frame; 128 tags, 255 end
        b  body
        4  CRC-32 of everything before it in this packet

The body of a packet of codes:

    bytes  codes
        v  first frame: number of the first frame
        v  frames
        v  codebooks in this packet, the coarsest; those of the frame that has the most
           scale: if the model has one, float32 numbers [segments of the packet, rows]
           the codes, up to the end of the body

`codec.io.tags` describes tags, `codec.io.entropy` the coders, and `codec.io.codebook_ends` the ends of codebooks; a
writer takes the coder that gives the fewest bytes. A row is a group of `model channels` channels; the last group
repeats the last channel to fill up. Decoded audio of a segment is multiplied by its scale; a packet begins with a
segment. If the last two segments of a signal are both short and have as many frames as a whole one, or fewer, the last
segment has a packet of its own, which does not begin at a multiple of segment frames.

The body of the end packet:

    bytes  end
        v  time: samples per channel of the source
        v  frames in the file
        v  offset: bytes of the file before this packet
        v  entries of the index, one for every 16th packet of codes but the first; for each:
             v  frames since the entry before
             v  bytes since the entry before: an entry points to the first byte of a packet of codes
        b  copy of the header's fields between length and checksum; empty if it would be more than a tenth of the file

and the footer ends the file:

    bytes  footer
        4  length of the end packet, from its marker to its checksum

A file without an end packet was truncated. The index is rebuilt by scanning for packets.
"""

import hashlib
import io
import re
import struct
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from codec.errors import ConfigError, DamagedFile, InputNotFound, UnsupportedAudio, UsageError
from codec.frames import FrameSpec, resampled_length
from codec.io import entropy
from codec.io.bitstream_v1 import Format1, header_fields
from codec.io.coded_channels import Matrix
from codec.io.entropy_files import SUFFIX
from codec.io.entropy_model import EntropyModel
from codec.io.entropy_model import find as find_network
from codec.io.fields import Fields, sized, varint
from codec.io.packets import (
    CRC_BYTES,
    TRUNCATED,
    Broken,
    CodesPacket,
    EndPacket,
    Format,
    Scanner,
    Window,
    is_sealed,
    mended,
    sealed,
)
from codec.io.tags import MAX_BYTES as MAX_TAGS
from codec.io.tags import NO_TAGS, Tags

VERSION = 2
MAX_CHANNELS = 1024  # as in libsndfile
MAX_RATE = 1 << 22  # Hz
MAX_CODES = 1 << 20  # per packet, because unpacking needs 64 bytes per code
ENDS_SECONDS = 0.5  # of one channel in a packet from which on it has ends, because they cost most in small ones
INDEX_EVERY = 16  # packets
FIRST_PIECE = 1  # frames of a packet of a pipe that are decoded before the others
COPY_WITHIN = 10  # the end has a copy of the header if the file before it is this number of times as long

_MAGIC = b"\x89CDC\r\n\x1a\n"
_START = struct.Struct("<8sHH")
_MARKER = b"\xf5\xc3"
_FOOTER = struct.Struct("<I")
_CODERS, _TAGS, _END = range(128), 128, 255
_ENDS = 32  # added to the coder of a packet with the ends of its codebooks
_VARYING = 64  # added to the coder of a packet whose frames have different numbers of codebooks
_COMMON_FORMAT = "PCM_16"  # which the header does not state
_SPARE = 64  # bytes of a packet of codes beyond those of coder 0: for its fields, and what was rounded up
_OTHER_BODY = 1 << 20  # bytes, of packets other than codes
_SAMPLE_FORMAT, _SOURCE, _NETWORK, _MIX, _HAS_TAGS, _SETTINGS, _IS_LIVE = 1, 2, 3, 4, 5, 6, 7
_BOUNDS = {
    "time": (0, (1 << 64) - 1),
    "frames": (0, (1 << 64) - 1),
    "source_rate": (1, MAX_RATE),
    "sample_rate": (1, MAX_RATE),
    "hop": (1, 1 << 20),
    "decoder_delay": (0, 1 << 20),
    "codebook_size": (2, 1 << 24),
    "frames_per_packet": (1, MAX_CODES),
    "channels": (1, MAX_CHANNELS),
    "num_codebooks": (1, 1024),
    "model_channels": (1, MAX_CHANNELS),
    "segment_frames": (0, MAX_CODES),
}

Codes = entropy.Codes
Scale = npt.NDArray[np.float32]


def is_codec_path(path: str | Path) -> bool:
    """Whether the suffix is .codec; the file is not opened."""
    return Path(path).suffix.lower() == ".codec"


class SourceId(NamedTuple):
    """What identifies the file that was compressed."""

    size: int
    """Bytes."""
    checksum: str
    """The first 16 hexadecimal digits of the BLAKE2b-512 hash of its content, and of the text `mixed down` or
    `channel 0` if not all its channels are encoded."""


def source_id(path: str | Path, *, channels: str = "") -> SourceId:
    """The identity of a regular file and of the selection of its channels. Raises InputNotFound if it is unreadable."""
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "blake2b")
            size = file.tell()
        digest.update(channels.encode())
        return SourceId(size, digest.hexdigest()[:16])
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a .codec file.

    `time` counts samples of the source at `source_rate` Hz, `hop` and `decoder_delay` samples at `sample_rate` Hz;
    `weights_hash` is 64 hexadecimal digits. `codebook_sizes` are those of the codebooks in the file. `model_channels`
    channels are coded together, and `segment_frames` frames share a scale (0: no scale). `sample_format` is the name
    that libsndfile gives to the source's sample format, `source` the source's identity; both may be unknown. `settings`
    are options of the encoder that change the codes, such as "vbr 4"; empty for the defaults. `network`
    is the digest of the network of coder 2, which the Writer sets. `mix` [channels, coded channels] makes the channels
    of the coded ones; empty if every channel is coded. `tags` are those of the recording; `has_tags`, which the Writer
    sets, says that a packet of tags was written, even if it is damaged, and `is_live`, which it sets, too, that the
    recording lasts at least as long as the frames of each packet of `frames_per_packet` frames. `time` and `frames` are
    0 until they are known.
    Raises ConfigError for values that the format cannot hold.
    """

    model: str
    weights_hash: str
    source_rate: int
    channels: int
    sample_rate: int
    hop: int
    decoder_delay: int
    codebook_sizes: tuple[int, ...]
    frames_per_packet: int
    family: str = ""
    time: int = 0
    frames: int = 0
    model_channels: int = 1
    segment_frames: int = 0
    sample_format: str = ""
    settings: str = ""
    source: SourceId | None = None
    network: str = ""
    mix: Matrix = ()
    tags: Tags = NO_TAGS
    has_tags: bool = False
    is_live: bool = False

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise ConfigError(f"{name} is {value}: a .codec file holds {least} to {most}")
        if self.mix and not (
            len(self.mix) == self.channels
            and 1 <= self.coded_channels <= self.channels
            and {len(row) for row in self.mix} == {self.coded_channels}
            and np.isfinite(self.mix).all()
        ):
            raise ConfigError(f"mix is not a matrix of finite numbers for {self.channels} channels")
        if min(self.codebook_sizes) < 2:
            raise ConfigError(f"codebook_sizes are {self.codebook_sizes}: each is at least 2")
        if (codes := self.rows * self.num_codebooks * self.frames_per_packet) > MAX_CODES:
            raise ConfigError(f"{codes} codes in a packet: the limit is {MAX_CODES}, use fewer frames per packet")
        if self.segment_frames and self.frames_per_packet % self.segment_frames:
            raise ConfigError(
                f"{self.frames_per_packet} frames per packet: use a multiple of the {self.segment_frames} of a segment"
            )
        for name in ("model", "family", "sample_format", "settings"):
            if len((text := getattr(self, name)).encode()) > 255 or not text.isprintable():
                raise ConfigError(f"{text!r} cannot be a {name}: use at most 255 bytes of printable text")
        if len(self.weights_hash) != 64 or not set(self.weights_hash) <= set("0123456789abcdef"):
            raise ConfigError(f"{self.weights_hash!r} is not a weights hash: it must be 64 hexadecimal digits")

    @property
    def num_codebooks(self) -> int:
        """Most codebooks of a packet."""
        return len(self.codebook_sizes)

    @property
    def codebook_size(self) -> int:
        """Entries of the largest codebook."""
        return max(self.codebook_sizes, default=0)

    @property
    def rows(self) -> int:
        """Number of signals that are coded: the coded channels, or groups of `model_channels` of them."""
        return -(-self.coded_channels // self.model_channels)

    @property
    def coded_channels(self) -> int:
        """Channels that are coded; `mix` makes all channels of them."""
        return len(self.mix[0]) if self.mix else self.channels

    @property
    def frame_spec(self) -> FrameSpec:
        """The frame spec of the model, with the codebooks of this file."""
        return FrameSpec(
            sample_rate=self.sample_rate,
            hop=self.hop,
            decoder_delay=self.decoder_delay,
            num_codebooks=self.num_codebooks,
            codebook_size=self.codebook_size,
        )

    @property
    def seconds(self) -> float:
        """Duration of the source."""
        return self.time / self.source_rate

    @property
    def model_time(self) -> int:
        """Samples per channel at the model's sample rate."""
        return resampled_length(self.time, self.source_rate, self.sample_rate)

    @property
    def segments_per_packet(self) -> int:
        """Most segments of a packet; 0 for a model without a scale."""
        return self.frames_per_packet // self.segment_frames if self.segment_frames else 0

    @property
    def wants_ends(self) -> bool:
        """Whether packets of this length have the ends of their codebooks, so that fewer of them are copied bytes."""
        return self.rows * self.frames_per_packet * self.hop >= ENDS_SECONDS * self.sample_rate

    def _to_fields(self) -> bytes:
        numbers = (
            self.source_rate,
            self.channels,
            self.time,
            self.sample_rate,
            self.hop,
            self.decoder_delay,
            self.model_channels,
            self.segment_frames,
            self.frames_per_packet,
        )
        runs = [(len(list(same)), size) for size, same in groupby(self.codebook_sizes)]
        return b"".join(
            [
                bytes.fromhex(self.weights_hash),
                sized(self.family.encode()),
                sized(self.model.encode()),
                *map(varint, numbers),
                varint(len(runs)),
                *(varint(count) + varint(size) for count, size in runs),
                *(varint(tag) + sized(content) for tag, content in self._tagged()),
            ]
        )

    def _tagged(self) -> Iterator[tuple[int, bytes]]:
        if self.sample_format != _COMMON_FORMAT:
            yield _SAMPLE_FORMAT, self.sample_format.encode()
        if self.source is not None:
            yield _SOURCE, varint(self.source.size) + bytes.fromhex(self.source.checksum)
        if self.mix:
            yield _MIX, varint(self.coded_channels) + np.array(self.mix, "<f4").tobytes()
        if self.network:
            yield _NETWORK, bytes.fromhex(self.network)
        if self.has_tags:
            yield _HAS_TAGS, b""
        if self.settings:
            yield _SETTINGS, self.settings.encode()
        if self.is_live:
            yield _IS_LIVE, b""

    @classmethod
    def _from_fields(cls, data: bytes) -> "Header":
        """Parse the bytes between the length and the checksum. Raises ValueError, ConfigError."""
        fields = Fields(data)
        weights_hash = fields.take(32).hex()
        family, model = fields.text(), fields.text()
        names = (
            "source_rate", "channels", "time", "sample_rate", "hop", "decoder_delay", "model_channels",
            "segment_frames", "frames_per_packet",
        )  # fmt: skip
        numbers = {name: fields.varint() for name in names}
        sizes: list[int] = []
        for _ in range(fields.varint()):
            count, size = fields.varint(), fields.varint()
            if len(sizes) + count > _BOUNDS["num_codebooks"][1]:
                raise ValueError(f"{len(sizes) + count} codebooks")
            sizes += [size] * count
        tagged: dict[int, bytes] = {}
        while fields.left:
            tag = fields.varint()
            tagged[tag] = fields.content()
        return cls(
            weights_hash=weights_hash,
            family=family,
            model=model,
            codebook_sizes=tuple(sizes),
            sample_format=tagged.get(_SAMPLE_FORMAT, _COMMON_FORMAT.encode()).decode(),
            source=_source_id(tagged[_SOURCE]) if _SOURCE in tagged else None,
            mix=_matrix(tagged[_MIX], numbers["channels"]) if _MIX in tagged else (),
            network=tagged.get(_NETWORK, b"").hex(),
            tags=NO_TAGS,
            has_tags=_HAS_TAGS in tagged,
            settings=tagged.get(_SETTINGS, b"").decode(),
            is_live=_IS_LIVE in tagged,
            **numbers,
        )


def _source_id(content: bytes) -> SourceId:
    fields = Fields(content)
    return SourceId(fields.varint(), fields.take(8).hex())


def _matrix(content: bytes, channels: int) -> Matrix:
    fields = Fields(content)
    coded = fields.varint()
    if not 1 <= coded <= channels <= MAX_CHANNELS:
        raise ValueError(f"{coded} coded channels of {channels}")
    matrix = np.frombuffer(fields.take(4 * channels * coded), "<f4").reshape(channels, coded)
    return tuple(map(tuple, matrix.tolist()))


class Packet(NamedTuple):
    """An intact packet."""

    first: int
    """Number of its first frame."""
    codes: Codes
    """int64 [rows, codebooks, frames]; -1 after the last codebook of a frame that has fewer than others."""
    scale: Scale | None
    """float32 [rows, frames]; None for a model without a scale."""
    payload_bytes: int = 0
    """Size of codes and scale in the file, coded; 0 for all pieces but the first, and packets not read from one."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        frames: int = self.codes.shape[2]
        return frames

    def cut(self, first: int, end: int | None = None) -> "Packet":
        """The frames from `first` to before `end`, counted from the packet's own first frame."""
        scale = None if self.scale is None else self.scale[:, first:end]
        return Packet(self.first + first, self.codes[:, :, first:end], scale)


class Damage(NamedTuple):
    """A damaged part of a file; damage outside the codes has 0 frames."""

    first: int
    """Number of the first frame that is lost."""
    frames: int
    offset: int
    """Position of the first damaged byte."""
    reason: str


class Writer:
    """Write codes to a binary file from the first byte to the last, without seeking.

    Each packet takes the payload coder that gives the fewest bytes, up to number `coder` of `codec.io.entropy`. If
    `header.network` names a network, because packets are copied, codes are coded by no other one. `size` counts the
    bytes, `coded_bytes` those of coded codes, and `packed_bytes` what coder 0 takes for the same codes; `digest` is the
    BLAKE2b hash of all codes given to `write`, by `update_digest`.

    With `is_live`, a packet in which the recording ends has less than `frames_per_packet` frames, where that is
    possible, so that a reader does not wait for the packet after a whole one to know what of it is to be played.
    """

    def __init__(self, file: BinaryIO, header: Header, *, coder: int = entropy.MODEL, is_live: bool = False) -> None:
        network = find_network(header.weights_hash, header.codebook_sizes) if coder >= entropy.MODEL else None
        self._network = network if network and header.network in ("", network.digest) else None
        digest = self._network.digest if self._network else header.network
        is_live = is_live and header.frames_per_packet > 1 and not header.segment_frames
        header = replace(header, network=digest, has_tags=bool(header.tags), is_live=is_live)
        self.header = replace(header, frames=0)
        self._encoder = entropy.PacketEncoder(
            header.codebook_sizes, coder=coder, model=self._network, with_ends=header.wants_ends, is_live=is_live
        )
        self.size = self.coded_bytes = self.packed_bytes = 0
        self.digest = hashlib.blake2b()
        self._file = file
        self._packets = 0
        self._index: list[tuple[int, int]] = []  # (first frame, offset)
        self._pending: Codes = np.empty((header.rows, header.num_codebooks, 0), np.int64)
        self._pending_scale: Scale = np.empty((header.rows, 0), np.float32)
        fields = header._to_fields()
        self._send(sealed(_START.pack(_MAGIC, VERSION, len(fields)) + fields))
        if header.tags:
            self._send(_packet(_TAGS, header.tags.to_bytes()))

    def write(self, codes: Codes, scale: Scale | None = None, *, is_end: bool = False) -> None:
        """Append codes [rows, codebooks, frames], and their scale [rows, frames] if the model has one.

        Codes are -1 after the last codebook of a frame that has fewer than others. Codes of another number of
        codebooks than those before, at most the header's, begin a packet. A packet is written once it is complete.
        `is_end` says that the recording may end before these frames do, as it does in those of `StreamEncoder.flush`.
        Raises UsageError for codes or a scale of another shape, or codes outside 0 to the size of their codebook - 1.
        """
        self._check(codes)
        if codes.shape[1] != self._pending.shape[1]:
            self._flush()
            self._pending = np.empty((*codes.shape[:2], 0), np.int64)
        if self.header.segment_frames:
            if scale is None or scale.shape != (len(codes), codes.shape[2]):
                raise UsageError(f"these codes need a scale {(len(codes), codes.shape[2])}")
            self._pending_scale = np.concatenate([self._pending_scale, scale.astype(np.float32)], axis=1)
        most = self.header.frames_per_packet
        if is_end and self.header.is_live and self._pending.shape[2] + codes.shape[2] >= most:
            self._flush()
            most -= 1
        pending = np.concatenate([self._pending, codes], axis=2)
        while pending.shape[2] >= most:
            self._write_packet(pending[:, :, :most])
            pending = pending[:, :, most:]
        self._pending = pending.copy()  # a view would keep all of `codes` alive
        if entropy.is_modeled(self.header.rows, self.header.num_codebooks, self.header.frames_per_packet):
            self._encoder.advance(self._pending)

    def copy(self, packet: CodesPacket) -> None:
        """Append a packet of another file as it is coded there, after the frames written so far.

        The file has the same rows, codebooks and segments, and the same network if the packet was coded by one.
        """
        self._flush()
        kind = packet.coder + _ENDS * packet.has_ends + _VARYING * packet.varying
        self._send_codes(packet.frames, packet.num_codebooks, kind, packet.payload)

    def close(self, *, time: int) -> None:
        """Write the last codes, the end packet and the footer; `time` counts samples of the source."""
        self._flush()
        fields = self.header._to_fields()
        copy = fields if COPY_WITHIN * len(fields) <= self.size else b""
        self.header = replace(self.header, time=time)
        entries = b""
        before = (0, 0)
        for frame, offset in self._index:
            entries += varint(frame - before[0]) + varint(offset - before[1])
            before = frame, offset
        counts = (time, self.header.frames, self.size, len(self._index))
        end = _packet(_END, b"".join(map(varint, counts)) + entries + sized(copy))
        self._send(end + _FOOTER.pack(len(end)))

    @property
    def frames(self) -> int:
        """Frames given so far."""
        return self.header.frames + int(self._pending.shape[2])

    def _flush(self) -> None:
        if self._pending.shape[2]:
            self._write_packet(self._pending)
            self._pending = self._pending[:, :, :0]

    def _check(self, codes: Codes) -> None:
        rows, most = self.header.rows, self.header.num_codebooks
        if codes.ndim != 3 or codes.shape[0] != rows or not 1 <= codes.shape[1] <= most:
            raise UsageError(f"codes are {codes.shape}: this file takes ({rows}, 1 to {most}, frames)")
        if not codes.size:
            return
        least, largest = codes.min(axis=(0, 2)), codes.max(axis=(0, 2))
        present = codes >= 0
        is_prefix = present[:, 0].all() and not (present[:, 1:] > present[:, :-1]).any()
        if (least < -1).any() or not is_prefix or (largest >= self.header.codebook_sizes[: codes.shape[1]]).any():
            sizes = "codebook size" if len(set(self.header.codebook_sizes)) == 1 else "size of their codebook"
            raise UsageError(
                f"codes lie between {least.min()} and {largest.max()}: this file takes 0 to the {sizes} "
                f"({self.header.codebook_size}) - 1"
            )

    def _write_packet(self, codes: Codes) -> None:
        """Write codes as a packet, or as two where the last segments of a signal, both short, make one of full size."""
        if self.header.segment_frames and (whole := self._whole_segments(codes.shape[2])):
            self._write_packet(codes[:, :, :whole])
            codes = codes[:, :, whole:]
        frames = codes.shape[2]
        codes = codes[:, (codes >= 0).any(axis=(0, 2))]
        sizes, varying = self.header.codebook_sizes[: codes.shape[1]], entropy.varies(codes)
        has_ends = self._encoder.has_ends(codes)
        coder, payload = self._encoder.finish(codes)
        self.coded_bytes += len(payload)
        self.packed_bytes += (
            len(entropy.pack_varying(codes, sizes)) if varying else entropy.bytes_for(sizes, codes.shape[0] * frames)
        )
        update_digest(self.digest, codes)
        if self.header.segment_frames:
            segments = self._pending_scale[:, : frames : self.header.segment_frames]  # [rows, segments]
            payload = segments.T.astype("<f4").tobytes() + payload
            self._pending_scale = self._pending_scale[:, frames:]
        kind = coder + _ENDS * (has_ends and coder != entropy.NONE) + _VARYING * varying
        self._send_codes(frames, len(sizes), kind, payload)

    def _whole_segments(self, frames: int) -> int:
        """Pending frames before one that begins a segment after a short segment; 0 if there is none."""
        scale, size = self._pending_scale[:, :frames], self.header.segment_frames
        begins = np.arange(frames) // size * size
        early = np.flatnonzero((scale != scale[:, begins]).any(axis=0))
        return int(early[0]) if len(early) else 0

    def _send_codes(self, frames: int, num_codebooks: int, kind: int, payload: bytes) -> None:
        """Write a packet; `payload` is the scale and the codes."""
        if self._packets and self._packets % INDEX_EVERY == 0:
            self._index.append((self.header.frames, self.size))
        fields = b"".join(map(varint, (self.header.frames, frames, num_codebooks)))
        self._send(_packet(kind, fields + payload))
        self._packets += 1
        self.header = replace(self.header, frames=self.header.frames + frames)

    def _send(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


class _Format2:
    """The packets of version 2."""

    marker = re.compile(re.escape(_MARKER))
    smallest = len(_MARKER) + 2 + CRC_BYTES

    def __init__(self, header: Header | None) -> None:
        """Without a header, only the end packet can be read."""
        self._most = 0
        if header is None:
            return
        raw = entropy.bytes_for(header.codebook_sizes, header.rows * header.frames_per_packet)
        scale = 4 * header.segments_per_packet * header.rows
        counts = entropy.bytes_for((header.num_codebooks,), header.rows * header.frames_per_packet)
        self._most = scale + counts + raw + raw // 256 + _SPARE  # coders may add a little
        self._frames_per_packet = header.frames_per_packet
        self._segment_frames = max(1, header.segment_frames)
        self._num_codebooks = header.num_codebooks

    def size(self, head: bytes) -> int | None:
        """Length of the packet, or None."""
        if not head.startswith(_MARKER):
            return None
        fields = Fields(head[len(_MARKER) :])
        kind = fields.take(1)[0]
        try:
            body = fields.varint()
        except ValueError:
            return None
        if body > (self._most if kind in _CODERS else MAX_TAGS if kind == _TAGS else _OTHER_BODY):
            return None
        return len(head) - fields.left + body + CRC_BYTES

    def content(self, packet: bytes, offset: int) -> CodesPacket | EndPacket | None:
        """Parse a packet."""
        kind = packet[len(_MARKER)]
        body = Fields(Fields(packet[len(_MARKER) + 1 :]).content())
        if kind == _END:
            return _end_packet(body, offset)
        return self._codes(kind, body, offset) if kind in _CODERS else None

    def _codes(self, kind: int, body: Fields, offset: int) -> CodesPacket:
        first, frames, num_codebooks = body.varint(), body.varint(), body.varint()
        if not 1 <= frames <= self._frames_per_packet:
            raise ValueError(f"it states {frames} frames")
        if not 1 <= num_codebooks <= self._num_codebooks:
            raise ValueError(f"it states {num_codebooks} codebooks")
        if first % self._segment_frames and frames >= self._segment_frames:
            raise ValueError("it begins within a segment")
        coder, has_ends, varying = kind % _ENDS, bool(kind & _ENDS), bool(kind & _VARYING)
        if has_ends and coder == entropy.NONE:
            raise ValueError(f"it states kind {kind}")
        return CodesPacket(first, frames, num_codebooks, coder, body.rest(), offset, varying, has_ends)


def _end_packet(body: Fields, offset: int) -> EndPacket:
    time, frames, written_at = body.varint(), body.varint(), body.varint()
    index: list[tuple[int, int]] = []
    frame = place = 0
    for _ in range(body.varint()):
        frame, place = frame + body.varint(), place + body.varint()
        index.append((frame, place))
    return EndPacket(time, frames, tuple(index), body.content(), offset, written_at)


class _OtherFormat(UnsupportedAudio):
    """The file does not begin as a .codec file."""


class Reader:
    """Read a binary file, seekable or not; `label` names it in errors, `offset` counts the bytes read.

    In a seekable file, `header` has the true `time` and `frames`: from the end packet, or if that is damaged, from all
    intact packets. In a pipe, `time` is what the header declares, and `is_complete` is False until the end is read.

    Raises DamagedFile for a header that is truncated, altered or impossible and has no intact copy at the end of a
    seekable file, UnsupportedAudio for another file format or a newer version.
    """

    def __init__(self, file: BinaryIO, *, label: str) -> None:
        self.label = label
        self.is_complete = False
        self._window = Window(file)
        self._format: Format
        self._index: tuple[tuple[int, int], ...] = ()
        self._begin = 0  # offset from which packets are looked for
        self._header_reason = ""
        self._mended: Damage | None = None  # the altered byte of a header that is read in spite of it
        self._waits = True  # for the end of a pipe, to see whether bytes follow the end of the file
        self._has_ended = False
        self._whole = 0  # frames up to the end of the last packet in which the recording cannot end
        self.header = self._read_header()
        self._declared = self.header.time
        if self._window.seekable and not self.is_complete:
            self._find_end()

    @property
    def offset(self) -> int:
        """Bytes read so far."""
        return self._window.offset

    @property
    def seekable(self) -> bool:
        """Whether any part can be read at any time; False for a pipe."""
        return self._window.seekable

    @property
    def knows_length(self) -> bool:
        """Whether `header.time` and `header.frames` are those of what can be read; in a pipe only at the end."""
        return self.is_complete or self.seekable

    @property
    def least_time(self) -> int:
        """Samples at the model's rate that the recording has at least, as a live pipe shows by its whole packets."""
        return self._whole * self.header.hop

    def size_read(self) -> int:
        """Bytes of a seekable file, or of a pipe as far as it was read."""
        return self._window.size() if self.seekable else self.offset

    def intact(self, first: int = 0) -> Iterator[Packet]:
        """Yield the packets from frame `first` on, as `parts`.

        Raises DamagedFile at the first damage, after all packets before it.
        """
        for part in self.parts(first):
            if isinstance(part, Damage):
                raise self.damaged(part)
            yield part

    def coded(self, first: int = 0, *, harmless: list[Damage] | None = None) -> Iterator[CodesPacket]:
        """Yield the packets from frame `first` on without unpacking their codes.

        Damage without a loss of frames is added to `harmless` if it is given. Raises as `intact` otherwise.
        """
        for found in self._from(first):
            if not isinstance(found, Damage):
                yield found
            elif found.frames or harmless is None:
                raise self.damaged(found)
            else:
                harmless.append(found)

    def unpacked(self, packet: CodesPacket) -> Packet:
        """Unpack the codes of a packet of `coded`.

        Raises DamagedFile, and UnsupportedAudio as `parts`.
        """
        with self._decoding(packet):
            return self._unpacked(packet)

    def thinned(self, packet: CodesPacket, num_codebooks: int) -> CodesPacket:
        """A packet of `coded` without its higher codebooks, which are not decoded.

        As it is without ends, or if its lower codebooks take many more bytes than by coder 0. Raises DamagedFile for
        ends that no encoder writes, UnsupportedAudio for a coder of a newer release.
        """
        if not packet.has_ends or packet.num_codebooks <= num_codebooks:
            return packet
        begin = self._scale_bytes(packet.frames)
        with self._decoding(packet):
            codes = entropy.thinned(
                packet.coder,
                packet.payload[begin:],
                packet.num_codebooks,
                num_codebooks,
                rows=self.header.rows,
                frames=packet.frames,
                varying=packet.varying,
            )
        sizes, count = self.header.codebook_sizes[:num_codebooks], self.header.rows * packet.frames
        most = entropy.bytes_for(sizes, count) + packet.varying * entropy.bytes_for((num_codebooks,), count)
        if len(codes) > most + _SPARE // 2:
            return packet
        return packet._replace(num_codebooks=num_codebooks, payload=packet.payload[:begin] + codes)

    def codebook_counts(self, packet: CodesPacket) -> npt.NDArray[np.int64]:
        """The numbers of codebooks [frames, rows] of a packet of `coded`; its codes are not decoded.

        Raises DamagedFile for numbers that no encoder writes, UnsupportedAudio for a coder of a newer release.
        """
        rows, frames = self.header.rows, packet.frames
        if not packet.varying:
            return np.full((frames, rows), packet.num_codebooks)
        payload = packet.payload[self._scale_bytes(frames) :]
        with self._decoding(packet):
            return entropy.codebook_counts(
                packet.coder, payload, packet.num_codebooks, rows=rows, frames=frames, with_ends=packet.has_ends
            )

    @contextmanager
    def _decoding(self, packet: CodesPacket) -> Iterator[None]:
        """Raise DamagedFile for a payload that no encoder writes, UnsupportedAudio for a coder of a newer release."""
        try:
            yield
        except ValueError as error:
            raise self.damaged(self._undecodable(packet, error)) from error
        except NotImplementedError as error:
            raise self._unknown_coder(packet.coder, str(error)) from error

    def packets(self) -> Iterator[Codes]:
        """Yield the codes [rows, codebooks, frames] packet by packet. Raises as `packets_with_scale`."""
        return (codes for codes, _ in self.packets_with_scale())

    def packets_with_scale(self) -> Iterator[tuple[Codes, Scale | None]]:
        """Yield codes and their scale [rows, frames], None for a model without a scale.

        Raises DamagedFile at the first damage, after all packets before it.
        """
        return ((packet.codes, packet.scale) for packet in self.intact())

    def parts(self, first: int = 0) -> Iterator[Packet | Damage]:
        """Yield all intact packets in order and the damage between them, from the packet that holds frame `first` on.

        A pipe can be read once, from its beginning; a seekable file begins again with every call. Raises
        UnsupportedAudio for a payload coder of a newer release.
        """
        for found in self._from(first):
            yield found if isinstance(found, Damage) else self._decoded(found)

    def pieces(self, first: int = 0) -> Iterator[Packet | Damage]:
        """As `parts`, but packets come in pieces of FIRST_PIECE frames and twice as many each time.

        Because the reader of a live pipe waits for the first piece, and the audio of the others can be decoded while it
        plays. The pieces of a pipe end with its end packet; `after_end` waits for its writer to close it.
        """
        self._waits = self.seekable
        for found in self._from(first):
            decoded = found if isinstance(found, Damage) else self._decoded(found)
            if isinstance(decoded, Damage):
                yield decoded
                continue
            begin, size = 0, decoded.payload_bytes
            for length in self._growing(decoded.frames):
                yield decoded.cut(begin, begin + length)._replace(payload_bytes=size)
                begin, size = begin + length, 0

    def _growing(self, frames: int) -> Iterator[int]:
        """Lengths of pieces in frames; segments, which have a scale, stay whole."""
        length = frames if self.header.segment_frames else FIRST_PIECE
        while frames > 0:
            yield min(length, frames)
            frames -= length
            length *= 2

    def _decoded(self, packet: CodesPacket) -> Packet | Damage:
        """A packet; what cannot be decoded is damage."""
        try:
            return self._unpacked(packet)
        except ValueError as error:
            return self._undecodable(packet, error)

    def _undecodable(self, packet: CodesPacket, error: ValueError) -> Damage:
        return self._damage(Broken(packet.offset, str(error)), packet.first, packet.first + packet.frames)

    def after_end(self) -> Iterator[Damage]:
        """Yield what follows the end of the file behind the pieces of a pipe; nothing before they are all read."""
        if self._has_ended and (more := self._window.peek(len(_MAGIC))):
            follows = (
                "another .codec file follows, which is not read"
                if more == _MAGIC
                else "more bytes follow the end of the file"
            )
            yield Damage(self.header.frames, 0, self.offset, follows)

    def check(self) -> list[Damage]:
        """Read everything that decoding reads, and return the damage."""
        return [part for part in self.parts() if isinstance(part, Damage)]

    def damaged(self, damage: Damage) -> DamagedFile:
        """The error for damage before which all is intact."""
        return DamagedFile(
            self.label, offset=damage.offset, reason=damage.reason, seconds_decoded=self._seconds(damage.first) or None
        )

    def damaged_in(self, damages: Sequence[Damage], *, intact: bool) -> DamagedFile:
        """The error for all damage of a file, in order; `intact` says whether any packet is."""
        first = damages[0]
        spec = self.header.frame_spec
        lost: list[tuple[float, float | None]] = [
            # a decoder that begins again with a frame gives audio from this frame on
            (self._seconds(part.first), self._until(spec.seconds((part.first + part.frames) * spec.hop)))
            for part in damages
            if part.frames
        ]
        if not self.is_complete:
            found = self.header.seconds if self.seekable else 0.0  # a pipe still has the length that it declares
            found = found or self._seconds(damages[-1].first)
            if not self._declared or found < self._declared / self.header.source_rate:
                lost.append((found, None))
        return DamagedFile(
            self.label,
            offset=first.offset,
            reason=first.reason,
            seconds_decoded=self._seconds(first.first) if intact else None,
            lost=tuple(lost),
            places=len(damages),
        )

    def _seconds(self, frames: int) -> float:
        """Duration of the audio that the first frames hold."""
        spec = self.header.frame_spec
        return self._until(spec.seconds(spec.time(frames)))

    def _until(self, seconds: float) -> float:
        return min(seconds, self.header.seconds) if self.header.time else seconds

    def _from(self, first: int) -> Iterator[CodesPacket | Damage]:
        """What `_scan` finds, without what lies between a place of the index and frame `first`."""
        expected = self._go_to(first)
        if self._mended and self._window.offset == self._begin:
            yield self._mended
        for found in self._scan(expected):
            if found.first + found.frames > first or isinstance(found, Damage):
                yield found

    def _scan(self, expected: int) -> Iterator[CodesPacket | Damage]:
        """Yield the packets in order and the gaps between them, without unpacking codes."""
        broken: Broken | None = None
        for found in Scanner(self._window, self._format).packets():
            if isinstance(found, EndPacket):
                reason = self._take_end(found, expected)
                if not reason:
                    yield from self._end_damage(found, expected, broken)
                    return
                broken = broken or Broken(self.offset, reason)
                break
            problem = found if isinstance(found, Broken) else self._misplaced(found, expected)
            if isinstance(problem, Broken):
                broken = broken or problem
                continue
            assert isinstance(found, CodesPacket)
            if broken or found.first > expected:
                yield self._damage(broken or Broken(found.offset, "it is missing"), expected, found.first)
                broken = None
            expected = found.first + found.frames
            if self.header.is_live and found.frames == self.header.frames_per_packet:
                self._whole = expected
            yield found
        yield self._damage(broken or Broken(self.offset, TRUNCATED), expected, max(expected, self.header.frames))

    def _misplaced(self, found: CodesPacket, expected: int) -> Broken | None:
        if found.first < expected:
            return Broken(found.offset, "it is repeated or out of order")
        if self.is_complete and found.first + found.frames > self.header.frames:
            return Broken(found.offset, "it lies behind the end of the recording")
        return None

    def _damage(self, broken: Broken, first: int, end: int) -> Damage:
        reason = self._header_reason if self._header_reason and not broken.offset else broken.reason
        if end > first:
            reason = f"packet {first // self.header.frames_per_packet}: {reason}"
        return Damage(first, end - first, broken.offset, reason)

    def _end_damage(self, end: EndPacket, expected: int, broken: Broken | None) -> Iterator[Damage]:
        """What is wrong at the end packet: a gap before it, a missing footer, bytes after it."""
        if broken or self.header.frames > expected:
            yield self._damage(broken or Broken(self.offset, "it is missing"), expected, self.header.frames)
        if isinstance(self._format, _Format2):
            expected_footer = _FOOTER.pack(self.offset - end.offset)
            footer = self._window.peek(_FOOTER.size)
            if footer != expected_footer:
                yield Damage(self.header.frames, 0, self.offset, "the footer is altered or missing")
            self._window.skip(len(footer))
        self._has_ended = True
        if self._waits:
            yield from self.after_end()

    @cached_property
    def _network(self) -> EntropyModel | None:
        """The network that coder 2 of this file used, if `find_network` has it."""
        network = find_network(self.header.weights_hash, self.header.codebook_sizes)
        return network if network and network.digest == self.header.network else None

    def _unpacked(self, packet: CodesPacket) -> Packet:
        """Decode the codes of a packet.

        Raises ValueError for codes or a scale that the header excludes.
        """
        header, payload = self.header, packet.payload
        scale = None
        if header.segment_frames:
            size = self._scale_bytes(packet.frames)
            values = np.frombuffer(Fields(payload).take(size), "<f4").reshape(-1, header.rows)
            if not np.isfinite(values).all():
                raise ValueError("a scale is not finite")
            scale = values.T.repeat(header.segment_frames, axis=1)[:, : packet.frames].astype(np.float32)
            payload = payload[size:]
        sizes = header.codebook_sizes[: packet.num_codebooks]
        try:
            codes = entropy.decode(
                packet.coder,
                payload,
                sizes,
                rows=header.rows,
                frames=packet.frames,
                model=self._network,
                varying=packet.varying,
                with_ends=packet.has_ends,
            )
        except NotImplementedError as error:
            raise self._unknown_coder(packet.coder, str(error)) from error
        return Packet(packet.first, codes, scale, len(packet.payload))

    def _scale_bytes(self, frames: int) -> int:
        """Bytes of the scale of a packet."""
        segment = self.header.segment_frames
        return 4 * -(-frames // segment) * self.header.rows if segment else 0

    def _unknown_coder(self, coder: int, name: str) -> UnsupportedAudio:
        way_out = "upgrade codec to read them"
        if coder == entropy.MODEL:
            network = f"{self.header.model or 'the name of the model'}{SUFFIX} (network {self.header.network})"
            way_out = f"pass --model with the file of its model, and {network} beside that file"
        return UnsupportedAudio(f"{self.label} has codes by {name}: {way_out}")

    # the beginning and the end

    def _read_header(self) -> Header:
        try:
            header = self._first_header()
        except (DamagedFile, _OtherFormat) as error:
            if isinstance(error, DamagedFile) and (found := self._mended_header()):
                return found
            end = self._read_end(_Format2(None)) if self._window.seekable else None
            if end is None or not end.header:
                raise
            self._header_reason = f"{error.reason}; its copy is used" if isinstance(error, DamagedFile) else str(error)
            self._window.go_to(_START.size + len(end.header) + CRC_BYTES)
            return self._with_tags(self._parsed(end.header, 2))
        header = self._with_tags(header)
        self._begin = self._window.offset
        return header

    def _mended_header(self) -> Header | None:
        """The header if a single byte of it is altered, as its checksum shows."""
        start = self._window.peek(_START.size)
        if len(start) < _START.size:
            return None
        _, _, stated = _START.unpack(start)
        found = mended(self._window.peek(_START.size + stated + CRC_BYTES)) or self._by_length(start, stated)
        if found is None or not found[1].startswith(_MAGIC):
            return None
        place, data = found
        self._window.skip(len(data))
        header = self._with_tags(self._parsed(data[_START.size : -CRC_BYTES], data[len(_MAGIC)]))
        self._begin = self._window.offset
        self._mended = Damage(0, 0, place, "a byte of the header is altered; its checksum shows which value it had")
        return header

    def _by_length(self, start: bytes, stated: int) -> tuple[int, bytes] | None:
        """The header if a byte of its length is altered: the place of the byte, and the header as it was."""
        altered = self._window.peek(_START.size + 0xFFFF + CRC_BYTES)
        most = len(altered) - _START.size - CRC_BYTES
        lengths = [(0, stated & 0xFF00 | low) for low in range(256)]
        lengths += [(1, stated & 0xFF | high << 8) for high in range(most // 256 + 1)]
        for place, length in lengths:
            if length <= most and length != stated:
                end = _START.size + length + CRC_BYTES
                data = start[:-2] + length.to_bytes(2, "little") + altered[_START.size : end]
                if is_sealed(data):
                    return _START.size - 2 + place, data
        return None

    def _with_tags(self, header: Header) -> Header:
        """The header with the tags after it; a damaged packet of tags stays, so that it counts as damage."""
        packet = Scanner(self._window, self._format).sealed_packet() if header.has_tags else b""
        if not isinstance(packet, bytes) or not packet.startswith(_MARKER + bytes([_TAGS])):
            return header
        with suppress(ValueError, ConfigError):
            header = replace(header, tags=Tags.from_bytes(Fields(packet[len(_MARKER) + 1 :]).content()))
        self._window.skip(len(packet))
        return header

    def _first_header(self) -> Header:
        start = self._window.peek(_START.size)
        magic = start[: len(_MAGIC)]
        if magic != _MAGIC[: len(magic)]:
            if magic[:4] == _MAGIC[:4] or magic[4:] == _MAGIC[4:]:
                raise self._header_damaged(0, "its first bytes are altered, perhaps by a copy in text mode")
            raise _OtherFormat(f"{self.label} is not a .codec file: give a file written by `codec encode`")
        if len(start) < _START.size:
            raise self._header_damaged(len(start), TRUNCATED)
        _, version, length = _START.unpack(start)
        size = _START.size + length + CRC_BYTES
        data = self._window.peek(size)
        if len(data) < size:
            raise self._header_damaged(len(data), TRUNCATED)
        if not is_sealed(data):
            raise self._header_damaged(0, "the checksum of the header does not match")
        if not 1 <= version <= VERSION:
            raise UnsupportedAudio(
                f"{self.label} has version {version} of the .codec format, this program reads up to {VERSION}: "
                "upgrade codec"
            )
        self._window.skip(size)
        return self._parsed(data[_START.size : -CRC_BYTES], version)

    def _parsed(self, fields: bytes, version: int) -> Header:
        try:
            if version == 1:
                return self._parsed_v1(fields)
            header = Header._from_fields(fields)
        except (ConfigError, ValueError) as error:
            raise self._header_damaged(_START.size, f"impossible header, {error}") from error
        self._format = _Format2(header)
        return header

    def _parsed_v1(self, fields: bytes) -> Header:
        header = Header(**header_fields(fields))
        _check_length(header)
        self._format = Format1(
            time=header.time,
            frames=header.frames,
            frames_per_packet=header.frames_per_packet,
            num_codebooks=header.num_codebooks,
            bits_per_frame=header.rows * sum(map(entropy.bits, header.codebook_sizes)),
        )
        self.is_complete = True
        return header

    def _header_damaged(self, offset: int, reason: str) -> DamagedFile:
        return DamagedFile(self.label, offset=offset, reason=reason)

    def _find_end(self) -> None:
        """Read the end packet of a seekable file; scan the file if it is damaged or not in its place."""
        end = self._read_end(self._format)
        if end is not None and end.offset == end.written_at and not self._take_end(end, 0):
            self._index = end.places
            return
        self._window.go_to(self._begin)
        frames, index = 0, []
        for number, found in enumerate(self._scan(0)):
            if isinstance(found, CodesPacket):
                frames = found.first + found.frames
                if number and number % INDEX_EVERY == 0:
                    index.append((found.first, found.offset))
        self._index = tuple(index)
        if not self.is_complete:
            self.header = _without_end(self.header, frames)

    def _read_end(self, form: Format) -> EndPacket | None:
        """The end packet of a seekable file, if it is intact."""
        behind = self._window.size() - _FOOTER.size
        self._window.go_to(max(0, behind))
        footer = self._window.peek(_FOOTER.size)
        if len(footer) < _FOOTER.size:
            return None
        (length,) = _FOOTER.unpack(footer)
        if length > behind:
            return None
        self._window.go_to(behind - length)
        found = Scanner(self._window, form).read()
        return found if isinstance(found, EndPacket) else None

    def _take_end(self, end: EndPacket, expected: int) -> str:
        """Complete the header by the end packet; return the reason if the packet is impossible."""
        if self.is_complete:
            return ""
        try:
            header = replace(self.header, time=end.time, frames=end.frames)
            _check_length(header)
        except (ConfigError, ValueError) as error:
            return f"impossible end packet, {error}"
        if end.frames < expected:
            return f"the end packet counts {end.frames} frames after {expected} frames"
        if header.model_time < self.least_time:
            return f"the end packet counts {end.time} samples after {self._whole} whole frames"
        self.header, self.is_complete = header, True
        return ""

    def _go_to(self, frame: int) -> int:
        """Move to the packet that holds a frame, or to one before it; return the number of its first frame."""
        if not self._window.seekable:
            if self._window.offset != self._begin:
                raise UsageError(f"{self.label} can be read once: save it as a file to read it again")
            return 0
        if isinstance(self._format, Format1):
            first, place = self._format.place(frame)
            self._window.go_to(self._begin + place)
            return first
        before = bisect_right(self._index, frame, key=itemgetter(0))
        first, offset = self._index[before - 1] if before else (0, self._begin)
        self._window.go_to(offset)
        return first


def _check_length(header: Header) -> None:
    """Raise ValueError for frames that do not hold the samples."""
    if header.frame_spec.time(header.frames) < header.model_time:
        raise ValueError(f"{header.frames} frames do not hold the {header.time} samples that the file states")


def _without_end(header: Header, frames: int) -> Header:
    """The header of a file whose last intact packet ends with frame `frames`; the declared time may be a guess."""
    held = header.frame_spec.time(frames) * header.source_rate // header.sample_rate
    is_likely = header.time and header.frame_spec.frames(header.model_time) >= frames
    return replace(header, frames=frames, time=min(held, header.time) if is_likely else held)


@contextmanager
def open_reader(path: str | Path | bytes) -> Iterator[Reader]:
    """Open a .codec file, its content as bytes, or standard input for "-". Raises InputNotFound, and as Reader."""
    if isinstance(path, bytes):
        yield Reader(io.BytesIO(path), label="the data")
        return
    if str(path) == "-":
        yield Reader(sys.stdin.buffer, label="standard input")
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("rb"))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise _unreadable(path, error) from error
        yield Reader(file, label=str(path))


def _unreadable(path: str | Path, error: OSError | ValueError) -> InputNotFound:
    reason = getattr(error, "strerror", error)
    return InputNotFound(f"{path} cannot be read ({reason}): check the name and its permissions")


def update_digest(digest: "hashlib.blake2b", codes: Codes) -> None:
    """Add codes [rows, codebooks, frames] to a hash, frame by frame, so that packets of any lengths give the same."""
    digest.update(np.ascontiguousarray(codes.transpose(2, 0, 1), "<i8").tobytes())


def _packet(kind: int, body: bytes) -> bytes:
    return sealed(_MARKER + bytes([kind]) + sized(body))
