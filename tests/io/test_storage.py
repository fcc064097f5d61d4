"""io/storage.py: outputs are whole or absent, a folder has one writer, errors of the system name the way out."""

import errno
from pathlib import Path

import pytest

from codec.errors import ConfigError, StorageError
from codec.io.storage import atomic_output, locked_folder, storing, storing_below


def test_atomic_output_follows_the_umask(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "a.bin") as file:
        file.write(b"abc")
        file.seek(0)
        assert file.read() == b"abc"
        assert not (tmp_path / "a.bin").exists()
    (tmp_path / "plain.bin").write_bytes(b"")
    assert (tmp_path / "a.bin").read_bytes() == b"abc"
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain.bin").stat().st_mode


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "a.bin cannot be written, the disk is full: free some space or choose another --out"),
        (errno.ENOENT, "a.bin cannot be written, its folder does not exist: create it first"),
        (errno.EEXIST, "a.bin cannot be written, it is a file or lies below one: choose another --out"),
        (errno.ENAMETOOLONG, "a.bin cannot be written, its name is too long for the file system: name it shorter"),
        (errno.EACCES, "a.bin cannot be written (denied): check the permissions or choose another --out"),
    ],
)
def test_system_errors_name_the_way_out(number: int, words: str) -> None:
    with pytest.raises(StorageError) as caught, storing("a.bin", instead="choose another --out"):
        raise OSError(number, "denied")
    assert str(caught.value) == words


def test_storing_below_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"inner cannot be used \(Is a directory\)"), storing_below(tmp_path):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(tmp_path / "inner"))
    with pytest.raises(StorageError, match=f"^{tmp_path} cannot be used"), storing_below(tmp_path):
        raise OSError(errno.EIO, "Input/output error")


def test_locked_folder_has_one_writer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked_folder(folder, "training run"):
        with (
            pytest.raises(ConfigError, match="another training run is running in"),
            locked_folder(folder, "training run"),
        ):
            pass
        assert folder.is_dir()
    assert not folder.exists()


def test_locked_folder_keeps_what_was_written(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run", "training run"):
        (tmp_path / "run" / "a.txt").write_text("a")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a.txt"]
