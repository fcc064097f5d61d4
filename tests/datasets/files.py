"""Small archives and recordings for the tests."""

import hashlib
import io
import zipfile
from pathlib import Path

from rich.console import Console

from codec.datasets.base import Archive
from codec.io.audio import write_audio
from tests.datasets.conftest import Server
from tests.helpers.training import tones


def printed(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def archive_of(server: Server) -> Archive:
    return Archive(server.url, holds="data", sha256=hashlib.sha256(server.content).hexdigest())


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def wav(path: Path) -> bytes:
    write_audio(path, tones(0.3, 8000, seed=1), 8000, force=True)
    return path.read_bytes()
