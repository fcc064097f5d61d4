"""Tags of recordings, compared with what mutagen reads."""

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import codec
from codec.compression import compress, decompress
from codec.errors import ConfigError, DamagedFile
from codec.io import audio, tags
from codec.io.bitstream import Reader, open_reader
from codec.io.tags import MAX_COVER, MAX_TEXT, Cover, Tags
from codec.transcoding import concat, transcode
from tests.tiny import tiny_model

MODEL = tiny_model()
TEXTS = (
    ("title", "Für Elise\x1b[2J"),
    ("artist", "One"),
    ("artist", "Two"),
    ("album", "A"),
    ("date", "2020-01-02"),
    ("tracknumber", "3/12"),
    ("genre", "Jazz"),
    ("comment", "two\nlines"),
    ("mood", "平静"),
)
COVER = Cover("image/png", bytes(range(256)) * 20)
SUFFIXES = ".flac", ".ogg", ".mp3", ".wav"


def recording(path: Path, found: Tags) -> Path:
    """Half a second of noise, tagged by mutagen's own functions for the format."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 4000)
    soundfile.write(path, noise, 8000)
    with path.open("r+b") as file:
        assert found == tags.NO_TAGS or tags.write(file, found, container=path.suffix[1:].upper(), label="") == ()
    return path


def tags_of(path: Path) -> tags.Found:
    with audio.open_reader(path) as reader:
        return reader.tags()


def by_mutagen(path: Path) -> Any:
    mutagen = pytest.importorskip("mutagen")
    return mutagen.File(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tags_and_cover_survive(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("mutagen")
    source = recording(tmp_path / f"in{suffix}", Tags(TEXTS, COVER))
    read, notes = tags_of(source)
    assert (set(read.texts), read.cover, notes) == (set(TEXTS), COVER, ())
    coded = tmp_path / "a.codec"
    compress(source, coded, model=MODEL, verify=True)
    transcode(coded, tmp_path / "b.codec", num_codebooks=1)
    concat([tmp_path / "b.codec", coded], tmp_path / "c.codec")
    for name in "abc":
        with open_reader(tmp_path / f"{name}.codec") as reader:
            assert reader.header.tags == read
            assert reader.check() == []
    for target in SUFFIXES:
        back = tmp_path / f"back{target}"
        assert decompress(coded, back, model=MODEL, start=0.1).notes == ()
        restored, _ = tags_of(back)
        assert (set(restored.texts), restored.cover) == (set(TEXTS), COVER)
        assert soundfile.info(back).frames == 3200
        assert by_mutagen(back).info.sample_rate == 8000


def test_the_audio_is_that_of_a_file_without_tags(tmp_path: Path) -> None:
    pytest.importorskip("mutagen")
    tagged = recording(tmp_path / "tagged.wav", Tags(TEXTS, COVER))
    plain = recording(tmp_path / "plain.wav", tags.NO_TAGS)
    for source in (tagged, plain):
        compress(source, source.with_suffix(".codec"), model=MODEL)
    with open_reader(plain.with_suffix(".codec")) as reader:
        copy = len(reader.header._to_fields())  # at the end of the longer file alone
    added = copy + len(Tags(TEXTS, COVER).to_bytes())
    extra = tagged.with_suffix(".codec").stat().st_size - plain.with_suffix(".codec").stat().st_size
    assert added < extra < added + 20
    for suffix in (".wav", ".flac"):
        for source in (tagged, plain):
            decompress(source.with_suffix(".codec"), source.with_suffix(".out" + suffix), model=MODEL)
        one, other = (soundfile.read(path.with_suffix(".out" + suffix))[0] for path in (tagged, plain))
        np.testing.assert_array_equal(one, other)


def test_names_of_id3_frames(tmp_path: Path) -> None:
    id3 = pytest.importorskip("mutagen.id3")
    source = recording(tmp_path / "a.mp3", tags.NO_TAGS)
    found = id3.ID3()
    found.add(id3.TIT2(encoding=1, text="T"))
    found.add(id3.TCON(encoding=0, text="(17)"))
    found.add(id3.COMM(encoding=3, lang="eng", desc="", text="C"))
    found.add(id3.TXXX(encoding=3, desc="Mood", text="calm"))
    found.add(id3.TSSE(encoding=3, text="an encoder"))
    found.save(source)
    expected = {("title", "T"), ("genre", "Rock"), ("comment", "C"), ("mood", "calm")}
    assert set(tags_of(source)[0].texts) == expected


def test_texts_of_a_wav_file_by_libsndfile(tmp_path: Path) -> None:
    pytest.importorskip("mutagen")
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 8000, 1, format="WAV") as file:
        file.title, file.artist = "T", "A"
        file.write(np.zeros(4000))
    assert tags_of(tmp_path / "a.wav")[0].by_name() == {"title": ["T"], "artist": ["A"]}


def test_what_is_too_large_is_left_out_with_a_note(tmp_path: Path) -> None:
    flac = pytest.importorskip("mutagen.flac")
    source = recording(tmp_path / "a.flac", Tags((("title", "T"),)))
    file = flac.FLAC(source)
    file["lyrics"] = "x" * MAX_TEXT
    picture = flac.Picture()
    picture.mime, picture.data = "image/png", bytes(MAX_COVER + 1)
    file.add_picture(picture)
    file.save()
    read, notes = tags_of(source)
    assert read == Tags((("title", "T"),))
    assert notes == (
        "1 tags are left out: a .codec file holds 65536 bytes of text",
        "the cover picture is left out: a .codec file holds one of 65536 bytes",
    )
    assert compress(source, tmp_path / "a.codec", model=MODEL).notes == notes


def test_without_mutagen_encoding_is_silent_and_decoding_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mutagen")
    source = recording(tmp_path / "a.flac", Tags(TEXTS))
    compress(source, tmp_path / "a.codec", model=MODEL)
    monkeypatch.setitem(sys.modules, "mutagen", None)
    assert compress(source, tmp_path / "b.codec", model=MODEL).notes == ()
    assert "tags are not restored" in decompress(tmp_path / "a.codec", tmp_path / "a.wav", model=MODEL).notes[0]
    assert decompress(tmp_path / "b.codec", tmp_path / "b.wav", model=MODEL).notes == ()


def test_damaged_tags_cost_nothing_but_themselves(tmp_path: Path) -> None:
    pytest.importorskip("mutagen")
    source = recording(tmp_path / "a.flac", Tags(TEXTS, COVER))
    compress(source, tmp_path / "a.codec", model=MODEL)
    data = bytearray((tmp_path / "a.codec").read_bytes())
    at = data.index(COVER.data) + 9
    data[at] ^= 255
    (tmp_path / "a.codec").write_bytes(data)
    with open_reader(bytes(data)) as reader:
        assert reader.header.tags == tags.NO_TAGS
        (damage,) = reader.check()
        assert damage.frames == 0
    with pytest.raises(DamagedFile):
        decompress(tmp_path / "a.codec", tmp_path / "a.wav", model=MODEL)
    assert soundfile.info(tmp_path / "a.wav").frames == 4000


def test_bounds_and_truncated_bodies() -> None:
    whole = Tags(TEXTS, COVER)
    body = whole.to_bytes()
    assert Tags.from_bytes(body) == whole
    for cut in range(0, len(body), 7):
        with pytest.raises((ValueError, ConfigError)):
            Tags.from_bytes(body[:cut])
    for texts, cover in (((("a", "x" * MAX_TEXT),), None), ((), Cover("image/png", bytes(MAX_COVER)))):
        with pytest.raises(ConfigError):
            Tags(texts, cover)


def test_a_pipe_gives_the_tags_of_a_codec_file(tmp_path: Path) -> None:
    pytest.importorskip("mutagen")
    compress(recording(tmp_path / "a.flac", Tags(TEXTS)), tmp_path / "a.codec", model=MODEL)

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    reader = Reader(Pipe((tmp_path / "a.codec").read_bytes()), label="pipe")
    assert set(reader.header.tags.texts) == set(TEXTS)
    assert sum(codes.shape[2] for codes in reader.packets()) == reader.header.frames


def tagged_wav(path: Path, *, info: dict[str, str], id3: dict[str, str], cover: bytes = b"") -> Path:
    """A WAV file with a chunk INFO before its samples and ID3 tags behind them."""
    wave, frames = pytest.importorskip("mutagen.wave"), pytest.importorskip("mutagen.id3")
    with soundfile.SoundFile(path, "w", 8000, 1, format="WAV") as file:
        for name, text in info.items():
            setattr(file, name, text)
        file.write(np.random.default_rng(0).uniform(-0.3, 0.3, 4000))
    found = wave.WAVE(path)
    found.add_tags()
    for name, text in id3.items():
        found.tags.add(getattr(frames, name)(encoding=3, text=text))
    if cover:
        found.tags.add(frames.APIC(encoding=3, mime="image/png", type=3, desc="", data=cover))
    found.save()
    return path


def test_both_kinds_of_tags_of_a_wav_file(tmp_path: Path) -> None:
    """ID3 first, and what INFO alone has."""
    source = tagged_wav(tmp_path / "a.wav", info={"title": "short", "artist": "A"}, id3={"TIT2": "T", "TALB": "B"})
    assert tags_of(source)[0].by_name() == {"title": ["T"], "artist": ["A"], "album": ["B"]}


@pytest.mark.parametrize("suffix", [".wav", ".aiff", ".caf", ".rf64"])
def test_restored_texts_are_where_libsndfile_finds_them(tmp_path: Path, suffix: str) -> None:
    """Several artists are one text there."""
    pytest.importorskip("mutagen")
    compress(recording(tmp_path / "a.flac", Tags(TEXTS[1:], COVER)), tmp_path / "a.codec", model=MODEL)
    report = decompress(tmp_path / "a.codec", tmp_path / f"b{suffix}", model=MODEL)
    with soundfile.SoundFile(tmp_path / f"b{suffix}") as file:
        found = file.copy_metadata()
        assert file.frames == 4000
    assert found["artist"] == "One; Two"
    assert suffix == ".aiff" or (found["date"], found["album"]) == ("2020-01-02", "A")  # which AIFF has in ID3 alone
    has_all = suffix in (".wav", ".aiff")
    assert bool(report.notes) != has_all
    if has_all:
        assert tags_of(tmp_path / f"b{suffix}")[0].cover == COVER
    else:
        (note,) = report.notes
        assert note.startswith("mood, the cover picture are not restored: ")


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".aiff"])
def test_tags_of_pipes_and_of_bytes(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before the samples, which are all that a WAV pipe can give before it is encoded."""
    pytest.importorskip("mutagen")
    if suffix == ".wav":
        source = tagged_wav(tmp_path / "a.wav", info={"title": "T", "artist": "One"}, id3={"TALB": "late"})
        expected = {("title", "T"), ("artist", "One")}
    else:
        source, expected = tmp_path / f"a{suffix}", {("title", "T"), ("artist", "One")}
        soundfile.write(source, np.random.default_rng(0).uniform(-0.3, 0.3, 4000), 8000)
        with source.open("r+b") as file:
            tags.write(file, Tags(tuple(expected), COVER), container=suffix[1:].upper(), label="")
    with source.open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        compress("-", tmp_path / "a.codec", model=MODEL)
    data = codec.compress(source.read_bytes(), model=MODEL)
    for name, found in (("pipe", (tmp_path / "a.codec").read_bytes()), ("bytes", data)):
        with open_reader(found) as reader:
            late = {("album", "late")} if (name, suffix) == ("bytes", ".wav") else set()
            assert set(reader.header.tags.texts) == expected | late
            assert reader.header.tags.cover == (None if suffix == ".wav" else COVER)
    restored = tmp_path / "back.wav"
    restored.write_bytes(codec.decompress(data, model=MODEL))
    assert expected <= set(tags_of(restored)[0].texts)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".m4a", ".wma", ".mka", ".webm"])
def test_tags_of_files_that_ffmpeg_decodes(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("mutagen")
    source, picture = tmp_path / f"a{suffix}", tmp_path / "cover.png"
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 24000), 48000)
    Image.new("RGB", (16, 16), (200, 30, 30)).save(picture)
    texts = {"title": "T = 1; #2", "artist": "Für\nElise", "date": "2020", "track": "3"}
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.wav")]
    if suffix == ".m4a":
        command += ["-i", str(picture), "-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic"]
    command += [part for name, text in texts.items() for part in ("-metadata", f"{name}={text}")]
    subprocess.run([*command, str(source)], check=True)
    compress(source, tmp_path / "a.codec", model=MODEL, use_ffmpeg=True)
    with open_reader(tmp_path / "a.codec") as reader:
        found = dict(reader.header.tags.texts)
        assert reader.header.tags.cover == (Cover("image/png", picture.read_bytes()) if suffix == ".m4a" else None)
    assert found == {"title": "T = 1; #2", "artist": "Für\nElise", "date": "2020", "tracknumber": "3"}
