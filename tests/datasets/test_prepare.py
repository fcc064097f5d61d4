"""datasets/prepare.py: consent, resuming, parts, the manifest."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from codec.data.clips import Clip, clips
from codec.datasets import archive
from codec.datasets.base import Archive, BadArchive, Dataset, License, by_hash
from codec.datasets.prepare import prepare
from codec.errors import InputNotFound, UsageError
from tests.datasets.conftest import Server
from tests.datasets.files import archive_of, printed, wav, zipped

LICENSE = License("CC BY 4.0", "https://example.org/by", "nearly everything", "attribution", "the authors")


def dataset(archive: Archive, **changes: object) -> Dataset:
    def layout(folder: Path, parts: object) -> Iterator[Clip]:
        for clip in clips(folder / "data"):
            yield replace(clip, split="train")

    whole = Dataset("toy", "the toy set", "1", "1 kB", LICENSE, layout, {"all": archive})
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.fixture
def toy(server: Server, tmp_path: Path) -> Dataset:
    server.content = zipped(**{"data/a.wav": wav(tmp_path / "a.wav"), "data/b.wav": b"not audio"})
    return dataset(archive_of(server))


def test_prepare_writes_a_manifest_and_repeats_nothing(
    server: Server, toy: Dataset, console: Console, tmp_path: Path
) -> None:
    folder = tmp_path / "new/folder"
    manifest = prepare(toy, folder, accepted=True, console=console)
    assert manifest.read_text() == '{"path": "data/a.wav", "seconds": 0.3, "split": "train"}\n'
    text = printed(console)
    assert text.startswith("the toy set · CC BY 4.0 · https://example.org/by\n")
    for part in ("allows nearly everything", "requires attribution", "By the authors"):
        assert part in text
    assert "skipped 1 files in total" in text
    assert "b.wav" in text
    assert "train: 1 files, 0.00 h" in text
    assert f"codec train toy --data {manifest}" in text

    before = manifest.stat().st_ino, (folder / "data/a.wav").stat().st_mtime_ns
    prepare(toy, folder, console=console)
    assert len(server.requests) == 1  # no second download, no second question
    assert before[1] == (folder / "data/a.wav").stat().st_mtime_ns
    (folder / "data.zip").unlink()
    prepare(toy, folder, may_download=False, console=console)
    assert len(server.requests) == 1


def test_interrupted_unpacking_resumes(
    server: Server, toy: Dataset, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(archive, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(toy, tmp_path / "data", accepted=True, console=console)
    prepare(toy, tmp_path / "data", console=console)
    assert len(server.requests) == 1
    assert (tmp_path / "data/data/a.wav").exists()


def test_a_download_needs_consent(
    server: Server, toy: Dataset, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stdin, says in (
        (io.StringIO("yes\n"), "pass --accept-license"),
        (None, "pass --accept-license"),
        (Terminal("no\n"), "was not accepted"),
        (Terminal(""), "was not accepted"),
    ):
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(UsageError, match=says):
            prepare(toy, tmp_path / "data", console=console)
    assert server.requests == []
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    prepare(toy, tmp_path / "data", console=console)
    assert len(server.requests) == 1


def test_no_download_names_missing_parts(server: Server, toy: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="data is missing: run without --no-download"):
        prepare(toy, tmp_path, may_download=False, console=Console(file=io.StringIO()))
    assert server.requests == []


def test_choice_of_parts(tmp_path: Path, console: Console) -> None:
    seen: list[list[str]] = []

    def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
        seen.append(list(parts))
        yield from clips(folder / "one")

    (tmp_path / "one").mkdir()
    wav(tmp_path / "one/a.wav")
    parts = {name: Archive(f"http://nowhere/{name}.zip", holds=name) for name in ("one", "two")}
    both = Dataset("toy", "the toy set", "1", "1 kB", LICENSE, layout, parts, default=("one",))
    for asked, may_download, expected in (
        (None, True, ["one"]),
        (None, False, ["one", "two"]),
        (["two"], False, ["two"]),
        (["all"], True, ["one", "two"]),
        (["two", "one", "two"], True, ["two", "one"]),
    ):
        prepare(both, tmp_path, parts=asked, may_download=may_download, console=console)
        assert seen.pop() == expected
        (tmp_path / "two").mkdir(exist_ok=True)
    with pytest.raises(UsageError, match=r"toy has no part tow; did you mean two\?"):
        prepare(both, tmp_path, parts=["tow"], console=console)
    with pytest.raises(UsageError, match="toy has no part x; its parts are one, two"):
        prepare(both, tmp_path, parts=["x"], console=console)


def test_a_folder_without_the_data(tmp_path: Path, console: Console) -> None:
    gated = Dataset("toy", "the toy set", "1", "1 kB", LICENSE, lambda folder, _: iter(()), by_hand="write to us")
    with pytest.raises(InputNotFound, match="nowhere is not a folder: write to us"):
        prepare(gated, tmp_path / "nowhere", console=console)
    with pytest.raises(InputNotFound, match="no audio of the toy set: write to us"):
        prepare(gated, tmp_path, console=console)
    assert list(tmp_path.iterdir()) == []

    def listed(folder: Path, _: object) -> Iterator[Clip]:
        (folder / "list.csv").read_text()
        yield from ()

    with pytest.raises(InputNotFound, match=r"list.csv is missing"):
        prepare(replace(gated, layout=listed), tmp_path, console=console)


def test_an_archive_cannot_mark_another_as_unpacked(server: Server, console: Console, tmp_path: Path) -> None:
    recording = wav(tmp_path / "a.wav")
    for name in ("LibriX/two/a.wav", ".codec/two.zip.unpacked", "two.zip", "manifest.jsonl"):
        server.content = zipped(**{"LibriX/one/a.wav": recording, name: b"x"})
        one = replace(archive_of(server), holds="LibriX/one")
        parts = {"one": one, "two": Archive("http://nowhere/two.zip", holds="LibriX/two")}
        both = dataset(one, parts=parts, default=("one",))
        folder = tmp_path / name.replace("/", "-")
        with pytest.raises(BadArchive, match="outside its folder"):
            prepare(both, folder, accepted=True, console=console)
        assert {path.name for path in folder.iterdir()} == {"data.zip", "LibriX"}
        assert {path.name for path in (folder / "LibriX").iterdir()} == {"one"}


def test_archives_of_the_user_are_verified(server: Server, console: Console, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(zipped(**{"data/a.wav": b"a"}))
    with pytest.raises(BadArchive, match="SHA-256"):
        prepare(dataset(archive_of(server)), tmp_path, console=console)
    assert not (tmp_path / "data").exists()
    assert server.requests == []


def test_an_unknown_checksum_is_printed(console: Console, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(zipped(**{"data/a.wav": wav(tmp_path / "a.wav")}))
    daily = Archive("http://nowhere/data.zip", holds="data", unchecked="it changes daily")
    prepare(dataset(daily), tmp_path, console=console)
    assert "no checksum of data.zip is known (it changes daily)" in printed(console)
    assert (tmp_path / "data/a.wav").exists()


def test_splits_by_hash_have_their_shares_and_are_stable() -> None:
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
