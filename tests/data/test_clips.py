"""corpus.py: whatever the corpus is, the same clips; parts of files are what they are in the whole."""

import gzip
import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from codec.data import clips as clips_module
from codec.data.clips import Clip, clip_audio, clip_time, clips, file_length, write_manifest
from codec.errors import ConfigError, InputNotFound, UnsupportedAudio
from codec.frames import resampled_length
from codec.io.audio import read_audio, write_audio


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def noise(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(rate).normal(0, 0.1, (channels, round(seconds * rate))).astype(np.float32)


def manifest(root: Path, *rows: object, name: str = "all.jsonl") -> Path:
    """JSON lines; text goes in as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / name).write_text("".join(f"{line}\n" for line in lines))
    return root / name


# folders


def test_folder_order_sets_and_splits(tmp_path: Path) -> None:
    touch(tmp_path, "b.wav", "a/2.FLAC", "a/deep/1.mp3", "c/3.ogg", "train/d/4.wav", "test/5.wav", "valid/e/f/6.wav")
    touch(tmp_path, "notes.txt", ".hidden/7.wav", "a/._2.wav")
    found = list(clips(tmp_path))
    assert [(clip.id, clip.set, clip.split, clip.label) for clip in found] == [
        ("a/2.FLAC", "a", None, "a"),
        ("a/deep/1.mp3", "a", None, "deep"),
        ("b.wav", "", None, None),
        ("c/3.ogg", "c", None, "c"),
        ("test/5.wav", "", "test", None),
        ("train/d/4.wav", "d", "train", "d"),
        ("valid/e/f/6.wav", "e", "valid", "f"),
    ]
    for clip in found:
        assert clip == Clip(tmp_path / clip.id, clip.id, set=clip.set, split=clip.split, label=clip.label)


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "1.wav")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus/broken.wav").symlink_to(tmp_path / "nothing")
    assert [clip.id for clip in clips(tmp_path / "corpus")] == ["linked/1.wav"]


@pytest.mark.parametrize("name", ["nowhere", "nowhere.jsonl", "notes.txt", "empty", "empty.jsonl", "broken.jsonl.gz"])
def test_sources_without_audio_raise(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "notes.txt", "empty/notes.txt", "empty.jsonl")
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(b'{"path": "1.wav"}\n' * 999)[:-12])
    with pytest.raises(InputNotFound, match=name):
        list(clips(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere", "nowhere does not exist"), ("notes.txt", "neither a folder nor a manifest"), ("store", "token store")],
)
def test_what_is_named_instead_of_audio_is_said(tmp_path: Path, name: str, says: str) -> None:
    touch(tmp_path, "notes.txt", "store/store.json")
    with pytest.raises(InputNotFound, match=says):
        list(clips(tmp_path / name))


# manifests

ROWS: list[dict[str, Any]] = [
    {"path": "a/1.wav", "set": "words", "split": "train", "speaker": "eva", "label": "yes", "transcript": "Yes, «so»"},
    {"path": "a/1.wav", "start": 1.5, "seconds": 0.25, "speaker": 7, "language": "de", "sample_rate": 8000},
    {"path": "a/1.wav", "start": 3723.125},
    {"path": "b.flac", "start": 0, "seconds": None, "set": ""},
]


def wanted(root: Path) -> list[Clip]:
    file = root / "a/1.wav"
    return [
        Clip(file, "a/1.wav", 0.0, None, "words", "train", speaker="eva", label="yes", transcript="Yes, «so»"),
        Clip(file, "a/1.wav@1.5", 1.5, 0.25, speaker="7", language="de"),
        Clip(file, "a/1.wav@3723.125", 3723.125),
        Clip(root / "b.flac", "b.flac"),
    ]


def test_all_manifest_formats_give_the_same_clips(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.wav", "b.flac", "not/named.wav")
    lines = manifest(tmp_path, *ROWS, "")
    assert list(clips(lines)) == wanted(tmp_path)
    (tmp_path / "all.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    assert list(clips(tmp_path / "all.jsonl.gz")) == wanted(tmp_path)
    table = (
        'path,start,seconds,set,split,speaker,label,transcript,language\na/1.wav,,,words,train,eva,yes,"Yes, «so»",\n'
    )
    table += "a/1.wav,1.5,0.25,,,7,,,de\na/1.wav,3723.125\nb.flac,0,,,,,,,\n"
    (tmp_path / "all.csv").write_text("\ufeff" + table)
    assert list(clips(tmp_path / "all.csv")) == wanted(tmp_path)
    lines.rename(tmp_path / "manifest.jsonl")
    assert list(clips(tmp_path)) == wanted(tmp_path)


def test_written_manifests_are_read_back(tmp_path: Path) -> None:
    touch(tmp_path, "corpus/a/1.wav", "corpus/b.flac", "elsewhere/list.jsonl")
    corpus, listed = wanted(tmp_path / "corpus"), tmp_path / "elsewhere/list.jsonl"
    write_manifest(tmp_path / "corpus/manifest.jsonl", corpus)
    assert list(clips(tmp_path / "corpus")) == corpus
    write_manifest(listed, iter(corpus))
    again = list(clips(listed))
    assert [clip.path.resolve() for clip in again] == [clip.path for clip in corpus]
    assert again[1].id == "../corpus/a/1.wav@1.5"
    write_manifest(tmp_path / "corpus/other.jsonl", again)
    assert list(clips(tmp_path / "corpus/other.jsonl")) == corpus


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ('"1.wav"', "is not an object"),
        ('{"file": "1.wav"}', "path is None"),
        ('{"path": 1}', "path is 1"),
        ('{"path": "1.wav", "start": -1}', "start is -1"),
        ('{"path": "1.wav", "seconds": 0}', "seconds is 0"),
        ('{"path": "1.wav", "seconds": "long"}', "seconds is 'long'"),
        ('{"path": "1.wav", "seconds": NaN}', "seconds is nan"),
        ('{"path": "1.wav", "channel": -1}', "channel is -1: write 0 for the first channel"),
        ('{"path": "1.wav", "channel": true}', "channel is True"),
        ('{"path": "1.wav", "split": "dev"}', "split is 'dev': write one of train, valid, test"),
        ('{"path": "1.wav", "start": 1%s}' % ("0" * 400), "start is 1000"),
        ('{"path": "1.wav", "start": %s}' % ("9" * 5000), "not JSON"),
        ('{"path": "1.wav", "seconds": 1e300}', "seconds is 1e+300"),
        pytest.param("[" * 100_000, "not JSON", id="deep"),
        ('{"path": "1\\ud800.wav"}', "lone surrogate"),
        ('{"path": "1.wav", "speaker": "\\ud800"}', r"'\ud800' has half a character"),
    ],
)
def test_an_invalid_line_raises_when_it_is_reached(tmp_path: Path, line: str, says: str) -> None:
    touch(tmp_path, "1.wav")
    found = clips(manifest(tmp_path, '{"path": "1.wav"}', "", line))
    assert next(found).id == "1.wav"  # read one at a time, before the invalid line
    with pytest.raises(ConfigError, match=r"all\.jsonl line 3: ") as refused:
        next(found)
    assert says in str(refused.value)


# lhotse


def recording(path: str, **keys: Any) -> dict[str, Any]:
    sources = [{"type": "file", "channels": [0, 1], "source": path}]
    row = {"id": "r", "sources": sources, "sampling_rate": 8000, "num_samples": 8000, "duration": 1.0}
    return row | {"channel_ids": [0, 1]} | keys


@pytest.mark.slow
def test_manifests_written_by_lhotse(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lhotse = pytest.importorskip("lhotse")
        for name, channels in (("one", 1), ("two", 2)):
            write_audio(tmp_path / f"{name}.wav", noise(2, 8000, channels), 8000)
        recordings = lhotse.RecordingSet.from_recordings(
            lhotse.Recording.from_file(tmp_path / f"{name}.wav") for name in ("one", "two")
        )
        segments = [
            lhotse.SupervisionSegment(
                f"s{start}", "one", start=start, duration=0.5, text=text, speaker="eva", language="de"
            )
            for start, text in ((0.25, "so"), (1.25, "yes"))
        ]
        cuts = lhotse.CutSet.from_manifests(recordings, lhotse.SupervisionSet.from_segments(segments))
        parts = [*cuts, *next(iter(cuts)).trim_to_supervisions()]
        recordings.to_file(tmp_path / "recordings.jsonl.gz")
        lhotse.CutSet.from_cuts(parts).to_file(tmp_path / "cuts.jsonl")
    assert [(clip.path, clip.id, clip.start, clip.seconds) for clip in clips(tmp_path / "recordings.jsonl.gz")] == [
        (tmp_path / "one.wav", "one", 0.0, 2.0),
        (tmp_path / "two.wav", "two", 0.0, 2.0),
    ]
    found = list(clips(tmp_path / "cuts.jsonl"))
    assert [clip.id for clip in found] == [part.id for part in parts]
    assert [
        (clip.path.name, clip.start, clip.seconds, clip.speaker, clip.language, clip.transcript) for clip in found
    ] == [
        ("one.wav", 0.0, 2.0, "eva", "de", "so yes"),
        ("two.wav", 0.0, 2.0, None, None, None),
        ("one.wav", 0.25, 0.5, "eva", "de", "so"),
        ("one.wav", 1.25, 0.5, "eva", "de", "yes"),
    ]
    for clip, part in zip(found, parts, strict=True):
        theirs = part.load_audio().mean(axis=0, keepdims=True)
        assert np.abs(clip_audio(clip, rate=8000) - theirs).max() < 1e-6


def test_one_channel_of_a_recording(tmp_path: Path) -> None:
    audio = noise(1, 8000, 3)
    soundfile.write(tmp_path / "call.wav", audio.T, 8000, subtype="FLOAT")
    rows: list[dict[str, Any]] = [{"path": "call.wav"}, *({"path": "call.wav", "channel": n} for n in range(4))]
    *found, missing = clips(manifest(tmp_path, *rows))
    assert [clip.id for clip in found] == ["call.wav", "call.wav#0", "call.wav#1", "call.wav#2"]
    for clip, expected in zip(found, [audio.mean(axis=0), *audio], strict=True):
        np.testing.assert_allclose(clip_audio(clip, rate=8000)[0], expected, atol=1e-7)
    with pytest.raises(UnsupportedAudio, match=r"has no channel 3: it has 3, counted from 0"):
        clip_audio(missing, rate=8000)
    (tmp_path / "all.csv").write_text("path,start,channel\ncall.wav,0.5,1\n")
    (clip,) = clips(tmp_path / "all.csv")
    assert clip.id == "call.wav@0.5#1"
    np.testing.assert_allclose(clip_audio(clip, rate=8000)[0], audio[1, 4000:], atol=1e-7)
    write_manifest(tmp_path / "again.jsonl", found)
    assert list(clips(tmp_path / "again.jsonl")) == found


@pytest.mark.slow
def test_cuts_of_one_channel_by_lhotse(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lhotse = pytest.importorskip("lhotse")
        write_audio(tmp_path / "two.wav", noise(1, 8000, 2), 8000)
        recordings = lhotse.RecordingSet.from_recordings([lhotse.Recording.from_file(tmp_path / "two.wav")])
        segments = [lhotse.SupervisionSegment(f"s{n}", "two", 0, 1.0, channel=n, speaker=f"{n}") for n in (0, 1)]
        supervisions = lhotse.SupervisionSet.from_segments(segments)
        cuts = list(lhotse.CutSet.from_manifests(recordings, supervisions).trim_to_supervisions(keep_overlapping=False))
        lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl")
    found = list(clips(tmp_path / "cuts.jsonl"))
    assert [(clip.channel, clip.speaker) for clip in found] == [(0, "0"), (1, "1")]
    for clip, cut in zip(found, cuts, strict=True):
        np.testing.assert_allclose(clip_audio(clip, rate=8000), cut.load_audio(), atol=1e-6)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (recording("1.wav", transforms=[{"name": "Speed", "factor": 1.1}]), "recording r has transforms"),
        (recording("1.wav", sources=[{"type": "url", "channels": [0], "source": "x"}]), "is not one local file"),
        (recording("1.wav", sources=[]), "is not one local file"),
        (
            {"id": "c", "start": 0, "duration": 1, "channel": 2, "recording": recording("1.wav")},
            "cut c is of channels 2, its file has [0, 1]",
        ),
        ({"id": "c", "type": "MixedCut", "tracks": []}, "MixedCut c is not a plain part"),
        (recording("1.wav", sources=[1]), "not a recording or cut in the format of lhotse (AttributeError"),
        (recording("1.wav", sources={"a": 1}), "not a recording or cut in the format of lhotse (KeyError"),
        (recording("1.wav", sources=[{"type": "file"}]), "(KeyError('source'))"),
        (recording("1.wav", sources=[{"type": "file", "source": 3}]), "(TypeError"),
        (recording("1.wav", sources=[{"type": "file", "source": "1.wav", "channels": 3}]), "(TypeError"),
        (recording("1.wav", supervisions=[1]), "(AttributeError"),
        (recording("1.wav", supervisions=[{"speaker": []}]), "(TypeError"),
        (recording("1.wav", supervisions=[{"text": 5}]), "(TypeError"),
        (recording("1.wav", id="\ud800"), "lone surrogate"),
    ],
)
def test_unsupported_lhotse_rows_raise(tmp_path: Path, row: object, says: str) -> None:
    with pytest.raises(ConfigError, match=r"all\.jsonl line 1: ") as refused:
        list(clips(manifest(tmp_path, row)))
    assert says in str(refused.value)


# audio


@pytest.mark.parametrize(
    ("name", "rate", "channels", "target"),
    [
        ("a.wav", 44100, 2, 24000),
        ("a.flac", 48000, 1, 24000),
        ("a.flac", 24000, 1, 24000),
        ("a.flac", 8000, 2, 44100),
        ("a.ogg", 22050, 1, 16000),
        ("a.mp3", 44100, 2, 24000),
        ("a.wav", 11025, 1, 8000),
    ],
)
def test_a_part_equals_that_of_the_whole_clip(tmp_path: Path, name: str, rate: int, channels: int, target: int) -> None:
    path = tmp_path / name
    write_audio(path, noise(4, rate, channels), rate)
    whole, _ = read_audio(path, rate=target, mono=True)
    clip = Clip(path, "a")
    assert clip_audio(clip, rate=target).shape == whole.shape
    for first, time in ((0, 500), (1, 2000), (target + 7, target), (whole.shape[1] - 3000, 3000), (5000, 1)):
        part = clip_audio(clip, rate=target, first=first, time=time)
        assert part.dtype == np.float32
        assert part.shape == (1, time)
        if name == "a.ogg" and first > 2 * target:  # its last page
            continue
        assert np.abs(part - whole[:, first : first + time]).max() < 1e-5
    assert clip_audio(clip, rate=target, first=whole.shape[1] - 10, time=99).shape == (1, 10)


def test_only_the_part_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_audio(tmp_path / "long.flac", noise(60, 8000), 8000)
    read: list[int] = []
    into = soundfile.SoundFile.buffer_read_into

    def counted(self: soundfile.SoundFile, buffer: np.ndarray, dtype: str) -> int:
        read.append(len(buffer))
        return int(into(self, buffer, dtype))

    monkeypatch.setattr(soundfile.SoundFile, "buffer_read_into", counted)
    clip_audio(Clip(tmp_path / "long.flac", "long"), rate=16000, first=16000 * 50, time=16000)
    assert 8000 <= sum(read) < 10000


def test_a_clip_within_a_file(tmp_path: Path) -> None:
    audio = noise(4, 16000)
    write_audio(tmp_path / "a.wav", audio, 16000)
    clip = Clip(tmp_path / "a.wav", "a@1.5", 1.5, 2.0)
    ours = clip_audio(clip, rate=16000)
    assert np.abs(ours - audio[:, 24000:56000]).max() < 1 / 32767
    assert clip_audio(clip, rate=44100).shape == (1, resampled_length(32000, 16000, 44100))
    assert clip_audio(clip, rate=16000, first=31000, time=5000).shape == (
        1,
        1000,
    )  # up to its end
    rounded = Clip(tmp_path / "a.wav", "a@1.5", 1.5, 2.55)
    assert clip_audio(rounded, rate=16000).shape == (1, 40000)  # 2.5 s, up to the end of the file
    assert clip_audio(rounded, rate=16000, first=40100, time=10).shape == (1, 0)


def test_files_shorter_than_stated_or_damaged(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", noise(2, 8000), 8000)
    for clip in (Clip(tmp_path / "a.wav", "a", 0.5, 2.0), Clip(tmp_path / "a.wav", "a", 2.0)):
        with pytest.raises(UnsupportedAudio, match=r"a\.wav ends at 2\.00 s, but the manifest"):
            clip_audio(clip, rate=8000)
    with pytest.raises(UnsupportedAudio, match=r"a\.wav has nothing from 1\.5 s on"):
        clip_time(Clip(tmp_path / "a.wav", "a", 1.5), rate=1)
    with pytest.raises(InputNotFound, match=r"b\.wav does not exist"):
        clip_audio(Clip(tmp_path / "b.wav", "b"), rate=8000)
    with pytest.raises(InputNotFound, match=r"b\.wav does not exist"):
        clip_time(Clip(tmp_path / "b.wav", "b", seconds=1.0), rate=8000)
    write_audio(tmp_path / "c.flac", noise(2, 8000), 8000)
    whole = (tmp_path / "c.flac").read_bytes()
    (tmp_path / "c.flac").write_bytes(whole[: len(whole) // 2])
    cut = Clip(tmp_path / "c.flac", "c")
    assert clip_audio(cut, rate=8000, time=4000).shape == (1, 4000)
    with pytest.raises(UnsupportedAudio, match=r"c\.flac (has nothing at|cannot be decoded)"):
        clip_audio(cut, rate=8000, first=12000, time=4000)
    audio = noise(2, 8000)
    audio[0, 12000] = np.nan
    soundfile.write(tmp_path / "d.wav", audio[0], 8000, subtype="FLOAT")
    assert clip_audio(Clip(tmp_path / "d.wav", "d"), rate=8000, time=8000).any()
    with pytest.raises(UnsupportedAudio, match=r"d\.wav has a sample that is NaN at 1\.500000 s"):
        clip_audio(Clip(tmp_path / "d.wav", "d"), rate=8000, first=8000, time=8000)


# manifests that others wrote


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    found = list(clips(manifest(tmp_path, {"path": "pipe.wav"}, {"path": "/dev/zero"}, {"path": "/dev/null"})))
    assert len(found) == 3
    for clip in found:
        for read in (file_length, partial(clip_audio, rate=8000)):
            with pytest.raises(InputNotFound, match=f"{clip.path} is a pipe or a device"):
                read(clip)
    with pytest.raises(InputNotFound, match=r"gone.wav does not exist"):
        file_length(Clip(tmp_path / "gone.wav", "gone"))


@pytest.mark.parametrize("key", ["path", "label", "speaker", "set", "transcript"])
def test_a_nul_is_refused_with_its_line(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=r"all.jsonl line 2: '.*a\\x00b' has a NUL"):
        list(clips(manifest(tmp_path, {"path": "a.wav"}, {"path": "b.wav", key: "a\0b"})))


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz", "all.csv"])
def test_a_long_line_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A few bytes of gzip unpack to a line of any length."""
    monkeypatch.setattr(clips_module, "MAX_LINE", 1000)
    rows = [b"path", b"a.wav"] if name.endswith("csv") else [b'{"path": "a.wav"}'] * 2
    data = b"\n".join([*rows, b" " * 10**6 + rows[-1]]) + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(ConfigError, match=f"{name} line 3 has 1000 characters or more"):
        list(clips(tmp_path / name))


@pytest.mark.parametrize("depth", [40, 900, 100_000])
def test_deep_rows_are_refused(tmp_path: Path, depth: int) -> None:
    row = '{"path": "a.wav", "speaker": ' + "[" * depth + "]" * depth + "}"
    with pytest.raises(ConfigError, match=r"line 1: not JSON .*deep"):
        list(clips(manifest(tmp_path, row)))
