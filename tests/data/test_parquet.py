"""Datasets of Parquet files with audio, through io/parquet.py and data/clips.py, as the same audio in a folder."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from codec.checkpoint import load_model
from codec.data.clips import clip_audio, clips, file_length
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.errors import CodecError, ConfigError, InputNotFound, MissingDependency
from codec.evaluation.codec import evaluate
from codec.io import parquet as parquet_io
from codec.training.codec.crops import Index, build_index
from codec.training.codec.recipe import DataConfig

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TIMES = (4000, 1, 700, 30_000, 81)


def content(time: int, *, rate: int = 8000, channels: int = 1) -> bytes:
    """A WAV file of noise."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(time).normal(0, 0.1, (time, channels)).astype(np.float32)
    soundfile.write(buffer, noise, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def write(path: Path, audio: list[Any], *, row_group_size: int = 2, features: Any = None, **columns: list[Any]) -> Path:
    """A file as `datasets` writes it: audio is a struct of bytes and path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    values = [{"bytes": one, "path": f"{n}.wav"} if isinstance(one, bytes) else one for n, one in enumerate(audio)]
    table = pyarrow.table({"audio": pyarrow.array(values, kind), **columns})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=row_group_size)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two splits with text columns, beside the README that such folders have."""
    folder = tmp_path / "dataset"
    audio = [content(time) for time in TIMES]
    labels = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    write(
        folder / "data/train-00000-of-00001.parquet",
        audio[:3],
        features=labels,
        text=["a", None, "é"],
        label=[1, 0, -1],
        speaker_id=[7, 7, 8],
        other=[0.5, 0.5, 0.5],
    )
    write(folder / "data/validation-00000-of-00001.parquet", audio[3:], features=labels, text=["d", "e"])
    (folder / "README.md").write_text("# A dataset\n")
    return folder


def test_rows_are_clips(dataset: Path) -> None:
    found = list(clips(dataset))
    train, valid = "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"
    assert [clip.id for clip in found] == [*(f"{train}/{n}" for n in range(3)), *(f"{valid}/{n}" for n in range(2))]
    assert [clip.split for clip in found] == ["train"] * 3 + ["valid"] * 2
    assert [clip.transcript for clip in found] == ["a", None, "é", "d", "e"]
    assert [clip.label for clip in found] == ["yes", "no", None, None, None]
    assert [clip.speaker for clip in found] == ["7", "7", "8", None, None]
    assert [file_length(clip) for clip in found] == [(time, 8000) for time in TIMES]
    alone = list(clips(dataset / valid))
    assert [(clip.id, clip.set, clip.split) for clip in alone] == [
        (f"validation-00000-of-00001.parquet/{n}", "", "valid") for n in range(2)
    ]


@pytest.mark.slow
def test_a_row_has_the_codes_of_its_file(tmp_path: Path, dataset: Path, model_file: Path) -> None:
    for number, time in enumerate(TIMES):
        path = tmp_path / "folder" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(time))
    report = tokenize(dataset, tmp_path / "rows", model=model_file)
    assert (report.clips, report.failures) == (5, ())
    tokenize(tmp_path / "folder", tmp_path / "files", model=model_file)
    rows, files = TokenStore(tmp_path / "rows", load_model(model_file)), TokenStore(tmp_path / "files")
    assert [clip.codes.tolist() for clip in rows] == [clip.codes.tolist() for clip in files]
    assert rows.classes["label"] == ("no", "yes")
    again = tokenize(dataset, tmp_path / "rows", model=model_file)
    assert (again.clips, again.already_encoded) == (0, 5)


def test_rows_are_read_in_any_order_and_by_channels(tmp_path: Path) -> None:
    stereo = content(900, channels=2)
    write(tmp_path / "test.parquet", [content(500), stereo, content(700)])
    found = list(clips(tmp_path))
    assert [clip.split for clip in found] == ["test"] * 3
    for number in (2, 0, 1, 1, 2, 0):
        audio = clip_audio(found[number], rate=8000)
        expected, _ = soundfile.read(io.BytesIO((content(500), stereo, content(700))[number]), always_2d=True)
        assert np.allclose(audio[0], expected.mean(axis=1), atol=1e-6)


def test_training_takes_rows(tmp_path: Path, dataset: Path) -> None:
    build_index(dataset, tmp_path / "index", DataConfig(), sample_rate=8000, report=lambda text: None)
    for split, times in (("train", TIMES[:3]), ("valid", TIMES[3:])):
        index = Index(tmp_path / "index", split)
        assert index.time == sum(times)
        clip, time = index.clip(index.sets[0], times[0])
        assert time == times[1]
        assert np.array_equal(clip_audio(clip, rate=8000)[0], soundfile.read(io.BytesIO(content(time)), dtype="f4")[0])


def test_rows_may_name_files(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs/one.wav").write_bytes(content(500))
    write(tmp_path / "list.parquet", [{"bytes": None, "path": "wavs/one.wav"}, {"bytes": None, "path": "wavs/two.wav"}])
    one, two = clips(tmp_path / "list.parquet")
    assert file_length(one) == (500, 8000)
    with pytest.raises(InputNotFound, match=r"two\.wav"):
        file_length(two)


def test_columns_of_plain_bytes(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"id": [1], "audio": [content(500)]}), tmp_path / "a.parquet")
    assert [file_length(clip) for clip in clips(tmp_path)] == [(500, 8000)]


def test_damaged_rows_are_failures(tmp_path: Path, model_file: Path) -> None:
    audio = [content(500), b"no audio", None, {"bytes": None, "path": None}, content(600)[:30], content(700)]
    write(tmp_path / "data/train.parquet", audio)
    report = tokenize(tmp_path / "data", tmp_path / "store", model=model_file)
    assert report.clips == 2
    assert [(failure.id, failure.error.removeprefix(str(tmp_path / "data") + "/")) for failure in report.failures] == [
        ("train.parquet/1", "train.parquet/1 is not audio that libsndfile can read: convert it to WAV or FLAC first"),
        ("train.parquet/2", "train.parquet/2 has no audio: leave this row out"),
        ("train.parquet/3", "train.parquet/3 has no audio: leave this row out"),
        ("train.parquet/4", "train.parquet/4 is not audio that libsndfile can read: convert it to WAV or FLAC first"),
    ]


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path, model_file: Path) -> None:
    path = write(tmp_path / "data/train.parquet", [content(500 + n) for n in range(6)])
    group = parquet.ParquetFile(path).metadata.row_group(1)
    begin = group.column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[begin : begin + 40] = bytes(40)
    path.write_bytes(data)
    report = tokenize(tmp_path / "data", tmp_path / "store", model=model_file)
    assert report.clips == 4
    assert [failure.id for failure in report.failures] == ["train.parquet/2", "train.parquet/3"]
    assert all("train.parquet cannot be read" in failure.error for failure in report.failures)


def test_bad_files_have_one_line(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"id": [1], "text": ["a"]}), tmp_path / "text.parquet")
    path = write(tmp_path / "split.parquet", [content(500)], split=["holdout"])
    (tmp_path / "bad.parquet").write_bytes(path.read_bytes()[:100])
    cases: list[tuple[str, type[CodecError], str]] = [
        ("text.parquet", ConfigError, "has no column of audio, a struct of bytes and path; its columns are id, text"),
        ("split.parquet", ConfigError, "row 0: split is 'holdout': write one of train, valid, test"),
        ("bad.parquet", InputNotFound, "bad.parquet cannot be read"),
        ("none.parquet", InputNotFound, "none.parquet cannot be read"),
    ]
    for name, error, message in cases:
        with pytest.raises(error, match=message) as raised:
            list(clips(tmp_path / name))
        assert "\n" not in str(raised.value)
    with pytest.raises(InputNotFound, match="has 1 rows, counted from 0: there is no row 3"):
        parquet_io.audio(path, 3)


def test_parquet_beside_audio_is_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.wav").write_bytes(content(500))
    (tmp_path / "metadata.parquet").write_bytes(b"")
    assert [clip.id for clip in clips(tmp_path)] == ["one.wav"]
    (tmp_path / "one.wav").unlink()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"'\.\[parquet\]'"):
        list(clips(tmp_path))


def test_memory_is_that_of_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_io, "KEPT_BYTES", 2**20)
    noise = [np.random.default_rng(n).bytes(2**18) for n in range(64)]
    path = write(tmp_path / "large.parquet", noise, row_group_size=4)
    pool = pyarrow.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for row in range(64):
        assert parquet_io.audio(path, row) == noise[row]
        most = max(most, pool.bytes_allocated() - before)
    assert most < 6 * 2**20  # of 16 in the file and 1 in a row group, which is compressed and uncompressed
    assert len(parquet_io._opened(path)._kept) == 4


@pytest.mark.slow
def test_evaluation_equals_that_of_files(dataset: Path, tmp_path: Path, model_file: Path) -> None:
    """A row without readable audio is a failure; the sets and what is speech come from the names and columns."""
    broken = write(dataset / "data/test-00000-of-00001.parquet", [b"no audio"], text=["e"])
    files = tmp_path / "files"
    files.mkdir()
    for number, time in enumerate(TIMES):
        (files / f"{number}.wav").write_bytes(content(time))
    model = load_model(model_file)
    rows = evaluate(model, dataset, speech=False, write=tmp_path / "decoded")
    expected = evaluate(model, files, speech=False)
    assert [score.measures for score in rows.files] == [score.measures for score in expected.files]
    train = "data/train-00000-of-00001.parquet"
    assert [(score.path, score.set, score.domain) for score in rows.files][:3] == [
        (f"{train}/0", "data", "words"),
        (f"{train}/1", "data", "words"),
        (f"{train}/2", "data", "speech"),
    ]
    assert [failure.path for failure in rows.failures] == [f"data/{broken.name}/0"]
    assert len(list((tmp_path / "decoded").rglob("*.wav"))) == len(TIMES)
    one = evaluate(model, dataset / train, speech=False)
    assert [score.set for score in one.files] == ["train-00000-of-00001"] * 3
