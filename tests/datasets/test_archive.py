"""datasets/archive.py: entries stay in their folder, files are complete, and expansion is limited."""

import gzip
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from codec.datasets import archive as module
from codec.datasets.archive import Destination, unpack
from codec.datasets.base import BadArchive
from codec.errors import StorageError
from tests.datasets.files import zipped


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
def test_entries_outside_are_refused(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "in/side"
    name = name.format(absolute=tmp_path)
    (tmp_path / "bad.zip").write_bytes(zipped(**{name: b"x"}))
    tar_with(tmp_path / "bad.tar.gz", (tar_entry(name), b"x"))
    for bad in ("bad.zip", "bad.tar.gz"):
        with pytest.raises(BadArchive, match="outside its folder"):
            unpack(tmp_path / bad, Destination(inside))
    assert not inside.exists()
    assert {path.name for path in tmp_path.rglob("*")} == {"bad.zip", "bad.tar.gz"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tar_files_are_refused(kind: bytes, tmp_path: Path) -> None:
    entries = (tar_entry("data/link", kind, "/etc"), b""), (tar_entry("data/link/file"), b"x")
    with pytest.raises(BadArchive, match="a link or a device"):
        unpack(tar_with(tmp_path / "bad.tar.gz", *entries), Destination(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_links_in_zip_files_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("data/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(BadArchive, match="a link or a device"):
        unpack(tmp_path / "bad.zip", Destination(tmp_path / "out"))


def good_zip(path: Path) -> Path:
    path.write_bytes(zipped(**{f"data/{number}": os.urandom(3000) for number in range(9)}))
    return path


def good_tar(path: Path) -> Path:
    folder = tar_entry("data", tarfile.DIRTYPE), b""
    return tar_with(path, folder, *((tar_entry(f"./data/{number}"), os.urandom(3000)) for number in range(9)))


@pytest.mark.parametrize(("make", "name"), [(good_zip, "a.zip"), (good_tar, "a.tar.gz")])
def test_unpacking_resumes_and_repeats(make: Callable[[Path], Path], name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / name)
    unpack(archive, Destination(tmp_path))
    files = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert sorted(files) == [str(number) for number in range(9)]
    (tmp_path / "data/3").write_bytes(b"half")
    (tmp_path / "data/5").unlink()
    os.utime(tmp_path / "data/7", (1, 1))
    unpack(archive, Destination(tmp_path))
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == files
    assert (tmp_path / "data/7").stat().st_mtime == 1  # complete, so skipped


@pytest.mark.parametrize(("make", "name"), [(good_zip, "a.zip"), (good_tar, "a.tar.gz")])
@pytest.mark.parametrize("change", ["cut", "flipped", "emptied", "noise"])
def test_damage_is_reported(make: Callable[[Path], Path], name: str, change: str, tmp_path: Path) -> None:
    archive = make(tmp_path / name)
    content = bytearray(archive.read_bytes())
    match change:
        case "cut":
            content = content[: len(content) // 2]
        case "flipped":
            for offset in range(2000, len(content) - 3000, 1000):
                content[offset] ^= 255
        case "emptied":
            content.clear()
        case "noise":
            content[:] = os.urandom(len(content))
    archive.write_bytes(content)
    with pytest.raises(BadArchive, match=r"cannot be unpacked .*: remove it, and the same command"):
        unpack(archive, Destination(tmp_path))
    for path in (tmp_path / "data").glob("*"):
        assert path.stat().st_size == 3000


def both(folder: Path, **files: bytes) -> list[Path]:
    """The same files as a zip and as a tar archive."""
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, (name, content) in enumerate(files.items()):
            archive.writestr(name or "nameless", content)
            archive.filelist[number].filename = name  # zipfile does not write empty names
    tar_with(folder / "a.tar.gz", *((tar_entry(name), content) for name, content in files.items()))
    return [folder / "a.zip", folder / "a.tar.gz"]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["", ".", "./", "data/.", "data/.."])
def test_empty_names_write_nothing(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    for archive in both(tmp_path, **{name: b"x"}):
        try:
            unpack(archive, Destination(inside))
        except BadArchive as error:
            assert "outside its folder" in str(error)  # noqa: PT017 (a zip file's "./" is a folder, a tar file's is not)
        assert files_below(tmp_path) == {"a.zip", "a.tar.gz"}
        assert not (tmp_path / "in.part").exists()


BESIDES = ["manifest.jsonl", "other.zip", ".codec/other.zip.unpacked", ".codec", "corpus", "corpus2/x", "corpus/b/x"]


@pytest.mark.parametrize("name", BESIDES)
def test_an_archive_writes_only_below_its_folder(name: str, tmp_path: Path) -> None:
    for archive in both(tmp_path, **{name: b"x"}):
        with pytest.raises(BadArchive, match="outside its folder"):
            unpack(archive, Destination(tmp_path / "in", tree="corpus", others=("corpus/b",)))
        assert files_below(tmp_path) == {"a.zip", "a.tar.gz"}


@pytest.mark.parametrize("name", ["manifest.jsonl", "other.tar.gz", ".codec/other.tar.gz.unpacked", ".hidden/x"])
def test_an_archive_without_a_folder_of_its_own_is_refused(name: str, tmp_path: Path) -> None:
    for archive in both(tmp_path, **{name: b"x"}):
        with pytest.raises(BadArchive, match="outside its folder"):
            unpack(archive, Destination(tmp_path / "in"))
        assert files_below(tmp_path) == {"a.zip", "a.tar.gz"}


def test_names_are_relative_to_into(tmp_path: Path) -> None:
    for archive in both(tmp_path, **{"a": b"x", "README/b": b"y"}):
        unpack(archive, Destination(tmp_path / archive.suffix, into="corpus/one", tree="corpus"))
        assert files_below(tmp_path / archive.suffix) == {"corpus/one/a", "corpus/one/README/b"}


def test_a_part_beside_a_file_is_kept(tmp_path: Path) -> None:
    content = {"data/x.part": b"mine", "data/x": b"whole", "data/y": b"1", "data/y.part": b"2"}
    for archive in both(tmp_path, **content):
        folder = tmp_path / archive.suffix
        unpack(archive, Destination(folder))
        assert {name: (folder / name).read_bytes() for name in files_below(folder)} == content


def test_links_on_the_disk_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/data").symlink_to(tmp_path / "elsewhere")
    for archive in both(tmp_path, **{"data/x": b"x"}):
        with pytest.raises(BadArchive, match="outside its folder"):
            unpack(archive, Destination(tmp_path / "in"))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_excessive_expansion_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALLOWANCE", 50_000)
    files = {f"data/{number}": bytes(20_000) for number in range(9)}
    for archive in both(tmp_path, **files):
        with pytest.raises(BadArchive, match="more than 4 times its size"):
            unpack(archive, Destination(tmp_path / "in"))
        assert sum(path.stat().st_size for path in (tmp_path / "in").rglob("*") if path.is_file()) <= 60_000
    for archive in both(tmp_path, **{f"data/{number}": b"" for number in range(50)}):  # a block each
        with pytest.raises(BadArchive, match="more than 4 times its size"):
            unpack(archive, Destination(tmp_path / "in"))


def test_endless_data_after_a_tar_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALLOWANCE", 10_000)
    content = gzip.decompress(good_tar(tmp_path / "a.tar.gz").read_bytes())
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(content + bytes(10**7)))
    with pytest.raises(BadArchive, match="it has no end"):
        unpack(tmp_path / "a.tar.gz", Destination(tmp_path))


def with_pax(**headers: str) -> tarfile.TarInfo:
    info = tar_entry("data/x")
    info.pax_headers = headers
    return info


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (with_pax(comment="x" * (module.MAX_HEADER + 1)), "a header has 1048"),
        (with_pax(size=str(-(10**15))), "has -1000000000000000 bytes"),
        (with_pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "it has a sparse file"),
        (with_pax(**{"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}), "a link or a device"),
        (tar_entry("data/x", tarfile.GNUTYPE_SPARSE), "it has a sparse file"),
        (tar_entry("data/" + "x" * (module.MAX_HEADER + 1)), "a header has 1048"),
    ],
)
def test_headers_that_take_memory_are_refused(tmp_path: Path, info: tarfile.TarInfo, says: str) -> None:
    with pytest.raises(BadArchive, match=says):
        unpack(tar_with(tmp_path / "a.tar.gz", (info, b"x")), Destination(tmp_path))
    assert not (tmp_path / "data").exists()


def test_a_small_header_that_is_stored_as_a_file_is_read(tmp_path: Path) -> None:
    name = "data/" + "/".join(["folder" * 8] * 3)
    unpack(tar_with(tmp_path / "a.tar.gz", (with_pax(comment="x" * 1000, path=name), b"x")), Destination(tmp_path))
    assert (tmp_path / name).read_bytes() == b"x"


def test_a_full_disk_is_reported_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    for archive in both(tmp_path, **{"data/x": b"more than ten"}):
        with pytest.raises(StorageError, match=r"data/x needs .* free some space"):
            unpack(archive, Destination(tmp_path))
        assert not (tmp_path / "data").exists()
