"""Nothing of libmpg123 reaches the terminal; all that others write does."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import soundfile

from codec.io import audio, quiet
from codec.io.audio import open_reader

MESSAGES = (
    b"[src/libmpg123/layer3.c:INT123_do_layer3():1774] error: part2_3_length (1120) too large for 1048\n"
    b"\nWarning: Xing stream size off by more than 1%, fuzzy seeking may be even more fuzzy than by design!\n\n"
    b"Note: Illegal Audio-MPEG-Header 0x00000000 at offset 12345.\n"
)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """An MP3 whose frames use bits of frames before them, cut, and with a length of the whole."""
    rng = np.random.default_rng(0)
    loud = np.repeat(rng.uniform(0, 1, 60) ** 3, 2000)
    with soundfile.SoundFile(tmp_path / "whole.mp3", "w", 8000, 1, bitrate_mode="CONSTANT") as file:
        file.write(loud * rng.uniform(-0.5, 0.5, len(loud)))
    data = (tmp_path / "whole.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[: len(data) // 3])
    return tmp_path / "a.mp3"


def read_parts(path: Path) -> list[audio.Block]:
    """As crops of training are read."""
    parts = []
    for first in range(500, 36_000, 3000):
        with open_reader(path) as reader:
            parts.append(reader.part(first, 800))
    return parts


@pytest.mark.slow
def test_seeks_in_an_mp3_print_nothing(
    noisy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = read_parts(noisy)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(audio, "quiet", nullcontext)
    plain = read_parts(noisy)
    assert "mpg123" in capfd.readouterr().err  # or this test says nothing of the seeks above
    np.testing.assert_array_equal(parts, plain)


def test_lines_of_others_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet.quiet():
        os.write(2, b"a line\n" + MESSAGES + b"codec: note: b\n  50%\r")
    os.write(2, b"between")
    with quiet.quiet():
        os.write(2, MESSAGES)
        os.write(2, "Für Elise 75%\r".encode())
    os.write(2, b"after")
    assert capfd.readouterr().err == "a line\ncodec: note: b\n  50%\rbetweenFür Elise 75%\rafter"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_threads_and_processes_keep_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        for _ in range(50):
            with quiet.quiet():
                os.write(2, MESSAGES)
            os.write(2, b".")

    threads = [Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for _ in range(3):
        if (child := os.fork()) == 0:
            work()
            os._exit(0)
        children.append(child)
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert capfd.readouterr().err == "." * 300


@pytest.mark.slow
def test_without_a_terminal_all_is_read(noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `2>&-`: the recording may get descriptor 2."""
    monkeypatch.setattr(sys, "__stderr__", None)
    saved = os.dup(2)
    os.close(2)
    try:
        parts = read_parts(noisy)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    monkeypatch.undo()
    np.testing.assert_array_equal(parts, read_parts(noisy))
