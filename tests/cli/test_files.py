"""codec encode, decode and sample, on real files."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codec.checkpoint import save_model
from codec.cli.options import duration
from codec.compression import compress
from codec.io.audio import read_audio
from codec.io.bitstream import open_reader
from tests.cli.conftest import Cli
from tests.tiny import tiny_model


def test_encode_and_decode(cli: Cli, recording: Path) -> None:
    encoded = cli("encode", recording)
    assert (encoded.code, encoded.out) == (0, b"")
    assert encoded.err.startswith("in.wav -> in.codec: 0.70 s, ")
    decoded = cli("decode", "in.codec", "out.flac")
    assert (decoded.code, decoded.out) == (0, b"")
    (audio, rate) = read_audio("out.flac")
    assert (audio.shape, rate) == ((2, 11_200), 16_000)


def test_a_compressed_file_is_not_compressed_again(cli: Cli, recording: Path) -> None:
    cli("encode", recording)
    again = cli("encode", "in.codec")
    assert (again.code, again.err) == (4, "codec: in.codec is compressed, not audio: codec decode restores it\n")


@pytest.mark.parametrize("command", [["encode", "in.wav"], ["decode", "in.codec"], ["decode", "in.codec", "a.flac"]])
def test_an_output_that_exists_is_refused_before_torch_is_imported(
    cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    cli("encode", recording)
    Path("a.flac").touch()
    monkeypatch.setitem(sys.modules, "codec.compression", None)
    refused = cli(*command)
    assert refused.code == 8
    assert refused.err.endswith(" exists: pass --force to replace it\n")


def test_the_format_of_folders_does_not_name_the_output_of_one_file(cli: Cli, recording: Path) -> None:
    cli("encode", recording)
    recording.unlink()
    Path("in.flac").touch()
    assert cli("decode", "in.codec", "--format", "flac").code == 0
    assert Path("in.wav").is_file()


def test_the_report_says_what_entropy_coding_saved_and_which_part_was_restored(cli: Cli) -> None:
    soundfile.write("still.wav", np.full(32_000, 0.1), 16_000)
    assert "bytes compressed (entropy coding saved " in cli("encode", "still.wav").err
    assert "saved" not in cli("encode", "still.wav", "none.codec", "--entropy", "none").err
    assert Path("still.codec").stat().st_size < Path("none.codec").stat().st_size
    refused = cli("encode", "still.wav", "model.codec", "--entropy", "model")
    assert (refused.code, Path("model.codec").exists()) == (2, False)
    part = cli("decode", "still.codec", "part.wav", "--start", 0.5, "--end", 1)
    assert part.err.startswith(f"still.codec -> part.wav: 0.50 s of 2.00 s, {Path('still.codec').stat().st_size} bytes")


def test_encode_writes_the_same_file_as_the_library(cli: Cli, recording: Path) -> None:
    cli("encode", recording, "--codebooks", 2)
    compress(recording, "direct.codec", model="general-24k", num_codebooks=2)
    assert Path("in.codec").read_bytes() == Path("direct.codec").read_bytes()


def test_a_recording_far_below_the_rate_of_the_model_is_said(cli: Cli) -> None:
    for name, rate in {"low.wav": 3000, "half.wav": 4000}.items():
        soundfile.write(name, np.full(rate, 0.1), rate)
    note = "low.wav: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz"
    assert cli("encode", "low.wav").err.splitlines()[1:] == [f"note: {note}"]
    assert cli("encode", "half.wav").err.count("\n") == 1
    assert cli("encode", "low.wav", "--force", "--quiet").err == ""
    assert cli("encode", "low.wav", "half.wav", "-o", "one").err.splitlines()[1:] == [f"  note: {note}"]
    soundfile.write("other.wav", np.full(3000, 0.1), 3000)
    counted = cli("encode", "low.wav", "half.wav", "other.wav", "-o", "two").err.splitlines()
    assert counted[1:] == ["  note: 2 files: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz"]


def test_an_appended_recording_has_the_notes_of_an_encoded_one(cli: Cli) -> None:
    cancels = np.array([[0.1, -0.1]]).repeat(3000, axis=0)
    soundfile.write("low.wav", cancels, 3000)
    noted = cli("encode", "low.wav", "low.codec", "--channels", 1, "--bitrate", 24).err.splitlines()[1:]
    assert len(noted) == 3
    first, *notes = cli("encode", "low.wav", "low.codec", "--append", "--channels", 1, "--bitrate", 24).err.splitlines()
    assert first.startswith("low.wav -> the end of low.codec: 2.0")
    assert notes == noted
    assert cli("encode", "low.wav", "low.codec", "--append", "--channels", 1, "--quiet").err == ""


def test_the_report_counts_channels_where_there_are_several(cli: Cli, recording: Path) -> None:
    assert cli("encode", recording).err.startswith("in.wav -> in.codec: 0.70 s, 2 channels, ")
    assert cli("decode", "in.codec", "out.wav").err.startswith("in.codec -> out.wav: 0.70 s, 2 channels, ")
    assert "channel" not in cli("encode", recording, "mono.codec", "--channels", 1).err


def test_a_bit_rate_beyond_the_model_is_said(cli: Cli, recording: Path) -> None:
    note = "note: 24 kbit/s is more than the model has: all 3 codebooks are 1.5 kbit/s"
    assert cli("encode", recording, "--bitrate", 24).err.splitlines()[1] == note
    assert "note" not in cli("encode", recording, "-o", "b.codec", "--bitrate", 1.5).err
    Path("set").mkdir()
    for name in "ab":
        Path("set", f"{name}.wav").write_bytes(recording.read_bytes())
    assert cli("encode", "set", "--bitrate", 24).err.splitlines()[1:] == [f"  {note}"]


@pytest.mark.slow
def test_one_channel_of_several(cli: Cli, recording: Path) -> None:
    audio, rate = soundfile.read(recording)  # stereo
    soundfile.write("mono.wav", audio.mean(axis=1), rate, subtype="FLOAT")
    soundfile.write("right.wav", audio[:, 1], rate, subtype="FLOAT")
    for name in ("mono", "right"):
        cli("encode", f"{name}.wav")
    assert cli("encode", recording, "a.codec", "--channels", 1).code == 0
    assert cli("encode", recording, "b.codec", "--channel", 1).code == 0
    decoded = {}
    for name in ("mono", "right", "a", "b"):
        cli("decode", f"{name}.codec", f"{name}.out.wav", "--subtype", "PCM_16")
        decoded[name] = soundfile.read(f"{name}.out.wav")[0]
    assert np.array_equal(decoded["a"], decoded["mono"])
    assert np.array_equal(decoded["b"], decoded["right"])
    assert decoded["a"].ndim == 1
    assert cli("encode", recording, "c.codec", "--channels", 2).code == 2
    assert not Path("c.codec").exists()
    Path("folder").mkdir()
    soundfile.write("folder/in.wav", audio, rate)
    assert cli("encode", "folder", "--channels", 1).code == 0
    assert soundfile.info("mono.out.wav").frames == len(audio)
    cli("decode", "folder/in.codec", "d.wav")
    assert np.array_equal(soundfile.read("d.wav")[0], decoded["mono"])


def test_rate_option(cli: Cli, recording: Path) -> None:
    cli("encode", recording)
    cli("decode", "in.codec", "out.wav", "--rate", 8000)
    assert soundfile.info("out.wav").samplerate == 8000
    assert soundfile.info("out.wav").frames == 5600


def test_a_model_file(cli: Cli, recording: Path) -> None:
    save_model("other.safetensors", tiny_model(1), training={})
    cli("encode", recording, "--model", "other.safetensors")
    refused = cli("decode", "in.codec", "out.wav")
    assert refused.code == 6
    assert "other" in refused.err
    wrong = cli("decode", "in.codec", "out.wav", "--model", "general-24k")
    assert wrong.code == 7
    assert not Path("out.wav").exists()
    assert cli("decode", "in.codec", "out.wav", "-m", "other.safetensors").code == 0


@pytest.mark.parametrize(
    ("option", "value", "num_codebooks"),
    [("--codebooks", 1, 1), ("--bitrate", 1.2, 2), ("--bitrate", 99, 3), ("--codebooks", 3, 3)],
)
def test_bitrate_and_codebooks_options(
    cli: Cli, recording: Path, option: str, value: float, num_codebooks: int
) -> None:
    assert cli("encode", recording, option, value).code == 0
    facts = json.loads(cli("info", "in.codec", "--json").out)
    assert facts["num_codebooks"] == num_codebooks
    assert facts["codes_kbps"] == 2 * num_codebooks * 0.5  # two channels, 100 frames per second, 5 bits per code


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--codebooks", 4], 2, "4"),
        (["--bitrate", 0.1], 2, "0.5 kbit/s"),
        (["--codebooks", 1, "--bitrate", 1], 2, "one of"),
        (["--model", "general-24"], 6, "did you mean general-24k?"),
        (["--append"], 2, "--append adds one INPUT to one .codec file"),
        (["in.codec", "--append", "--stereo", "smaller"], 2, "as the file does: leave --stereo out"),
        (["--rate", 8000], 2, "--rate describes samples without a header: add --raw"),
    ],
)
def test_invalid_options_have_their_exit_status(
    cli: Cli, recording: Path, options: list[object], code: int, says: str
) -> None:
    result = cli("encode", recording, *options)
    assert result.code == code
    assert says in result.err
    assert result.err.count("\n") == 1
    assert not Path("in.codec").exists()


def test_outputs_are_overwritten_only_with_force(cli: Cli, recording: Path) -> None:
    Path("in.codec").write_bytes(b"precious")
    refused = cli("encode", recording)
    assert refused.code == 8
    assert "--force" in refused.err
    assert Path("in.codec").read_bytes() == b"precious"
    assert cli("encode", recording, "--force").code == 0


def test_into_a_folder(cli: Cli, recording: Path) -> None:
    Path("there").mkdir()
    cli("encode", recording, "there")
    assert Path("there/in.codec").is_file()


@pytest.mark.slow
def test_several_inputs(cli: Cli, recording: Path) -> None:
    soundfile.write("b.flac", np.zeros(16_000), 16_000)
    encoded = cli("encode", recording, "b.flac", "-o", "coded")
    assert (encoded.code, encoded.err) == (0, "2 files, 1.70 s\n")
    assert cli("decode", "coded/in.codec", "coded/b.codec", "-o", "back", "--format", "flac", "-q").err == ""
    assert {path.name for path in Path("back").iterdir()} == {"in.flac", "b.flac"}
    assert cli("encode", recording, "-o", "one.codec", "--quiet").err == ""
    assert Path("one.codec").is_file()
    for arguments, code, says in (
        (["encode", recording, "b.flac", "c.wav"], 2, "3 inputs need a folder for their outputs"),
        (["encode", recording, "b.flac", "-o", "-"], 2, "there are 2 inputs, and standard output takes one"),
        (["encode", recording, "b.flac", "-o", "one.codec"], 8, "one.codec is a file, but there are 2 inputs"),
        (["encode", recording, "-", "-o", "coded"], 2, "give it alone"),
        (["encode", recording, "b.flac"], 2, "2 inputs need a folder for their outputs: name it with -o"),
        (["decode", "one.codec", "coded/b.codec"], 2, "2 inputs need a folder"),
        (["encode", recording, "missing.wav", "-o", "new", "-q"], 1, "  missing.wav does not exist"),
    ):
        result = cli(*arguments)
        assert (result.code, result.err.count("\n")) == (code, 1)
        assert says in result.err


def test_files_that_are_not_read_are_counted(cli: Cli, recording: Path) -> None:
    Path("set").mkdir()
    recording.rename("set/in.wav")
    for name in ("a.m4a", "b.m4a", "c.webm", "notes.txt"):
        Path("set", name).write_bytes(b"data")
    frame = bytes((0xFF, 0xE5, 0x88, 0xC0)) + bytes(1148)  # silence; MPEG-2.5, layer II, 64 kbit/s, 8 kHz, mono
    Path("set/d.mp2").write_bytes(frame * 5)
    result = cli("encode", "set", "coded")
    assert result.err == (
        "2 files, 1.42 s; not read: 2 .m4a, 1 .webm (convert them to WAV or FLAC first, or pass --ffmpeg)\n"
    )
    assert Path("coded/d.codec").is_file()
    assert "(encode and tokenize take --ffmpeg)" in cli("encode", "set/a.m4a").err


def test_durations() -> None:
    values = {1.404: "1.40 s", 59.999: "1 min 0 s", 417.4: "6 min 57 s", 7530: "2 h 5 min"}
    assert {seconds: duration(seconds) for seconds in values} == values


def test_invalid_names(cli: Cli, recording: Path) -> None:
    before = recording.read_bytes()
    Path("link.codec").symlink_to(recording)
    for arguments, code, says in (
        (["encode", ""], 2, "empty name"),
        (["encode", recording, "new/"], 8, "new/ is not a folder"),
        (["encode", ".", "-"], 2, "takes one file"),
        (["encode", recording, recording, "--force"], 2, "the same file"),
        (["encode", recording, "link.codec", "--force"], 2, "the same file"),
        (["encode", "a" * 300 + ".wav"], 8, "too long"),
        (["encode", recording, "a" * 300 + ".codec"], 8, "too long"),
        (["encode", recording, "--model", "a" * 300], 6, "there is no model"),
    ):
        result = cli(*arguments)
        assert (result.code, result.err.count("\n")) == (code, 1)
        assert says in result.err
    assert recording.read_bytes() == before
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["in.wav", "link.codec"]


def test_names_that_are_too_long_with_the_suffix(cli: Cli, recording: Path) -> None:
    name = "a" * 251  # 255 bytes with .wav, 257 with .codec
    Path("set").mkdir()
    recording.rename(f"set/{name}.wav")
    says = f"{name}.codec cannot be written, its name is too long for the file system: name it shorter\n"
    result = cli("encode", f"set/{name}.wav")
    assert (result.code, result.err) == (8, f"codec: set/{says}")
    result = cli("encode", "set", "coded")
    assert (result.code, result.err) == (1, f"0 files, 0.00 s; 1 failed\n  set/{name}.wav: coded/{says}")
    assert cli("encode", f"set/{name}.wav", "b.codec").code == 0
    result = cli("decode", "b.codec", f"{name}.flac")
    assert result.code == 8
    assert result.err == f"codec: {name}.flac: this name is too long for the file system: use a shorter one\n"


def test_one_long_file_has_a_progress_bar_on_a_terminal(
    cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "encoding" not in cli("encode", recording).err
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    err = cli("encode", recording, "--force").err
    assert "encoding" in err
    assert " s " in err.split("in.wav ->")[0]
    assert cli("encode", recording, "--force", "--quiet").err == ""


def test_a_newline_in_a_name_is_escaped(cli: Cli, recording: Path) -> None:
    Path("set").mkdir()
    recording.rename("set/a\nb.wav")
    assert cli("encode", "set/a\nb.wav").err.startswith(r"set/a\nb.wav -> set/a\nb.codec: 0.70 s")
    Path("set/a\nb.wav").write_text("no audio")
    (_, failure) = cli("encode", "set", "coded").err.splitlines()
    assert failure.startswith(r"  set/a\nb.wav ")


def test_names_are_printed_as_they_are(cli: Cli, recording: Path) -> None:
    """One line each, with line breaks escaped and all spaces: by them a user finds the file."""
    for name, shown in (("a\nb", r"a\nb"), ("a  b", "a  b"), (" a\t", r" a\t"), ("a\x1b[31m", r"a\x1b[31m")):
        bad, folder = Path(f"{name}.wav"), Path(f"{name} folder")
        bad.write_text("no audio")
        assert cli("encode", bad).err.startswith(f"codec: {shown}.wav is not audio"), name
        folder.mkdir()
        cli("encode", recording, folder / "a.codec")
        assert cli("check", folder).out.decode().startswith(f"{shown} folder/a.codec: intact")
        (folder / "a.codec").write_bytes(b"no codes")
        assert cli("check", folder).out.decode().startswith(f"{shown} folder/a.codec")
        bad.rename(folder / bad)
        for arguments in (("tokenize", folder, "--out", "store", "--force"), ("encode", folder, "coded", "--force")):
            result = cli(*arguments)
            assert f"  {shown} folder/{shown}.wav " in result.err or f"  {shown}.wav: " in result.err, name
            assert result.err.count("\n") == 2


def test_closed_standard_streams(cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    result = cli("encode", "-", "a.codec")
    assert (result.code, result.err.count("\n")) == (4, 1)
    with monkeypatch.context() as context:
        context.setattr(sys, "stdout", None)
        assert cli("encode", recording, "-").code == 2
    with monkeypatch.context() as context:
        context.setattr(sys, "stderr", None)
        assert cli("encode", recording).code == 0


def test_raw_samples_by_their_rate_and_channels(cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe of samples without a header is the recording with one, and comes back without one."""
    samples, _ = soundfile.read(recording, dtype="int16")

    def piped(data: bytes, *arguments: object) -> bytes:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        result = cli(*arguments)
        assert result.code == 0, result.err
        return result.out

    with_header = piped(recording.read_bytes(), "encode", "-", "-")
    raw = ("encode", "-", "-", "--raw", "--rate", 16_000, "--channels")
    stereo = piped(samples.astype("<i2").tobytes(), *raw, 2)
    Path("a.codec").write_bytes(stereo)
    with open_reader("a.codec") as reader, open_reader(with_header) as other:
        facts = reader.header.source_rate, reader.header.channels, reader.header.time
        assert facts == (16_000, 2, 11_200)
        for packet, expected in zip(reader.packets(), other.packets(), strict=True):
            np.testing.assert_array_equal(packet, expected)
    Path("mono.codec").write_bytes(piped(samples[:, 0].astype("<i2").tobytes(), *raw[:-1]))
    with open_reader("mono.codec") as reader:
        assert (reader.header.channels, reader.header.time) == (1, 11_200)
    bare = piped(stereo, "decode", "-", "-", "--raw")
    whole = soundfile.read(io.BytesIO(piped(stereo, "decode", "-", "-")), dtype="int16")[0]
    np.testing.assert_array_equal(np.frombuffer(bare, "<i2").reshape(-1, 2), whole)
    refused = cli("encode", "-", "b.codec", "--raw")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--raw samples have no header: give their --rate in Hz" in refused.err


@pytest.mark.parametrize("format_", ["flac", "ogg", "mp3", "wav"])
def test_a_folder_is_restored_in_a_format(cli: Cli, recording: Path, format_: str) -> None:
    Path("coded/deep").mkdir(parents=True)
    cli("encode", recording, "coded/deep/in.codec")
    assert cli("decode", "coded", "back", "--format", format_).code == 0
    (path,) = (path for path in Path("back").rglob("*") if path.is_file())
    assert path == Path(f"back/deep/in.{format_}")
    info = soundfile.info(path)
    assert (info.format, info.frames, info.channels) == (format_.upper(), 11_200, 2)
    refused = cli("decode", "coded", "more", "--format", "m4a")
    assert (refused.code, refused.err.count("\n"), Path("more").exists()) == (2, 1, False)


def test_standard_input_and_output(cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("encode", recording, "file.codec", "--packet", 1)  # as in a pipe
    with recording.open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        encoded = cli("encode", "-")
    assert encoded.out == Path("file.codec").read_bytes()
    with Path("file.codec").open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        decoded = cli("decode", "-", "-")
    audio, rate = soundfile.read(io.BytesIO(decoded.out))
    assert (audio.shape, rate) == ((11_200, 2), 16_000)


def test_data_is_not_written_to_a_terminal(cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = cli("encode", recording, "-")
    assert (result.code, result.out) == (2, b"")
    assert "terminal" in result.err


def test_a_bad_file_does_not_stop_a_folder(cli: Cli, recording: Path) -> None:
    for name in ("album/one.wav", "album/deep/two.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(recording.read_bytes())
    Path("album/bad.wav").write_text("no audio")
    encoded = cli("encode", "album", "small")
    assert encoded.code == 1
    summary, failure = encoded.err.splitlines()
    assert summary == "2 files, 1.40 s; 1 failed"
    assert failure.startswith("  album/bad.wav is not audio")
    assert sorted(str(path) for path in Path("small").rglob("*.codec")) == ["small/deep/two.codec", "small/one.codec"]

    Path("album/bad.wav").unlink()
    again = cli("encode", "album", "small")
    assert (again.code, again.err) == (0, "0 files, 0.00 s; 2 already there\n")
    decoded = cli("decode", "small", "back")
    assert decoded.code == 0
    assert soundfile.info("back/deep/two.wav").frames == 11_200


@pytest.mark.parametrize(
    ("name", "content", "code"), [("none.wav", None, 3), ("text.wav", b"hello", 4), ("empty.wav", b"", 4)]
)
def test_inputs_that_are_not_audio(cli: Cli, name: str, content: bytes | None, code: int) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    result = cli("encode", name)
    assert result.code == code
    assert result.err.startswith("codec: ")
    assert name in result.err
    assert result.err.count("\n") == 1
    assert not Path(name).with_suffix(".codec").exists()


def test_nan_samples_exit_4(cli: Cli) -> None:
    soundfile.write("nan.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    assert cli("encode", "nan.wav").code == 4


def test_intact_audio_of_a_damaged_file_is_decoded(cli: Cli) -> None:
    soundfile.write("long.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 8000 * 4), 8000)
    cli("encode", "long.wav", "--packet", 1)
    data = bytearray(Path("long.codec").read_bytes())
    data[len(data) * 3 // 4] ^= 1
    Path("long.codec").write_bytes(data)
    result = cli("decode", "long.codec", "out.wav")
    assert result.code == 5
    assert "checksum" in result.err
    assert soundfile.info("out.wav").duration == 4.0
    data[len(data) * 3 // 4] ^= 1
    Path("long.codec").write_bytes(data)
    assert cli("decode", "long.codec", "out.wav").code == 0  # a partial output is replaced, a whole one is kept
    assert cli("decode", "long.codec", "out.wav").code == 8


@pytest.mark.slow
def test_sample(cli: Cli) -> None:
    assert cli("sample").code == 0
    audio, rate = read_audio("sample.wav")
    assert audio.shape == (1, round(5.5 * rate))
    assert 0.6 < np.abs(audio).max() < 0.8
    assert cli("sample").code == 8
