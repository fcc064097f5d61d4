"""codec tokenize, on real files."""

import sys
from pathlib import Path

import numpy as np
import pytest

from codec.data.token_store import TokenStore
from codec.io.audio import write_audio
from codec.io.level import Level
from codec.nn import resample
from tests.cli.conftest import Cli
from tests.helpers.loudness import Biquads


@pytest.fixture
def corpus(recording: Path) -> Path:
    for name in ("a/one.wav", "a/two.wav", "b/three.wav"):
        path = Path("corpus", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(recording.read_bytes())
    return Path("corpus")


def test_a_folder_becomes_a_store(cli: Cli, corpus: Path) -> None:
    result = cli("tokenize", corpus, "--out", "store", "--codebooks", 2)
    assert (result.code, result.out) == (0, b"")
    assert result.err.startswith("3 clips encoded (2.10 s), 0 already encoded, 0 failed; 1 shard, ")
    assert result.err.endswith(" × real time\n")
    store = TokenStore("store")
    assert [(clip.row.set, clip.codes.shape) for clip in store] == [("a", (2, 71)), ("a", (2, 71)), ("b", (2, 71))]
    again = cli("tokenize", corpus, "--out", "store", "--codebooks", 2)
    assert again.err.startswith("0 clips encoded (0.00 s), 3 already encoded, 0 failed; ")
    refused = cli("tokenize", corpus, "--out", "store")
    assert (refused.code, refused.err.count("\n")) == (8, 1)
    assert cli("tokenize", corpus, "--out", "store", "--force").code == 0


def test_failures_are_listed_and_exit_1(cli: Cli, corpus: Path) -> None:
    for number in range(30):
        (corpus / f"bad{number:02}.wav").write_text("no audio")
    result = cli("tokenize", corpus, "--out", "store")
    assert result.code == 1
    summary, *failures, rest = result.err.splitlines()
    assert summary.startswith("3 clips encoded (2.10 s), 0 already encoded, 30 failed; ")
    assert len(failures) == 20
    assert failures[0].startswith("  bad00.wav: ")
    assert rest == "  and 10 more: `grep error store/*.jsonl` lists them"
    assert len(TokenStore("store")) == 3


def test_clips_far_below_the_rate_of_the_model_are_said_once(cli: Cli, corpus: Path) -> None:
    for name in ("a/low.wav", "b/low.wav"):
        write_audio(corpus / name, np.full((1, 3000), 0.1, np.float32), 3000)
    note = "  2 clips: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz"
    assert cli("tokenize", corpus, "--out", "store").err.splitlines()[1:] == [note]
    assert cli("tokenize", corpus, "--out", "store").err.count("\n") == 1


@pytest.mark.parametrize("command", [["tokenize", "corpus", "--out", "store"], ["encode", "corpus", "small"]])
def test_missing_ray_exits_9(cli: Cli, corpus: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = cli(*command, "--engine", "ray")
    assert (result.code, result.err.count("\n")) == (9, 1)
    assert "'.[cluster]'" in result.err


def test_invalid_arguments_have_their_exit_status(cli: Cli, corpus: Path) -> None:
    assert cli("tokenize", "nothing", "--out", "store").code == 3
    assert cli("tokenize", corpus, "--out", "store", "--model", "general-24").code == 6
    assert cli("tokenize", corpus, "--out", corpus).code == 8
    assert cli("tokenize", corpus).code == 2


@pytest.mark.slow
def test_recordings_are_scaled_to_a_level(cli: Cli, corpus: Path) -> None:
    assert cli("tokenize", corpus, "--out", "store", "--level", -20).code == 0
    assert TokenStore("store").level == Level(-20.0)
    refused = cli("tokenize", corpus, "--out", "store", "--level", -23)
    assert (refused.code, refused.err.count("\n")) == (8, 1)
    assert "has recordings at -20 dBFS, not at -23 dBFS" in refused.err
    for level in (-60.5, 1, "nan", "loud"):
        assert cli("tokenize", corpus, "--out", "other", "--level", level).code == 2
    assert cli("tokenize", corpus, "--out", "other", "--level", -20, "--loudness", -23).code == 2


@pytest.mark.slow
def test_recordings_are_scaled_to_a_loudness(cli: Cli, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "torchaudio_functional", lambda: Biquads)
    assert cli("tokenize", corpus, "--out", "store", "--loudness", -23).code == 0
    assert TokenStore("store").level == Level(-23.0, "LUFS")
    monkeypatch.setattr(resample, "torchaudio_functional", lambda: None)
    refused = cli("tokenize", corpus, "--out", "other", "--loudness", -23)
    assert (refused.code, refused.err.count("\n"), Path("other").exists()) == (9, 1, False)


def test_files_that_are_not_read_are_counted(cli: Cli, corpus: Path) -> None:
    (corpus / "a" / "four.m4a").write_bytes(b"data")
    *_, unread = cli("tokenize", corpus, "--out", "store").err.splitlines()
    assert unread == "  not read: 1 .m4a (convert them to WAV or FLAC first, or pass --ffmpeg)"
    (corpus / "manifest.jsonl").write_text('{"path": "a/one.wav"}\n')
    assert "not read" not in cli("tokenize", corpus, "--out", "other").err


def test_stores_are_exported_and_imported(cli: Cli, corpus: Path) -> None:
    cli("tokenize", corpus, "--out", "store")
    result = cli("tokens", "export", "store", "--to", "npy", "--out", "arrays")
    assert (result.code, result.out, result.err) == (0, b"", "arrays: 3 clips (2.10 s)\n")
    refused = cli("tokens", "export", "store", "--to", "npy", "-o", "arrays")
    assert (refused.code, refused.err) == (8, "codec: arrays exists: pass --force to replace it\n")
    (Path("arrays") / "codec.json").unlink()
    unknown = cli("tokens", "import", "arrays", "--out", "again")
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)
    result = cli("tokens", "import", "arrays", "--model", "general-24k", "--out", "again")
    assert (result.code, result.out, result.err) == (0, b"", "again: 3 clips (2.10 s)\n")
    assert [clip.codes.tolist() for clip in TokenStore("again")] == [
        clip.codes.tolist() for clip in TokenStore("store")
    ]
    assert cli("tokens", "export", "nothing", "--to", "npy", "-o", "more").code == 3


@pytest.mark.parametrize(("to", "module", "extra"), [("parquet", "pyarrow", "parquet"), ("shar", "lhotse", "shar")])
def test_missing_libraries_exit_9(
    cli: Cli, corpus: Path, monkeypatch: pytest.MonkeyPatch, to: str, module: str, extra: str
) -> None:
    cli("tokenize", corpus, "--out", "store")
    monkeypatch.setitem(sys.modules, module, None)
    result = cli("tokens", "export", "store", "--to", to, "--out", "out")
    assert (result.code, result.err.count("\n")) == (9, 1)
    assert f"'.[{extra}]'" in result.err
    assert not Path("out").exists()
