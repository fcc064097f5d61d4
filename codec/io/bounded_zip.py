"""Zip files of arrays and tensors that others may have written: torch.save, numpy.savez."""

import zipfile
from pathlib import Path
from typing import BinaryIO

EXPANSION = 64  # bytes that a file may unpack to per byte; compressed codes that repeat have 20
ALLOWANCE = 2**26  # bytes in addition, for small files


def check_expansion(file: BinaryIO | Path) -> None:
    """Raise ValueError for a zip file that would unpack to far more than its size; other files pass.

    The position in an open file is as before.
    """
    position = None if isinstance(file, Path) else file.tell()
    try:
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is a damaged zip file ({error})") from error
    finally:
        if position is not None and not isinstance(file, Path):
            file.seek(position)
    unpacked, packed = (sum(getattr(entry, name) for entry in entries) for name in ("file_size", "compress_size"))
    if unpacked > ALLOWANCE + EXPANSION * packed:
        raise ValueError(f"it would unpack to {unpacked} bytes")
