"""Every error a user can cause or meet; each class knows the exit status of the command line.

Status 1 has no class of its own: it means that some files of a folder failed and the others are done.
"""

# ruff: noqa: N818 (a name says what happened; "Error" at its end would add nothing to a class of this file)

import unicodedata
from functools import partial
from typing import Any, ClassVar, TypeAlias

ModelId: TypeAlias = tuple[str | None, str | None]
"""A model's name and the hex SHA-256 of its weights; None where it has none."""


class CodecError(Exception):
    """Root of all errors raised on purpose; the message is one line with the value and the way out."""

    exit_code: ClassVar[int] = 1


class UsageError(CodecError):
    """Arguments contradict each other or are out of range."""

    exit_code = 2


class BadIndex(UsageError, IndexError):
    """A sequence has no such item, or does not take such an index."""


class ConfigError(UsageError):
    """A recipe, an override or a model setting is wrong."""


class InputNotFound(CodecError):
    """The input does not exist, is a folder where a file is needed, or may not be read."""

    exit_code = 3


class UnsupportedAudio(CodecError):
    """The input is not audio, has no samples, or has samples that cannot be coded (NaN, infinite)."""

    exit_code = 4


class DamagedFile(CodecError):
    """A compressed file is truncated or altered.

    `label` names the file, `offset` is the position of the first damage in bytes. `seconds_decoded` is the length of
    the intact audio before it; None if nothing can be decoded. Where everything intact was decoded, `lost` has the
    missing parts of the audio, from and to in seconds (to is None: up to the end), `places` counts the damages,
    `written` names the output that has what is intact, and `mended` says that it is a .codec file without the damage.
    """

    exit_code = 5

    def __init__(
        self,
        label: str,
        *,
        offset: int,
        reason: str,
        seconds_decoded: float | None = None,
        lost: tuple[tuple[float, float | None], ...] | None = None,
        places: int = 1,
        written: str | None = None,
        mended: bool = False,
    ) -> None:
        self.label = label
        self.offset = offset
        self.reason = reason
        self.seconds_decoded = seconds_decoded
        self.lost = lost
        self.places = places
        self.written = written
        self.mended = mended
        more = f", and in {places - 1} more places" if places > 1 else ""
        super().__init__(f"{label} is damaged at byte {offset} ({reason}){more}: {self._intact()}")

    def _intact(self) -> str:
        if self.seconds_decoded is None:
            return "nothing can be restored, fetch the file again"
        if self.lost is None:
            return f"the first {self.seconds_decoded:.3f} s are intact; fetch the file again for the rest"
        place = "" if self.written is None else f" and in {self.written}"
        if not self.lost:
            way_out = "" if self.mended else "; codec transcode writes a file without the damage"
            return f"all audio is intact{place}{way_out}"
        shown = [f"{start:.3f} to {end:.3f} s" if end else f"all from {start:.3f} s on" for start, end in self.lost[:5]]
        rest = [f"{len(self.lost) - 5} more parts"] if len(self.lost) > 5 else []
        return f"lost are {', '.join(shown + rest)}, the rest is intact{place}; fetch the file again"

    def with_output(self, written: str, *, mended: bool = False) -> "DamagedFile":
        """The same error, whose message names the output with everything that is intact."""
        return DamagedFile(self.label, **(self._fields() | {"written": written, "mended": mended}))

    def _fields(self) -> dict[str, Any]:
        names = "offset", "reason", "seconds_decoded", "lost", "places", "written", "mended"
        return {name: getattr(self, name) for name in names}

    def __reduce__(self) -> tuple[object, ...]:
        # Without this method, unpickling would call the class with the message alone; worker processes pickle errors.
        return partial(DamagedFile, self.label, **self._fields()), ()


class UnknownModel(CodecError):
    """No shipped model or file has that name."""

    exit_code = 6


class WeightsMismatch(CodecError):
    """`label` was made by the model `made_by`, and the model `given` has other weights; `way_out` ends the message."""

    exit_code = 7

    def __init__(self, label: str, *, made_by: ModelId, given: ModelId, way_out: str) -> None:
        self.label = label
        self.made_by = made_by
        self.given = given
        self.way_out = way_out
        super().__init__(f"{label} was made by {model_label(made_by)}, not by {model_label(given)}: {way_out}")

    def __reduce__(self) -> tuple[object, ...]:
        made_by, given, way_out = self.made_by, self.given, self.way_out
        return partial(WeightsMismatch, self.label, made_by=made_by, given=given, way_out=way_out), ()


class StorageError(CodecError):
    """An output cannot be written: disk full, not permitted, or it exists and may not be replaced."""

    exit_code = 8


class MissingDependency(CodecError):
    """An optional package is needed and not installed."""

    exit_code = 9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the CPU or a GPU. torch's errors are known by name and text, without importing it."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or of_torch


def printable(text: str, *, keep: str = "") -> str:
    """A text whose unprintable characters are escaped, because names and metadata may hold control sequences.

    "a\\x1b[2J" for a name with an ESC. Characters of `keep` and all spaces stay.
    """
    return "".join(
        one if one.isprintable() or one in keep or unicodedata.category(one) == "Zs" else repr(one)[1:-1]
        for one in text
    )


def joined_lines(error: object) -> str:
    """The message of another library in one line."""
    return " ".join(str(error).split())


def model_label(model: ModelId) -> str:
    """A model as messages name it: its name and the first 12 digits of its hash."""
    name, weights_hash = model
    return f"{name or 'an unnamed model'} (weights {(weights_hash or 'unknown')[:12]})"
