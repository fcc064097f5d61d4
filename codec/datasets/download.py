"""Download an archive: resumable, bounded in size and time, verified by SHA-256.

None of the dependencies does all of these: pooch does not resume, huggingface_hub's http_get resumes without If-Range
and checks no SHA-256, requests and urllib3 only transfer, and none stops a download that is too slow.

Two files stay in DIR/.codec until a download is complete:

    NAME.part        the bytes so far
    NAME.validator   the ETag or date of their version of the file, sent as If-Range (RFC 9110, 13.1.5)
"""

from __future__ import annotations

import hashlib
import http.client
import queue
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console

from codec.datasets.base import BOOKKEEPING, Archive, BadArchive
from codec.datasets.progress import Show, progress_bar
from codec.errors import InputNotFound, StorageError

WAITS = (1.0, 5.0, 20.0, 60.0)  # seconds before each new attempt; the list restarts whenever bytes arrive
SILENCE = 60.0  # seconds without a byte after which a connection counts as lost
WINDOW = 300.0  # seconds over which the download speed is averaged
MIN_RATE = 10_000.0  # bytes/s; a slower download is stopped
CHUNK = 2**16


def download(archive: Archive, folder: Path, console: Console) -> Path:
    """Download an archive to `folder`, resuming an earlier download; return its path.

    Raises:
        InputNotFound: the server does not have the file, is unreachable in several attempts, or is too slow.
        BadArchive: the file differs from the published one.
        StorageError: the disk has too little space for it.
    """
    partial = Partial(folder / BOOKKEEPING / archive.name)
    _check_space(archive, folder, have=partial.size)
    rate = MinimumRate()
    waits = iter(WAITS)
    with progress_bar(f"download {archive.name}", console) as show:
        while True:
            before = partial.size
            try:
                if _transfer(archive, partial, show, rate):
                    break
                problem = "the connection was cut"
            except ConnectionLost as error:
                problem = str(error)
            except TooSlow as error:
                raise InputNotFound(
                    f"{archive.url} is stopped: {error}; the same command resumes after {partial.size} bytes"
                ) from error
            if partial.size > before:
                waits = iter(WAITS)
            if (wait := next(waits, None)) is None:
                raise InputNotFound(
                    f"{archive.url} cannot be downloaded ({problem}): check the network; the same command resumes "
                    f"after {partial.size} bytes"
                )
            time.sleep(wait)
    try:
        verify(partial.path, archive, console)
    except BadArchive:
        partial.discard()  # resuming cannot repair it
        raise
    partial.path.replace(folder / archive.name)
    partial.discard()
    return folder / archive.name


def verify(path: Path, archive: Archive, console: Console) -> None:
    """Compare a file with the known size and checksum.

    Raises:
        BadArchive: they differ.
    """
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise BadArchive(
            f"{path} has {size} bytes instead of {archive.size}: remove it, and the same command downloads it again"
        )
    if archive.sha256 is None:
        console.print(
            f"no checksum of {archive.name} is known ({archive.unchecked}): only the checksums inside it are verified"
        )
        return
    digest = hashlib.sha256()
    with progress_bar(f"check {archive.name}", console) as show, path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            show(file.tell(), size)
    if digest.hexdigest() != archive.sha256:
        raise BadArchive(
            f"{path} has the SHA-256 {digest.hexdigest()} instead of {archive.sha256}: remove it, and the same command "
            "downloads it again; if the error repeats, the publisher has changed it"
        )


@dataclass(frozen=True)
class Partial:
    """Unfinished download `base`.part, with the validator of the file's version."""

    base: Path

    @property
    def path(self) -> Path:
        return self.base.with_name(f"{self.base.name}.part")

    @property
    def _validator_path(self) -> Path:
        return self.base.with_name(f"{self.base.name}.validator")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        return self._validator_path.read_text("latin-1") if self._validator_path.exists() else ""

    def restart(self, validator: str) -> None:
        """Start with an empty file."""
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_bytes(b"")
        self._validator_path.write_text(validator, "latin-1")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._validator_path.unlink(missing_ok=True)


class ConnectionLost(Exception):  # noqa: N818
    """The connection failed in a way that another attempt may solve."""


class TooSlow(Exception):  # noqa: N818
    """The download is slower than MIN_RATE."""


class MinimumRate:
    """Check that the average download speed over WINDOW seconds, waits included, is at least MIN_RATE."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.received = 0

    def count(self, size: int) -> None:
        """Count `size` bytes that have arrived.

        Raises:
            TooSlow: too few bytes arrived in the last window.
        """
        self.received += size
        elapsed = time.monotonic() - self.since
        if elapsed < WINDOW:
            return
        if self.received < MIN_RATE * elapsed:
            raise TooSlow(
                f"{self.received} bytes in {elapsed:.0f} s are too slow (at least {MIN_RATE / 1000:g} kB/s are needed)"
            )
        self.since, self.received = time.monotonic(), 0


class Connection:
    """One HTTP request, read by a thread of its own, so that every wait has a limit.

    A socket timeout is not enough, because it restarts with each byte, also within headers and chunk sizes.
    """

    def __init__(self, request: Request) -> None:
        self._arrived: queue.Queue[http.client.HTTPResponse | HTTPError | bytes | ConnectionLost] = queue.Queue(16)
        self._abandoned = threading.Event()
        threading.Thread(target=self._read, args=(request,), daemon=True).start()
        response = self._next()
        assert not isinstance(response, bytes)
        self.status = response.status or 0
        self.reason: str = response.reason
        self.headers: Message = response.headers

    def blocks(self) -> Iterator[bytes]:
        """Yield the body in blocks.

        Raises:
            ConnectionLost: the connection broke, or was silent for SILENCE seconds.
        """
        while block := self._next():
            assert isinstance(block, bytes)
            yield block

    def close(self) -> None:
        self._abandoned.set()

    def _next(self) -> http.client.HTTPResponse | HTTPError | bytes:
        try:
            item = self._arrived.get(timeout=SILENCE)
        except queue.Empty:
            self.close()
            raise ConnectionLost(f"nothing arrived in {SILENCE:g} s") from None
        if isinstance(item, ConnectionLost):
            raise item
        return item

    def _read(self, request: Request) -> None:
        try:
            with urlopen(request, timeout=SILENCE) as response:
                self._put(response)
                while (block := response.read1(CHUNK)) and not self._abandoned.is_set():
                    self._put(block)
                self._put(b"")
        except HTTPError as error:
            self._put(error)
            error.close()
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._put(ConnectionLost(str(error) or type(error).__name__))

    def _put(self, item: http.client.HTTPResponse | HTTPError | bytes | ConnectionLost) -> None:
        while not self._abandoned.is_set():
            try:
                return self._arrived.put(item, timeout=1.0)
            except queue.Full:
                pass
        return None


def _transfer(archive: Archive, partial: Partial, show: Show, rate: MinimumRate) -> bool:
    """Append the bytes of one connection; return whether the file is complete."""
    have, validator = partial.size, partial.validator
    if not validator and archive.sha256 is None:
        have = 0  # without validator and checksum, a mixture of two versions would go unnoticed
    headers = {"User-Agent": "codec", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    connection = Connection(Request(archive.url, headers=headers))
    try:
        if connection.status >= 400 and not (have and connection.status == 416):
            if connection.status >= 500 or connection.status in (408, 429):
                raise ConnectionLost(f"{connection.status} {connection.reason}")
            raise InputNotFound(
                f"{archive.url} cannot be downloaded ({connection.status} {connection.reason}): if the file has moved, "
                f"put {archive.name} into {partial.base.parent.parent} and run the same command"
            )
        same = not validator or _validator(connection.headers) in ("", validator)
        given = connection.headers.get("Content-Range", "")
        if connection.status == 416:  # range not satisfiable
            if same and given == f"bytes */{have}":
                return True
            partial.discard()
            return False
        resumed = re.fullmatch(rf"bytes {have}-\d+/(\d+|\*)", given) if connection.status == 206 else None
        if connection.status == 206 and not (resumed and same):
            partial.discard()  # another version of the file, or another range
            return False
        length = resumed[1] if resumed else connection.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        _check_size(archive, total, partial)
        if not resumed:
            partial.restart(_validator(connection.headers))
        end = archive.size if total is None else total
        with partial.path.open("ab") as file:
            for block in connection.blocks():
                file.write(block if end is None else block[: end - file.tell()])
                show(file.tell(), end)
                rate.count(len(block))
                if file.tell() == end:
                    return True
                _check_size(archive, file.tell(), partial, final=False)
        return end is None or partial.size == end
    finally:
        connection.close()


def _check_size(archive: Archive, size: int | None, partial: Partial, *, final: bool = True) -> None:
    """Raise BadArchive if a size (`final` False: a size so far) contradicts the known size or limit."""
    if size is None:
        return
    folder = partial.base.parent.parent
    if archive.size is not None and (size != archive.size if final else size > archive.size):
        raise BadArchive(
            f"{archive.url} has {size} bytes instead of {archive.size}: its publisher has changed it; put a copy of "
            f"the earlier version into {folder}"
        )
    if archive.size_limit is not None and size > archive.size_limit:
        partial.discard()
        raise BadArchive(
            f"{archive.url} has more than {archive.size_limit} bytes: it cannot be the published file; get "
            f"{archive.name} elsewhere and put it into {folder}"
        )


def _validator(headers: Message) -> str:
    """Return the identifier of a file's version: its strong ETag, else its date, else an empty string."""
    etag = headers.get("ETag", "")
    validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
    return validator if re.fullmatch("[ -~]+", validator) else ""


def _check_space(archive: Archive, folder: Path, *, have: int) -> None:
    """Raise StorageError if the rest of an archive does not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if archive.size is not None and free < archive.size - have:
        raise StorageError(
            f"{folder} has {free / 1e9:.1f} GB left and {archive.name} needs {(archive.size - have) / 1e9:.1f} GB, and "
            "more to unpack it: free some space or choose another DIR"
        )
