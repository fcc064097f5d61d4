"""locks.py: one holder at any time, and nothing left of killed processes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from codec.errors import ConfigError, StorageError
from codec.io import locks
from codec.io.locks import PREFIX, claimed, held, part_name, sweep
from codec.io.storage import atomic_output, is_partial, locked_folder, mark_partial

pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_swept", set())


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path: Path) -> None:
    with held(tmp_path / "a") as ours:
        assert ours
        with held(tmp_path / "a") as second, held(tmp_path / "b") as other:
            assert (second, other) == (False, True)
        assert (tmp_path / "a").exists()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "a") as again:
        assert again


def test_who_waits_never_shares_a_lock_with_who_comes_later(tmp_path: Path) -> None:
    """The file is unlinked by each holder, so a thread that has waited holds the lock of a file without a name."""
    inside = most = done = 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(40):
            with held(tmp_path / "a", wait=True) as ours:
                assert ours
                inside += 1
                most = max(most, inside)
                os.stat(tmp_path)  # noqa: PTH116 (another thread may run here)
                inside -= 1
            done += 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 200)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_opened_before_its_unlinking_is_not_a_lock(tmp_path: Path) -> None:
    import fcntl

    with held(tmp_path / "a"):
        late = os.open(tmp_path / "a", os.O_RDWR)
    fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)  # what the third process of the row had
    with held(tmp_path / "a") as ours:
        assert ours
        assert not locks.is_current(late, tmp_path / "a")
    os.close(late)


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), locked_folder(tmp_path / "run", "training run"):
        pass
    assert (tmp_path / "precious").read_text() == "content"


@pytest.mark.slow
def test_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from codec.io.locks import claimed; from codec.io.storage import atomic_output\n"
        "target = Path(sys.argv[1])\n"
        "with claimed(target), atomic_output(target) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed.codec")], check=False)
    left = sorted(path.suffix for path in tmp_path.iterdir())
    assert left == [".lock", ".part"]
    (tmp_path / ".codec-00000000-0123456789abcdef.part").touch()  # of another machine, which may be alive
    with atomic_output(tmp_path / "other") as file:
        file.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".codec-00000000-0123456789abcdef.part", "other"]


def test_files_of_living_processes_stay(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "one") as file, claimed(tmp_path / "one"):
        file.write(b"1")
        locks._swept.clear()
        sweep(tmp_path)
        with atomic_output(tmp_path / "two") as other:
            other.write(b"2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"one": b"1", "two": b"2"}


def test_a_part_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, removed = locks.guard, list[Path]()

    def late(descriptor: int) -> int | None:
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        return guard(descriptor)

    monkeypatch.setattr(locks, "guard", late)
    with atomic_output(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_sweep_is_made_once_and_takes_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".codec-x.part", "part", f"a{PREFIX}.part")]
    for path in kept:
        path.touch()
    (tmp_path / f"{PREFIX}link.part").symlink_to(kept[0])
    sweep(tmp_path)
    (tmp_path / part_name()).touch()
    sweep(tmp_path)
    sweep(tmp_path / "there is no such folder")
    assert len(list(tmp_path.iterdir())) == 5


def test_claims_are_by_name(tmp_path: Path) -> None:
    with claimed(tmp_path / "a.wav") as first, claimed(tmp_path / "a.wav") as again, claimed(tmp_path / "b.wav") as b:
        assert (first, again, b) == (True, False, True)
    with claimed(tmp_path / ("n" * 255)) as long:
        assert long
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_another_process_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, calls = Path.mkdir, []

    def removed_once(path: Path, *args: object, **options: bool) -> None:
        mkdir(path, **options)
        calls.append(path)
        if len(calls) == 1:
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", removed_once)
    with locked_folder(tmp_path / "run", "training run"):
        assert (tmp_path / "run/.lock").exists()
        with pytest.raises(ConfigError, match="another training run"), locked_folder(tmp_path / "run", "training run"):
            pass
    assert not (tmp_path / "run").exists()


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    with atomic_output(target) as file:
        file.write(b"whole")
    mark_partial(target)  # its mark would have too long a name
    assert (target.read_bytes(), is_partial(target)) == (b"whole", False)
    assert list(tmp_path.iterdir()) == [target]


def test_a_partial_file_is_replaced_unless_it_was_changed(tmp_path: Path) -> None:
    target = tmp_path / "a.wav"
    for changed in (False, True):
        target.write_bytes(b"half")
        mark_partial(target)
        assert is_partial(target)
        if changed:
            target.write_bytes(b"edited since")
            assert not is_partial(target)
            with pytest.raises(StorageError, match="exists"), atomic_output(target):
                pass
        else:
            with atomic_output(target) as file:
                file.write(b"whole")
            assert (target.read_bytes(), is_partial(target)) == (b"whole", False)
            assert list(tmp_path.iterdir()) == [target]
