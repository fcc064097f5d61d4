"""Audio in the rows of Parquet files, as Hugging Face datasets hold it: a column of structs {bytes, path}.

A row is named as if it were a file in a folder: data/train-00000-of-00002.parquet/12 is row 12, counted from 0. Row
groups are read forward, page by page, so that a page and the last rows are in memory; most writers put the rows of a
whole group into one page.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from textwrap import shorten
from typing import Any

from codec.errors import ConfigError, InputNotFound, MissingDependency, UnsupportedAudio
from codec.io.bounded_json import read_json

SUFFIX = ".parquet"
AUDIO = "audio"  # the column that is taken if several hold audio
KEPT_BYTES = 2**25  # of rows that were read last, because recordings are read more than once, and by several threads
OPEN_FILES = 4
BUFFER = 2**20  # bytes of a file that are read at once


def pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet. Raises MissingDependency."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(
            "Parquet files need pyarrow: pip install '.[parquet]' in the project's folder"
        ) from error
    return pyarrow, pyarrow.parquet


def row_of(path: Path) -> tuple[Path, int] | None:
    """The Parquet file and the row that a path names; None if it names an ordinary file."""
    if path.parent.suffix != SUFFIX or not (path.name.isascii() and path.name.isdecimal()):
        return None
    return (path.parent, int(path.name)) if path.parent.is_file() else None


def row_size(file: Path) -> int | None:
    """Bytes of a row of a file on average; None if the file cannot be read."""
    try:
        return file.stat().st_size // max(1, _opened(file).rows)
    except (OSError, InputNotFound, ConfigError):
        return None


def texts(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The values of those of some columns that the file has, for each row; class labels by their names.

    Raises InputNotFound if the file cannot be read, ConfigError if it has no column of audio, MissingDependency.
    """
    rows = _opened(file)
    found = [name for name in columns if name in rows.names]
    if not found:
        yield from ({} for _ in range(rows.rows))
        return
    labels = {name: rows.class_names(name) for name in found}
    with _reading(file), rows.reopened() as parquet:
        for batch in parquet.iter_batches(columns=found, use_threads=False):
            for row in batch.to_pylist():
                yield {name: _named(value, labels[name]) for name, value in row.items()}


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """A value, or the name of a class label, which is None if unknown."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def audio(file: Path, row: int) -> bytes | Path:
    """The audio of a row: the content of a file, or the path of one.

    Raises InputNotFound if the file cannot be read or has no such row, UnsupportedAudio if the row has no audio.
    """
    value = _opened(file).audio(row)
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
    else:
        content, path = value, None
    if content:
        return bytes(content)
    if isinstance(path, str) and path and content is None:
        return file.parent / path
    raise UnsupportedAudio(f"{file / str(row)} has no audio: leave this row out")


def _opened(file: Path) -> _Rows:
    """An open file, which is opened again if it has changed."""
    try:
        modified = file.stat().st_mtime_ns
    except OSError as error:
        raise InputNotFound(f"{file} cannot be read ({error.strerror}): check the path") from error
    return _open(file, modified)


@lru_cache(maxsize=OPEN_FILES)
def _open(file: Path, modified: int) -> _Rows:
    return _Rows(file)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Raise what is wrong with a file as InputNotFound."""
    try:
        yield
    except (OSError, ValueError, pyarrow()[0].ArrowException) as error:  # Arrow's own errors are ValueErrors
        reason = shorten(str(error) or type(error).__name__, 200)
        raise InputNotFound(f"{file} cannot be read ({reason}): download or write it again") from error


class _Rows:
    """The audio of an open file, row by row."""

    def __init__(self, file: Path) -> None:
        self._path = file
        with _reading(file):
            self._file = pyarrow()[1].ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
            metadata, self._schema = self._file.metadata, self._file.schema_arrow
            groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.rows: int = sum(groups)
        self.names: list[str] = self._schema.names
        self._column = self._audio_column()
        self._begins = [sum(groups[:group]) for group in range(len(groups))]
        self._batches: Iterator[Any] = iter(())
        self._next = 0
        self._end = 0
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def _audio_column(self) -> str:
        """The name of the column of audio. Raises ConfigError if there is none."""
        types = pyarrow()[0].types
        found = []
        for field in self._schema:
            kind = field.type
            if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
                kind = kind.field("bytes").type
            elif field.name != AUDIO:
                continue
            if types.is_binary(kind) or types.is_large_binary(kind):
                found.append(field.name)
        if not found:
            columns = shorten(", ".join(self.names), 100) or "none"
            raise ConfigError(
                f"{self._path} has no column of audio, a struct of bytes and path; its columns are {columns}: name a "
                "dataset with audio (codec tokens import takes codes)"
            )
        return AUDIO if AUDIO in found else found[0]

    def class_names(self, column: str) -> list[str] | None:
        """The names of the class labels of a column, as `datasets` writes them; None if it has none."""
        entry = (self._schema.metadata or {}).get(b"huggingface", b"{}")
        try:
            names = read_json(entry)["info"]["features"][column]["names"]
        except (ValueError, KeyError, TypeError):
            return None
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None

    def reopened(self) -> Any:
        """The file for a second reader."""
        return pyarrow()[1].ParquetFile(self._path, buffer_size=BUFFER, pre_buffer=False)

    def audio(self, row: int) -> Any:
        """The value of the column of audio in a row."""
        if not 0 <= row < self.rows:
            raise InputNotFound(f"{self._path} has {self.rows} rows, counted from 0: there is no row {row}")
        with self._lock:
            if row not in self._kept:
                with _reading(self._path):
                    self._read_to(row)
            return self._kept[row]

    def _read_to(self, row: int) -> None:
        """Read forward to a row, from the begin of its row group unless the reader is before it in the same one."""
        if not self._next <= row < self._end:
            group = max(group for group, begin in enumerate(self._begins) if begin <= row)
            self._next = self._begins[group]
            self._end = [*self._begins, self.rows][group + 1]
            self._batches = self._file.iter_batches(1, row_groups=[group], columns=[self._column], use_threads=False)
        while self._next <= row:
            number, self._next = self._next, self._end  # if it fails, the group is opened again
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(f"row {number} is missing")
            self._keep(number, batch.column(0)[0].as_py())
            self._next = number + 1

    def _keep(self, row: int, value: Any) -> None:
        self._kept[row] = value
        self._kept_bytes += _size(value)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])


def _size(value: Any) -> int:
    content = value.get("bytes") if isinstance(value, dict) else value
    return len(content or b"")
