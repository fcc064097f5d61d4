"""Every error a user can cause or meet; each class knows the exit status of the command line.

Status 1 is no error class: it says that some files of a folder failed and the others are done.
"""

# ruff: noqa: N818 (a name says what happened; "Error" at its end would add nothing to a class of this file)

from typing import ClassVar


class CodecError(Exception):
    """Root of all errors raised on purpose; its message is one line with the value and the way out."""

    exit_code: ClassVar[int] = 1


class UsageError(CodecError):
    """The call makes no sense as it stands: arguments that contradict each other or are out of range."""

    exit_code = 2


class BadIndex(UsageError, IndexError):
    """A sequence has no item at that place, or cannot be indexed so."""


class ConfigError(UsageError):
    """A recipe, an override or a model setting is wrong."""


class InputNotFound(CodecError):
    """The input does not exist, is a folder where a file is needed, or may not be read."""

    exit_code = 3


class UnsupportedAudio(CodecError):
    """The input is no audio, has no samples, or has samples that cannot be coded (NaN, infinite)."""

    exit_code = 4


class DamagedFile(CodecError):
    """A compressed file is truncated or altered.

    `label` names the file, `offset` is the position of the damage in bytes, `seconds_decoded` says up to which time the
    audio before it is whole (None: nothing can be decoded).
    """

    exit_code = 5

    def __init__(self, label: str, *, offset: int, reason: str, seconds_decoded: float | None = None) -> None:
        self.label = label
        self.offset = offset
        self.reason = reason
        self.seconds_decoded = seconds_decoded
        whole = (
            "nothing can be restored, fetch the file again"
            if seconds_decoded is None
            else f"the first {seconds_decoded:.3f} s are whole; fetch the file again for the rest"
        )
        super().__init__(f"{label} is damaged at byte {offset} ({reason}): {whole}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle through `args` alone, and worker processes send theirs home pickled.
        return _damaged_file, (self.label, self.offset, self.reason, self.seconds_decoded)


class UnknownModel(CodecError):
    """No shipped model or file has that name."""

    exit_code = 6


class WeightsMismatch(CodecError):
    """A compressed file was made by other weights than those at hand."""

    exit_code = 7


class StorageError(CodecError):
    """An output cannot be written: disk full, not permitted, or it exists and may not be replaced."""

    exit_code = 8


class MissingDependency(CodecError):
    """An optional package is needed and not installed."""

    exit_code = 9


def _damaged_file(label: str, offset: int, reason: str, seconds_decoded: float | None) -> DamagedFile:
    return DamagedFile(label, offset=offset, reason=reason, seconds_decoded=seconds_decoded)
