"""io/ffmpeg.py: other formats through the program ffmpeg; a script stands in for it where it is not installed."""

import io
import shutil
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from codec.checkpoint import save_model
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.errors import MissingDependency, StorageError, UnsupportedAudio
from codec.folders import compress_tree
from codec.io.audio import is_audio_path, open_reader, read_audio
from codec.io.ffmpeg import unread, unread_note
from tests.cli.conftest import Cli, cli, recording  # noqa: F401
from tests.tiny import tiny_model

FFMPEG = shutil.which("ffmpeg")
MAGIC = b"not for libsndfile"
SCRIPT = f"""#!{sys.executable}
import sys
source, output = sys.argv[sys.argv.index("-i") + 1], sys.argv[-1]
data = open(source.removeprefix("file:"), "rb").read()
if output == "-":
    sys.exit("no tags")
if b"full" in data:
    sys.exit("file:out: No space left on device")
if not data.startswith({MAGIC!r}):
    sys.exit("Invalid data found")
open(output.removeprefix("file:"), "wb").write(data[{len(MAGIC)}:])
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program `ffmpeg` that takes a mark off the front of a WAV file."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(SCRIPT)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))


def tone(time: int = 4000) -> NDArray[np.float32]:
    samples: NDArray[np.float32] = np.sin(np.arange(time, dtype=np.float32) * 0.2) / 2
    return samples


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "tiny.safetensors", tiny_model(), training={})
    return tmp_path / "tiny.safetensors"


def marked(path: Path) -> Path:
    file = io.BytesIO()
    soundfile.write(file, tone(), 8000, format="WAV", subtype="FLOAT")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC + file.getvalue())
    return path


def test_suffixes(tmp_path: Path) -> None:
    assert all(is_audio_path(name) for name in ("a.mp2", "b.MPGA"))
    assert not any(is_audio_path(name) for name in ("a.m4a", "b.webm"))
    assert all(is_audio_path(name, use_ffmpeg=True) for name in ("a.M4A", "b.webm", "c.wav"))
    for name in ("x/a.m4a", "x/b.M4A", "c.webm", "d.txt", ".e.m4a", "f.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert unread(tmp_path) == {".m4a": 2, ".webm": 1}
    assert unread_note(unread(tmp_path), option=False) == (
        "not read: 2 .m4a, 1 .webm (convert them to WAV or FLAC first)"
    )
    assert unread_note(Counter()) == ""


@pytest.mark.usefixtures("stand_in")
def test_files_and_bytes_that_libsndfile_does_not_read(tmp_path: Path) -> None:
    path = marked(tmp_path / "a.m4a")
    for source in (path, path.read_bytes()):
        with open_reader(source, use_ffmpeg=True) as reader:
            np.testing.assert_array_equal(next(reader.blocks(4000))[0], tone())
    with pytest.raises(UnsupportedAudio, match=r"a\.m4a is not audio that libsndfile can read"):
        read_audio(path)
    (tmp_path / "b.m4a").write_bytes(b"full")
    with pytest.raises(StorageError, match="the disk is full"), open_reader(tmp_path / "b.m4a", use_ffmpeg=True):
        pass
    (tmp_path / "c.wma").write_bytes(b"text")
    with (
        pytest.raises(UnsupportedAudio, match=r"c\.wma cannot be decoded by ffmpeg \(Invalid data found\)"),
        open_reader(tmp_path / "c.wma", use_ffmpeg=True),
    ):
        pass
    soundfile.write(tmp_path / "d.wav", tone(), 8000, subtype="FLOAT")  # read without ffmpeg, which would fail
    with open_reader(tmp_path / "d.wav", use_ffmpeg=True) as reader:
        assert reader.time == 4000


@pytest.mark.usefixtures("stand_in")
def test_folders_and_corpora(tmp_path: Path, model: Path) -> None:
    marked(tmp_path / "in" / "a.m4a")
    (outcome,) = compress_tree(tmp_path / "in", tmp_path / "out", model=model, use_ffmpeg=True)
    assert outcome.report is not None
    assert outcome.report.time == 4000
    report = tokenize(tmp_path / "in", tmp_path / "store", model=model, use_ffmpeg=True)
    assert (report.clips, report.seconds) == (1, 0.5)
    (tmp_path / "list.jsonl").write_text('{"path": "in/a.m4a", "start": 0.25}\n')
    report = tokenize(tmp_path / "list.jsonl", tmp_path / "part", model=model, use_ffmpeg=True, level_db=-20)
    assert (report.clips, report.seconds) == (1, 0.25)


@pytest.mark.usefixtures("stand_in")
def test_commands_pass_the_option_on(cli: Cli, recording: Path) -> None:  # noqa: F811
    Path("set").mkdir()
    Path("set/a.m4a").write_bytes(MAGIC + recording.read_bytes())
    result = cli("encode", "set/a.m4a", "--ffmpeg")
    assert (result.code, result.err.split(",")[0]) == (0, "set/a.m4a -> set/a.codec: 0.70 s")
    result = cli("encode", "set", "coded", "--ffmpeg")
    assert (result.code, result.err) == (0, "1 file, 0.70 s\n")
    result = cli("tokenize", "set", "--out", "store", "--ffmpeg", "--channel", 1)
    assert result.code == 0
    assert result.err.startswith("1 clip")
    assert "not read" not in result.err
    (clip,) = TokenStore("store")
    assert (clip.row.id, clip.row.channel, clip.row.samples) == ("a.m4a", 1, 5600)


def test_without_ffmpeg_the_option_is_refused(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="ffmpeg is not on the PATH"):
        compress_tree(tmp_path, model=model, use_ffmpeg=True)
    with pytest.raises(MissingDependency, match="ffmpeg is not on the PATH"):
        tokenize(tmp_path, tmp_path / "store", model=model, use_ffmpeg=True)


@pytest.mark.skipif(FFMPEG is None, reason="needs ffmpeg")
def test_lossless_audio_comes_through_the_real_ffmpeg_unchanged(tmp_path: Path) -> None:
    samples = np.stack([tone(), -tone() / 2])
    soundfile.write(tmp_path / "-a.wav", samples.T, 8000, subtype="PCM_24")
    command = ["ffmpeg", "-v", "error", "-i", f"file:{tmp_path}/-a.wav", "-c:a", "alac", f"file:{tmp_path}/-a.m4a"]
    subprocess.run(command, check=True)
    expected = soundfile.read(tmp_path / "-a.wav", dtype="float32")[0].T
    for source in (tmp_path / "-a.m4a", (tmp_path / "-a.m4a").read_bytes()):
        with open_reader(source, use_ffmpeg=True) as reader:
            assert (reader.rate, reader.channels, reader.length()) == (8000, 2, 4000)
            np.testing.assert_array_equal(next(reader.blocks(4000)), expected)
