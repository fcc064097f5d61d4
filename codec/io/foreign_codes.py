"""Codes in files of other projects: .ecdc of encodec, .dac of descript-audio-codec, arrays in .npy, .npz and .pt.

No code is executed. An .ecdc file is "ECDC", a version, a JSON header, and for each segment its scale (if the model
has one) and its codes, frame by frame, packed with the lowest bits first into whole bytes. A .dac file is an .npy file
whose array is a pickled dictionary: codes [rows, codebooks, frames] and metadata.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from codec.errors import CodecError, DamagedFile, InputNotFound, UnsupportedAudio, UsageError
from codec.frames import FrameSpec
from codec.io.bounded_json import read_json
from codec.io.bounded_zip import check_expansion
from codec.io.plain_torch import NotPlainError, load_plain

SUFFIXES = (".ecdc", ".dac", ".npy", ".npz", ".pt", ".pth")
ECDC_MODELS = {"encodec_24khz": 24000, "encodec_48khz": 48000}
"""Sample rates of the models that an .ecdc file can name, in Hz."""
MAX_HEADER = 1 << 12  # bytes of the JSON of an .ecdc file

_ECDC = struct.Struct("!4sBI")


class ForeignCodes(NamedTuple):
    """The codes of one recording."""

    codes: npt.NDArray[np.int64]
    """[rows, codebooks, frames]."""
    scale: npt.NDArray[np.float32] | None = None
    """[rows, frames], for models with a scale."""
    time: int | None = None
    """Samples at `rate`, None if the file does not say."""
    rate: int | None = None
    """Sample rate of the recording in Hz, None for that of the model."""
    note: str | None = None
    """What a user should know."""


def read_codes(path: str | Path, spec: FrameSpec) -> ForeignCodes:
    """Read the codes of a file, of a model with this frame spec.

    Raises:
        InputNotFound: the file cannot be read.
        UnsupportedAudio: it is of another kind or another model, or entropy-coded.
        DamagedFile: it is not what its name says, or ends early.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UnsupportedAudio(f"{path} is not a file of codes: give one of {', '.join(SUFFIXES)}")
    try:
        with path.open("rb") as file:
            match path.suffix:
                case ".ecdc":
                    return _read_ecdc(file, path, spec)
                case ".dac":
                    return _read_dac(file, path, spec)
                case _:
                    return _of_arrays(_read_arrays(file, path), path)
    except OSError as error:
        raise InputNotFound(f"{path} cannot be read: {error.strerror or error}") from error


def write_codes(file: BinaryIO, suffix: str, found: ForeignCodes) -> None:
    """Write codes to an .npy file, or codes and scale to an .npz file; codes are uint16, or uint32 if they need it."""
    codes = found.codes.astype(np.uint32 if found.codes.size and found.codes.max() >= 1 << 16 else np.uint16)
    if suffix == ".npy":
        np.save(file, codes, allow_pickle=False)
    elif suffix == ".npz":
        arrays = {"codes": codes} | ({} if found.scale is None else {"scale": found.scale})
        np.savez(file, allow_pickle=False, **arrays)
    else:
        raise UsageError(f"codes cannot be written as {suffix or 'a file without a suffix'}: name an .npy or .npz file")


# .ecdc


def _read_ecdc(file: BinaryIO, path: Path, spec: FrameSpec) -> ForeignCodes:
    name, time, num_codebooks = _ecdc_header(file, path)
    if ECDC_MODELS[name] != spec.sample_rate:
        raise UnsupportedAudio(f"{path} was made by {name}, not by a model of {spec.sample_rate} Hz: pass its model")
    if num_codebooks > spec.num_codebooks:
        raise UnsupportedAudio(f"{path} has {num_codebooks} codebooks, the model {spec.num_codebooks}: pass its model")
    payload = file.read()
    bits = spec.bits_per_code * num_codebooks
    total = spec.frames(time)
    if total * bits > 8 * len(payload):
        raise DamagedFile(str(path), offset=path.stat().st_size, reason="it ends early")
    codes, scales, first = [], [], 0
    for frames in spec.segments(total) if spec.segment else [total]:
        if spec.segment:
            scales.append(np.full(frames, struct.unpack("!f", _taken(payload, first, 4, path))[0], np.float32))
            first += 4
        size = -(-frames * bits // 8)
        codes.append(_unpacked(_taken(payload, first, size, path), frames * num_codebooks, spec.bits_per_code))
        first += size
    if first != len(payload):
        raise DamagedFile(str(path), offset=file.tell() - len(payload) + first, reason="more bytes follow its codes")
    whole = np.concatenate(codes).reshape(1, -1, num_codebooks).transpose(0, 2, 1)
    scale = np.concatenate(scales)[None] if scales else None
    if scale is not None and not np.isfinite(scale).all():
        raise DamagedFile(str(path), offset=0, reason="a scale is not finite")
    return ForeignCodes(whole, scale, time)


def _ecdc_header(file: BinaryIO, path: Path) -> tuple[str, int, int]:
    """The model's name, the samples and the number of codebooks."""
    start = file.read(_ECDC.size)
    if len(start) < _ECDC.size or start[:4] != b"ECDC":
        raise DamagedFile(str(path), offset=0, reason="it does not begin as an .ecdc file")
    _, version, size = _ECDC.unpack(start)
    if version:
        raise UnsupportedAudio(f"{path} has version {version} of the .ecdc format: only version 0 is known")
    try:
        facts = read_json(file.read(size) if size <= MAX_HEADER else b"")
        name, time, num_codebooks, coded = (facts[key] for key in ("m", "al", "nc", "lm"))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(str(path), offset=_ECDC.size, reason="its header is altered") from error
    if name not in ECDC_MODELS:
        raise UnsupportedAudio(f"{path} was made by {name!r}: known are {', '.join(ECDC_MODELS)}")
    if coded:
        raise UnsupportedAudio(
            f"{path} is entropy-coded by a language model of encodec, which only encodec can undo: "
            "decode it there and encode the audio"
        )
    if not isinstance(time, int) or not isinstance(num_codebooks, int) or time < 1 or num_codebooks < 1:
        raise DamagedFile(str(path), offset=_ECDC.size, reason="its header is altered")
    return name, time, num_codebooks


def _taken(payload: bytes, first: int, size: int, path: Path) -> bytes:
    if first + size > len(payload):
        raise DamagedFile(str(path), offset=path.stat().st_size, reason="it ends early")
    return payload[first : first + size]


def _unpacked(data: bytes, count: int, bits: int) -> npt.NDArray[np.int64]:
    """Numbers of `bits` bits each, the lowest bits first."""
    flat = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    return flat.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))


# .dac


class _Dtype:
    """Stands for numpy.dtype."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numbers(self, data: bytes) -> npt.NDArray[Any]:
        """The numbers in bytes of this type."""
        if not re.fullmatch("[iuf][1248]", self.name):
            raise ValueError(f"{self.name} is not a type of numbers")
        return np.frombuffer(data, np.dtype(self.order.replace("|", "=") + self.name))


class _Array:
    """Stands for numpy.ndarray; `value` is the array, or the object in an array of one object."""

    value: Any

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.name[:1] == "O":
            (self.value,) = data
        else:
            self.value = dtype.numbers(data).reshape(shape, order="F" if fortran else "C")


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles plain data and numpy arrays, and no other object.

    Arrays are built here, of numbers only, because numpy's own unpickling of an altered array can end the process.
    """

    ALLOWED: ClassVar[dict[str, Callable[..., Any]]] = {
        "ndarray": _Array,
        "dtype": _Dtype,
        "_reconstruct": lambda kind, *_: kind(),
        "scalar": lambda dtype, data: dtype.numbers(data)[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        # the name of the core depends on the numpy that wrote the file
        known = ("numpy",) if name in ("ndarray", "dtype") else ("numpy.core.multiarray", "numpy._core.multiarray")
        if module not in known or name not in self.ALLOWED:
            raise NotPlainError(f"{module}.{name} is not plain data")
        return self.ALLOWED[name]


def _plain(value: Any) -> Any:
    """The array that an `_Array` stands for; other values as they are."""
    return value.value if isinstance(value, _Array) else value


def _read_dac(file: BinaryIO, path: Path, spec: FrameSpec) -> ForeignCodes:
    """Codes of a recording that was encoded in one window; `rate` and `time` are those of the recording."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if shape != () or not dtype.hasobject:
            raise DamagedFile(str(path), offset=0, reason="it does not hold what a .dac file holds")
        content = _plain(_PlainUnpickler(file).load())
        codes, facts = np.asarray(_plain(content["codes"])), content["metadata"]
        time, rate, frames, padded = (
            facts[key] for key in ("original_length", "sample_rate", "chunk_length", "padding")
        )
        level = float(np.asarray(_plain(facts["input_db"])).ravel()[0])
        time, rate, frames = int(time), int(rate), int(frames)
    except NotPlainError as error:
        raise UnsupportedAudio(f"{path} holds more than arrays and plain data, which is not executed") from error
    except (OSError, CodecError):
        raise
    except Exception as error:  # pickle and numpy let through whatever damaged bytes lead to, such as TokenError
        raise DamagedFile(str(path), offset=0, reason="it is not what its name says") from error
    if codes.ndim != 3 or codes.dtype.kind not in "iu" or not codes.size or time < 1 or rate < 1:
        raise DamagedFile(str(path), offset=0, reason="it has no codes [rows, codebooks, frames]")
    if not padded or codes.shape[2] > frames:
        raise UnsupportedAudio(
            f"{path} was encoded in windows of {frames} frames that overlap, so its codes are not one stream: decode "
            "it with descript-audio-codec and encode the audio"
        )
    if not np.isfinite(level):
        return ForeignCodes(codes.astype(np.int64), None, time, rate)
    note = f"the level was changed before encoding: the recording had {level:.1f} LUFS"
    return ForeignCodes(codes.astype(np.int64), None, time, rate, note)


# arrays


def _read_arrays(file: BinaryIO, path: Path) -> Any:
    """The content of a file: an array, or arrays by name."""
    read: Callable[[BinaryIO], Any] = _load_numpy if path.suffix in (".npy", ".npz") else load_plain
    try:
        return read(file)
    except NotPlainError as error:
        raise UnsupportedAudio(
            f"{path} holds more than arrays and plain data, which is not executed: save the array alone"
        ) from error
    except OSError:
        raise
    except Exception as error:  # numpy and zipfile let through whatever damaged bytes lead to, such as zlib.error
        raise DamagedFile(str(path), offset=0, reason="it holds no array that can be read") from error


def _load_numpy(file: BinaryIO) -> Any:
    check_expansion(file)
    loaded = np.load(file, allow_pickle=False)
    return loaded if isinstance(loaded, np.ndarray) else dict(loaded)


def _of_arrays(content: Any, path: Path) -> ForeignCodes:
    """Codes [codebooks, frames] with any leading dimensions, of which one at most is larger than 1.

    A dict has "codes" or "audio_codes", and maybe "scale"; the segments of encodec are a list of (codes, scale).
    """
    if isinstance(content, dict):
        codes = next((content[key] for key in ("codes", "audio_codes") if key in content), None)
        scale = content.get("scale")
    elif isinstance(content, list) and content and all(isinstance(part, tuple) and len(part) == 2 for part in content):
        parts = [(np.asarray(codes), scale) for codes, scale in content]
        codes = np.concatenate([own for own, _ in parts], axis=-1)
        scales = [np.broadcast_to(np.asarray(scale), own.shape[::2]) for own, scale in parts if scale is not None]
        scale = np.concatenate(scales, axis=-1) if scales else None
    else:
        codes, scale = content, None
    codes = np.asarray(codes)
    if codes.ndim < 2 or codes.dtype.kind not in "iu" or not codes.size:
        raise UnsupportedAudio(f"{path} has no codes: give integers [codebooks, frames] or [rows, codebooks, frames]")
    rows = codes.reshape(-1, *codes.shape[-2:])
    if len(rows) != max(codes.shape[:-2], default=1):
        raise UnsupportedAudio(f"{path} has codes {list(codes.shape)}: give [rows, codebooks, frames]")
    scale = None if scale is None else np.asarray(scale, np.float32).reshape(len(rows), -1)
    return ForeignCodes(rows.astype(np.int64), scale)
