"""datasets/download.py: resuming, verification, limits of size and time."""

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from codec.datasets import download as module
from codec.datasets.base import BadArchive
from codec.datasets.download import download
from codec.errors import InputNotFound, StorageError
from tests.datasets.conftest import Server
from tests.datasets.files import archive_of


def part(folder: Path) -> Path:
    (folder / ".codec").mkdir()
    return folder / ".codec/data.zip.part"


def test_a_cut_connection_is_resumed(server: Server, console: Console, tmp_path: Path) -> None:
    server.cuts = [300_000, 1, 400_000]
    download(archive_of(server), tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content
    assert server.requests == ["", "bytes=300000-", "bytes=300001-", "bytes=700001-"]
    assert not (tmp_path / ".codec/data.zip.part").exists()


def test_an_earlier_download_is_resumed(server: Server, console: Console, tmp_path: Path) -> None:
    server.cuts = [500_000, 0, 0, 0, 0]
    with pytest.raises(InputNotFound, match="the same command resumes after 500000 bytes"):
        download(archive_of(server), tmp_path, console)
    assert len(server.requests) == 1 + 2  # one more after each of two waits
    server.cuts.clear()
    download(archive_of(server), tmp_path, console)
    assert server.requests[-1] == "bytes=500000-"
    assert (tmp_path / "data.zip").read_bytes() == server.content


def test_a_complete_part_is_only_verified(server: Server, console: Console, tmp_path: Path) -> None:
    part(tmp_path).write_bytes(server.content)
    download(archive_of(server), tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content


def test_a_part_longer_than_the_file_is_downloaded_again(server: Server, console: Console, tmp_path: Path) -> None:
    part(tmp_path).write_bytes(server.content + b"more")
    download(archive_of(server), tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content


@pytest.mark.parametrize("lengths", [True, False])
def test_a_server_without_ranges(server: Server, console: Console, tmp_path: Path, lengths: bool) -> None:
    server.ranges, server.lengths = False, lengths
    part(tmp_path).write_bytes(b"of another file")
    download(archive_of(server), tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content


def test_a_busy_server_is_tried_again(server: Server, console: Console, tmp_path: Path) -> None:
    server.statuses = [503, 429, 200]
    download(archive_of(server), tmp_path, console)
    assert len(server.requests) == 3


def test_a_file_that_has_moved(server: Server, console: Console, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(InputNotFound, match=r"404 Not Found.* put data.zip into"):
        download(archive_of(server), tmp_path, console)
    assert len(server.requests) == 1


def test_a_wrong_checksum_is_not_kept(server: Server, console: Console, tmp_path: Path) -> None:
    archive = archive_of(server)
    server.content = bytes(len(server.content))
    with pytest.raises(BadArchive, match=f"instead of {archive.sha256}"):
        download(archive, tmp_path, console)
    assert list(tmp_path.rglob("*.*")) == [tmp_path / ".codec"]


def test_a_wrong_size_fails_before_the_download(server: Server, console: Console, tmp_path: Path) -> None:
    archive = replace(archive_of(server), size=5)
    with pytest.raises(BadArchive, match="has 1024000 bytes instead of 5: its publisher has changed it"):
        download(archive, tmp_path, console)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_fails_before_the_download(server: Server, console: Console, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"data.zip needs 1000000000.0 GB"):
        download(replace(archive_of(server), size=10**18), tmp_path, console)
    assert server.requests == []


# no mixture of two versions


@pytest.mark.parametrize(("etag", "dated"), [('"1"', ""), ('W/"1"', "Sat, 01 Jan 2022 00:00:00 GMT")])
@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changes_is_downloaded_from_its_start(
    server: Server, console: Console, tmp_path: Path, etag: str, dated: str, ignores_if_range: bool
) -> None:
    server.etag, server.dated, server.ignores_if_range = etag, dated, ignores_if_range
    server.cuts = [500_000, 0, 0, 0, 0]
    archive = replace(archive_of(server), sha256=None)
    with pytest.raises(InputNotFound):
        download(archive, tmp_path, console)
    server.cuts.clear()
    server.content = server.content[::-1]
    server.etag, server.dated = etag.replace("1", "2"), dated.replace("2022", "2023")
    download(archive, tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content
    assert server.conditions[3] == dated or etag  # the first attempt of the second download
    assert list((tmp_path / ".codec").iterdir()) == []


def test_without_etag_and_date_resuming_needs_a_checksum(server: Server, console: Console, tmp_path: Path) -> None:
    server.etag = ""
    part(tmp_path).write_bytes(server.content[:1000])
    download(archive_of(server), tmp_path, console)
    assert server.requests == ["bytes=1000-"]
    (tmp_path / "data.zip").rename(tmp_path / ".codec/data.zip.part")
    download(replace(archive_of(server), sha256=None), tmp_path, console)
    assert server.requests[1:] == [""]
    assert (tmp_path / "data.zip").read_bytes() == server.content


# limits


def test_bytes_beyond_the_known_size_are_dropped(server: Server, console: Console, tmp_path: Path) -> None:
    server.lengths, server.excess = False, bytes(10**6)
    archive = replace(archive_of(server), size=len(server.content))
    download(archive, tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content


@pytest.mark.parametrize("lengths", [True, False])
def test_more_than_the_size_limit_is_refused(server: Server, console: Console, tmp_path: Path, lengths: bool) -> None:
    server.lengths = lengths
    archive = replace(archive_of(server), size_limit=10**6)
    with pytest.raises(BadArchive, match="has more than 1000000 bytes"):
        download(archive, tmp_path, console)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_slow_download_stops(
    server: Server, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 0.3)
    server.pause = 0.02
    began = time.monotonic()
    with pytest.raises(InputNotFound, match=r"are too slow \(at least 10 kB/s.*; the same command resumes after \d+ b"):
        download(archive_of(server), tmp_path, console)
    assert time.monotonic() - began < 5
    server.pause = 0
    download(archive_of(server), tmp_path, console)
    assert server.requests[-1] != ""
    assert (tmp_path / "data.zip").read_bytes() == server.content


def test_slow_headers_stop(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.2)
    ended = threading.Event()

    def answer() -> None:
        while not ended.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not ended.wait(0.05):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        break

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        threads = [threading.Thread(target=answer) for _ in range(4)]
        for thread in threads:
            thread.start()
        archive = replace(archive_of(server), url=f"http://127.0.0.1:{listening.getsockname()[1]}/data.zip")
        try:
            with pytest.raises(InputNotFound, match=r"\(nothing arrived in 0.2 s\): check the network"):
                download(archive, tmp_path, console)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
