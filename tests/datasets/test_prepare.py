"""datasets/prepare.py: nothing is fetched without a yes, nothing is fetched twice, and no archive writes elsewhere."""

import hashlib
import io
import os
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from codec.audio import write_audio
from codec.corpus import Clip, clips
from codec.datasets import prepare as module
from codec.datasets.prepare import Archive, BadArchive, Dataset, Licence, by_hash, fetch, prepare, provide, run, unpack
from codec.errors import InputNotFound, StorageError, UsageError
from tests.training.small import tones

LICENCE = Licence("CC BY 4.0", "https://example.org/by", "nearly everything", "naming the authors", "the authors")


@dataclass
class Server:
    """Serves one file on this machine; `cuts` says after how many bytes of an answer the connection ends."""

    content: bytes
    ranges: bool = True
    lengths: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0))
    state = Server(bytes(range(256)) * 4000)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.asked.append(wanted)
            if state.statuses and (status := state.statuses.pop(0)) != 200:
                self.send_error(status)
                return
            first = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if state.ranges else 0
            body = state.content[first:]
            if wanted and state.ranges and not body:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
            elif wanted and state.ranges:
                self.send_response(206)
                last = len(state.content) - 1
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(state.content)}")
            else:
                self.send_response(200)
            if state.lengths:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *_: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/data.zip"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
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


# fetching


def test_a_cut_connection_is_gone_on_with(server: Server, console: Console, tmp_path: Path) -> None:
    server.cuts = [300_000, 1, 400_000]
    fetch(archive_of(server), tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content
    assert server.asked == ["", "bytes=300000-", "bytes=300001-", "bytes=700001-"]
    assert not (tmp_path / "data.zip.part").exists()


def test_what_an_earlier_run_left_is_gone_on_with(server: Server, console: Console, tmp_path: Path) -> None:
    server.cuts = [500_000, 0, 0, 0, 0]
    with pytest.raises(InputNotFound, match="the same command goes on from the 500000 bytes"):
        fetch(archive_of(server), tmp_path, console)
    assert len(server.asked) == 1 + 2  # one more after each of two waits
    server.cuts.clear()
    fetch(archive_of(server), tmp_path, console)
    assert server.asked[-1] == "bytes=500000-"
    assert (tmp_path / "data.zip").read_bytes() == server.content


def test_a_part_that_is_whole_is_only_checked(server: Server, console: Console, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(server.content)
    fetch(archive_of(server), tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content


def test_a_part_longer_than_the_file_is_fetched_anew(server: Server, console: Console, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(server.content + b"more")
    fetch(archive_of(server), tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content


@pytest.mark.parametrize("lengths", [True, False])
def test_a_server_that_knows_no_ranges(server: Server, console: Console, tmp_path: Path, lengths: bool) -> None:
    server.ranges, server.lengths = False, lengths
    (tmp_path / "data.zip.part").write_bytes(b"of another file")
    fetch(archive_of(server), tmp_path, console)
    assert (tmp_path / "data.zip").read_bytes() == server.content


def test_a_busy_server_is_asked_again(server: Server, console: Console, tmp_path: Path) -> None:
    server.statuses = [503, 429, 200]
    fetch(archive_of(server), tmp_path, console)
    assert len(server.asked) == 3


def test_a_file_that_has_moved(server: Server, console: Console, tmp_path: Path) -> None:
    server.statuses = [404]
    with pytest.raises(InputNotFound, match=r"404 Not Found.* put data.zip into"):
        fetch(archive_of(server), tmp_path, console)
    assert len(server.asked) == 1


def test_a_wrong_checksum_is_not_kept(server: Server, console: Console, tmp_path: Path) -> None:
    archive = archive_of(server)
    server.content = bytes(len(server.content))
    with pytest.raises(BadArchive, match=f"should have {archive.sha256}"):
        fetch(archive, tmp_path, console)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_size_is_told_before_it_is_fetched(server: Server, console: Console, tmp_path: Path) -> None:
    archive = replace(archive_of(server), size=5)
    with pytest.raises(BadArchive, match="has 1024000 bytes and should have 5: its publisher has changed it"):
        fetch(archive, tmp_path, console)
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_told_before_it_is_fetched(server: Server, console: Console, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"data.zip needs 1000000000.0 GB"):
        fetch(replace(archive_of(server), size=10**18), tmp_path, console)
    assert server.asked == []


def test_what_the_user_put_there_is_checked_too(server: Server, console: Console, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(zipped(**{"data/a.wav": b"a"}))
    with pytest.raises(BadArchive, match="sha256"):
        provide(archive_of(server), tmp_path, console)
    assert not (tmp_path / "data").exists()
    assert server.asked == []


def test_an_unknown_checksum_is_said(console: Console, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(zipped(**{"data/a.wav": b"a"}))
    provide(Archive("http://nowhere/data.zip", holds="data", unchecked="it changes daily"), tmp_path, console)
    assert "no checksum of data.zip is known (it changes daily)" in said(console)
    assert (tmp_path / "data/a.wav").read_bytes() == b"a"


# unpacking


def tar_with(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


OUTSIDE = ["../escaped", "data/../../escaped", "{absolute}/escaped", "data\\..\\..\\escaped", "C:/escaped"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_entry_leads_outside(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "in/side"
    name = name.format(absolute=tmp_path)
    (tmp_path / "bad.zip").write_bytes(zipped(**{name: b"x"}))
    tar_with(tmp_path / "bad.tar.gz", (tar_entry(name), b"x"))
    for bad in ("bad.zip", "bad.tar.gz"):
        with pytest.raises(BadArchive, match="outside its folder"):
            unpack(tmp_path / bad, inside)
    assert not inside.exists()
    assert {path.name for path in tmp_path.rglob("*")} == {"bad.zip", "bad.tar.gz"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_no_links_or_devices_from_tar(kind: bytes, tmp_path: Path) -> None:
    entries = (tar_entry("data/link", kind, "/etc"), b""), (tar_entry("data/link/file"), b"x")
    with pytest.raises(BadArchive, match="a link or a device"):
        unpack(tar_with(tmp_path / "bad.tar.gz", *entries), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_links_from_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("data/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(BadArchive, match="a link or a device"):
        unpack(tmp_path / "bad.zip", tmp_path / "out")


def good_zip(path: Path) -> Path:
    path.write_bytes(zipped(**{f"data/{number}": os.urandom(3000) for number in range(9)}))
    return path


def good_tar(path: Path) -> Path:
    folder = tar_entry("data", tarfile.DIRTYPE), b""
    return tar_with(path, folder, *((tar_entry(f"./data/{number}"), os.urandom(3000)) for number in range(9)))


@pytest.mark.parametrize(("make", "name"), [(good_zip, "a.zip"), (good_tar, "a.tar.gz")])
def test_unpacking_goes_on_and_repeats(make: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / name)
    unpack(archive, tmp_path)
    files = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert sorted(files) == [str(number) for number in range(9)]
    (tmp_path / "data/3").write_bytes(b"half")
    (tmp_path / "data/5").unlink()
    os.utime(tmp_path / "data/7", (1, 1))
    unpack(archive, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == files
    assert (tmp_path / "data/7").stat().st_mtime == 1  # was there in full, so was left


@pytest.mark.parametrize(("make", "name"), [(good_zip, "a.zip"), (good_tar, "a.tar.gz")])
@pytest.mark.parametrize("change", ["cut", "flipped", "emptied", "noise"])
def test_damage_is_told(make: Callable[[Path], Path], name: str, change: str, tmp_path: Path) -> None:
    archive = make(tmp_path / name)
    content = bytearray(archive.read_bytes())
    match change:
        case "cut":
            content = content[: len(content) // 2]
        case "flipped":
            for place in range(2000, len(content) - 3000, 1000):
                content[place] ^= 255
        case "emptied":
            content.clear()
        case "noise":
            content[:] = os.urandom(len(content))
    archive.write_bytes(content)
    with pytest.raises(BadArchive, match=r"cannot be unpacked .*: remove it and fetch it anew"):
        unpack(archive, tmp_path)
    for path in (tmp_path / "data").glob("*"):
        assert path.suffix == ".part" or path.stat().st_size == 3000


# the whole


def dataset(archive: Archive, **changes: object) -> Dataset:
    def layout(folder: Path, parts: object) -> Iterator[Clip]:
        for clip in clips(folder / "data"):
            yield replace(clip, split="train")

    whole = Dataset("toy", "the toy set", LICENCE, layout, {"all": archive})
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Dataset:
    server.content = zipped(**{"data/a.wav": wav(tmp_path / "a.wav"), "data/b.wav": b"no audio at all"})
    return dataset(archive_of(server))


def test_from_nothing_to_a_manifest_and_again(server: Server, toy: Dataset, console: Console, tmp_path: Path) -> None:
    folder = tmp_path / "new/folder"
    manifest = prepare(toy, folder, accepted=True, console=console)
    assert manifest.read_text() == '{"path": "data/a.wav", "seconds": 0.3, "split": "train"}\n'
    text = said(console)
    assert text.startswith("the toy set · CC BY 4.0 · https://example.org/by\n")
    for part in ("allows nearly everything", "demands naming the authors", "By the authors"):
        assert part in text
    assert "left out 1 files in all" in text
    assert "b.wav" in text
    assert "train: 1 files, 0.00 h" in text
    assert f"codec train recipes/toy/codec.toml --data {manifest}" in text

    before = manifest.stat().st_ino, (folder / "data/a.wav").stat().st_mtime_ns
    prepare(toy, folder, console=console)
    assert len(server.asked) == 1  # nothing is fetched, and nothing asked, twice
    assert before[1] == (folder / "data/a.wav").stat().st_mtime_ns
    (folder / "data.zip").unlink()
    prepare(toy, folder, download=False, console=console)
    assert len(server.asked) == 1


def test_an_unpacking_that_was_stopped_is_gone_on_with(
    server: Server, toy: Dataset, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(toy, tmp_path / "data", accepted=True, console=console)
    prepare(toy, tmp_path / "data", console=console)
    assert len(server.asked) == 1
    assert (tmp_path / "data/data/a.wav").exists()


def test_nothing_is_fetched_without_a_yes(
    server: Server, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stdin, says in (
        (io.StringIO("yes\n"), "pass --accept-licence"),
        (None, "pass --accept-licence"),
        (Terminal("no\n"), "was not accepted"),
        (Terminal(""), "was not accepted"),
    ):
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(SystemExit) as ended:
            run(toy, [str(tmp_path / "data")])
        assert ended.value.code == UsageError.exit_code
        assert says in capsys.readouterr().err
    assert server.asked == []
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    run(toy, [str(tmp_path / "data")])
    assert len(server.asked) == 1
    assert capsys.readouterr().out == ""


def test_the_flag_is_a_yes(server: Server, toy: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    run(toy, [str(tmp_path / "data"), "--accept-licence"])
    assert len(server.asked) == 1


def test_without_download_what_is_missing_is_named(server: Server, toy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="data is not there: run without --no-download"):
        prepare(toy, tmp_path, download=False, console=Console(file=io.StringIO()))
    assert server.asked == []


def test_parts_are_those_asked_for_or_there_or_the_default(tmp_path: Path, console: Console) -> None:
    seen: list[list[str]] = []

    def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
        seen.append(list(parts))
        yield from clips(folder / "one")

    (tmp_path / "one").mkdir()
    wav(tmp_path / "one/a.wav")
    parts = {name: Archive(f"http://nowhere/{name}.zip", holds=name) for name in ("one", "two")}
    both = Dataset("toy", "the toy set", LICENCE, layout, parts, default=("one",))
    run(both, [str(tmp_path)])
    run(both, [str(tmp_path), "--no-download"])
    (tmp_path / "two").mkdir()
    run(both, [str(tmp_path), "--no-download"])
    run(both, [str(tmp_path), "--parts", "two"])
    run(both, [str(tmp_path), "--parts", "all"])
    assert seen == [["one"], ["one"], ["one", "two"], ["two"], ["one", "two"]]
    with pytest.raises(SystemExit):
        run(both, [str(tmp_path), "--parts", "three"])


def test_a_folder_without_the_data(tmp_path: Path, console: Console) -> None:
    gated = Dataset("toy", "the toy set", LICENCE, lambda folder, _: iter(()), by_hand="write to us")
    with pytest.raises(InputNotFound, match="nowhere is no folder: write to us"):
        prepare(gated, tmp_path / "nowhere", console=console)
    with pytest.raises(InputNotFound, match="no audio of the toy set: write to us"):
        prepare(gated, tmp_path, console=console)
    assert list(tmp_path.iterdir()) == []

    def listed(folder: Path, _: object) -> Iterator[Clip]:
        (folder / "list.csv").read_text()
        yield from ()

    with pytest.raises(InputNotFound, match=r"list.csv is not there"):
        prepare(replace(gated, layout=listed), tmp_path, console=console)


def test_splits_by_hash_are_shares_and_stay() -> None:
    names = [f"speaker {number}" for number in range(3000)]
    splits = [by_hash(name, valid=0.1, test=0.2) for name in names]
    for split, share in (("valid", 0.1), ("test", 0.2), ("train", 0.7)):
        assert splits.count(split) / 3000 == pytest.approx(share, abs=0.03)
    wider = [by_hash(name, valid=0.2) for name in names]
    assert all(two == "valid" for one, two in zip(splits, wider, strict=True) if one == "valid")
    digest = hashlib.sha256(b"p238").digest()
    assert int.from_bytes(digest[:8]) / 2**64 == pytest.approx(0.0171, abs=1e-4)
    assert by_hash("p238", valid=0.0172) == "valid"
    assert by_hash("p238", valid=0.0170, test=0.5) == "test"
