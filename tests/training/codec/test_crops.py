"""training/codec/crops.py: the crops of a step depend on the seed and the step alone, for any corpus."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from codec.data.clips import Clip, write_manifest
from codec.errors import ConfigError, InputNotFound, StorageError, UnsupportedAudio, UsageError
from codec.io.audio import read_audio, write_audio
from codec.training.codec import crops as crops_module
from codec.training.codec.crops import SPLITS, Batch, Crops, load_batches, mix_at_level, open_crops, rms
from codec.training.codec.recipe import Recipe
from tests.helpers import processes
from tests.helpers.memory import peak_memory
from tests.helpers.training import small_recipe, tones, write_recordings

RATE = 8000  # of the small recipe
CROP = 1200  # samples, 0.15 s


def recipe_with(**keys: Any) -> Recipe:
    """Without a gain, so that samples can be identified."""
    return small_recipe(data={"gain_db": [0.0, 0.0]} | keys)


def record(path: Path, samples: Sequence[int] | np.ndarray) -> Path:
    """16-bit samples at the model's rate, as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(samples, np.int16), RATE)
    return path


def corpus(root: Path, **files: np.ndarray) -> Path:
    """Files train/NAME.wav, "__" in a name is a folder; something to validate on beside them."""
    for name, samples in files.items():
        record(root / "train" / f"{name.replace('__', '/')}.wav", samples)
    record(root / "valid/held.wav", np.full(4000, 99))
    return root


def opened(
    data: Path, out: Path, recipe: Recipe | None = None, *, expected_key: str | None = None
) -> tuple[Crops, Crops, list[str]]:
    """Training crops, validation crops, and the printed lines."""
    reports: list[str] = []
    recipe = recipe or recipe_with()

    def check_key(key: str) -> None:
        if expected_key not in (None, key):
            raise ConfigError("other data")

    train, valid = open_crops(
        data,
        out / "index",
        recipe.data,
        sample_rate=recipe.model.sample_rate,
        seed=recipe.train.seed,
        report=reports.append,
        check_key=check_key,
    )
    return train, valid, reports


def test_clips_of_one_channel_keep_it(tmp_path: Path) -> None:
    stereo = np.stack([np.full(4000, 50), np.full(4000, 70)], axis=1)
    record(tmp_path / "call.wav", stereo)
    rows = [{"path": "call.wav", "channel": n, "split": split} for n, split in enumerate(("train", "valid"))]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    both = opened(tmp_path, tmp_path / "out")[:2]
    assert [crops.index.clip(crops.index.sets[0], 0)[0].channel for crops in both] == [0, 1]
    assert set(integers(next(iter(load_batches(both[0], 0, 1, num_workers=0))).audio).ravel()) == {50}


def names(crops: Crops) -> list[str]:
    """The clips of an index, by reading it as crops do."""
    index, found = crops.index, []
    for rows in index.sets:
        ends = index.rows["end"][rows.first : rows.last].tolist()
        assert ends == sorted(set(ends))
        assert ends[-1] == rows.time
        found += [index.clip(rows, end - 1)[0].id for end in ends]
    assert len(found) == len(index.rows)
    return found


def integers(audio: torch.Tensor) -> np.ndarray:
    """[rows, time] as the 16-bit samples they were."""
    return (audio[:, 0] * 32768).round().int().numpy()


# which audio


def empty_corpus(root: Path, *names: str) -> Path:
    """A manifest that gives lengths, so that its empty files are not opened."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def splits_of(root: Path, out: Path, clips: list[Clip], **keys: Any) -> tuple[list[str], list[str]]:
    """(train, valid) ids of clips of 10 s below `root`, written to a manifest."""
    empty_corpus(root, *(str(clip.path.relative_to(root)) for clip in clips))
    write_manifest(root / "manifest.jsonl", clips)
    train, valid, _ = opened(root, out, recipe_with(**keys))
    return names(train), names(valid)


def clip(root: Path, name: str, **keys: Any) -> Clip:
    return Clip(root / name, name, seconds=10.0, **keys)


def test_a_stable_share_is_held_out(tmp_path: Path) -> None:
    old = [clip(tmp_path, f"{set_}/{number}.wav", set=set_) for set_ in "abc" for number in range(100)]
    train, valid = splits_of(tmp_path, tmp_path / "1", old, held_out=0.1)
    assert not set(train) & set(valid)
    assert {*train, *valid} == {one.id for one in old}
    assert 15 <= len(valid) <= 45  # 30, within three standard deviations of a fair draw
    assert set(valid) < set(splits_of(tmp_path, tmp_path / "2", old, held_out=0.2)[1])
    new = [clip(tmp_path, f"a/_{number}.wav", set="a") for number in range(100)]
    more, more_valid = splits_of(tmp_path, tmp_path / "3", new + old[::-1], held_out=0.1)
    assert set(train) < set(more)  # what is added moves nothing over
    assert set(valid) < set(more_valid)


@pytest.mark.parametrize("split_by", ["speaker", "folder", "file"])
def test_groups_stay_in_one_split(tmp_path: Path, split_by: str) -> None:
    """60 owners with 4 clips each, of which two are of one file."""
    clips = [
        Clip(tmp_path / f"{owner}/{min(number, 2)}.wav", "", start=float(number), seconds=10.0)
        if split_by != "speaker"
        else Clip(tmp_path / f"{number}/{owner}.wav", "", seconds=10.0, speaker=f"s{owner}")
        for owner in range(60)
        for number in range(4)
    ]
    by = {"split_by": split_by} if split_by != "speaker" else {}
    found = splits_of(tmp_path, tmp_path / "out", clips, held_out=0.3, **by)

    def owner(one: str) -> str:
        path = Path(one.partition("@")[0])
        return {"speaker": path.stem, "folder": path.parts[0], "file": str(path)}[split_by]

    kept, held = (set(map(owner, side)) for side in found)
    assert not kept & held
    assert len(held) > (8 if split_by != "file" else 30)
    folders = [{one.split("/")[0] for one in side} for side in found]
    assert bool(folders[0] & folders[1]) == (split_by != "folder")


def test_marked_splits_are_kept(tmp_path: Path) -> None:
    said = [
        clip(tmp_path, f"{split}{number}.wav", split=split) for split in ("train", "valid", "test") for number in "12"
    ]
    assert splits_of(tmp_path, tmp_path / "1", said) == (["train1.wav", "train2.wav"], ["valid1.wav", "valid2.wav"])
    unsaid = [clip(tmp_path, f"{number}.wav") for number in range(40)]
    train, valid = splits_of(tmp_path, tmp_path / "2", said + unsaid, held_out=0.5)
    assert {"train1.wav", "train2.wav"} < set(train)
    assert {"valid1.wav", "valid2.wav"} < set(valid)
    assert len(train) + len(valid) == 44
    with pytest.raises(InputNotFound, match=r"has no audio for valid by the splits of its folders or manifest"):
        splits_of(tmp_path, tmp_path / "3", said[:2])
    with pytest.raises(InputNotFound, match=r"has no audio for train"):
        splits_of(tmp_path, tmp_path / "3", said[2:4])


def test_few_files_are_in_both_splits(tmp_path: Path) -> None:
    files = [clip(tmp_path, f"{number}.wav", speaker="eva") for number in range(2)]
    assert splits_of(tmp_path, tmp_path / "1", files[:1]) == (["0.wav"], ["0.wav"])
    for number, held_out in enumerate((1e-9, 1 - 1e-9)):
        train, valid = splits_of(tmp_path, tmp_path / f"two{number}", files, held_out=held_out)
        assert len(train) == len(valid) == 1
        assert train != valid


# the index


def test_the_index_has_every_file_set_by_set(tmp_path: Path) -> None:
    root = write_recordings(tmp_path / "data/train").parent
    record(root / "valid/held.wav", np.full(4000, 1))
    record(root / "train/z.wav", np.full(4000, 2))  # a loose file, after the folder b
    train, valid, reports = opened(root, tmp_path / "out")
    assert names(train) == ["train/a.wav", "train/z.wav", "train/b/c.flac", "train/b/d.aiff"]
    assert names(valid) == ["valid/held.wav"]
    assert [stretch.set for stretch in train.index.sets] == ["", "b"]
    assert [stretch.time for stretch in train.index.sets] == [8000, 4000 + 5512 * 8000 // 11025]
    assert reports == ["train on 0.00 h, validate on 0.0 min"]


def test_files_that_cannot_be_opened_are_named_and_left_out(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", good=np.full(4000, 1))
    for number in range(25):
        (root / f"train/broken{number:02}.wav").write_bytes(b"RIFF of nothing")
    train, _, reports = opened(root, tmp_path / "out")
    assert names(train) == ["train/good.wav"]
    assert sum(line.startswith("left out: ") for line in reports) == 20
    assert "broken00.wav is not audio" in reports[0]
    assert reports[20] == "left out 25 of 27 files in all"
    for file in root.rglob("*.wav"):
        file.write_bytes(b"")
    with pytest.raises(UnsupportedAudio, match=r"none of the 27 audio files of .* could be opened"):
        opened(root, tmp_path / "out")


@pytest.mark.parametrize("seconds", [None, 0.5])
def test_missing_files_of_a_manifest_are_named_and_left_out(seconds: float | None, tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", good=np.full(4000, 1))
    there = [Clip(root / name, name, seconds=0.5) for name in ("train/good.wav", "valid/held.wav")]
    gone = [Clip(root / f"train/{number}.wav", f"train/{number}.wav", seconds=seconds) for number in range(3)]
    sides = [replace(clip, split=clip.id.partition("/")[0]) for clip in (*there, *gone)]
    write_manifest(root / "manifest.jsonl", sides)
    train, _, reports = opened(root / "manifest.jsonl", tmp_path / "out")
    assert names(train) == ["train/good.wav"]
    assert ["0.wav does not exist" in report for report in reports] == [True, *[False] * (len(reports) - 1)]
    assert sum(line.startswith("left out: ") for line in reports) == 3
    for clip in there:
        clip.path.unlink()
    with pytest.raises(UnsupportedAudio, match=r"none of the 5 audio files of .* could be opened"):
        opened(root / "manifest.jsonl", tmp_path / "out")


def test_clips_far_below_the_rate_of_the_model_are_counted_where_files_are_opened(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", good=np.full(4000, 1))
    for name in ("a", "b"):
        soundfile.write(root / f"train/{name}.wav", np.full(1500, 0.1), RATE * 3 // 8)
    (root / "train/bad.wav").write_bytes(b"RIFF of nothing")
    left_out, note, _ = opened(root, tmp_path / "out")[2]
    assert left_out.startswith("left out: ")
    assert note == "2 clips: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz"
    assert len(opened(root, tmp_path / "out")[2]) == 1  # the index of a resumed run is there


def test_an_index_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_recordings(tmp_path / "data")
    first, _, _ = opened(root, tmp_path / "out")

    def forbidden(*_: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr(crops_module, "clip_time", forbidden)
    again, _, _ = opened(root, tmp_path / "out", expected_key=first.index.key)
    assert names(again) == names(first)
    monkeypatch.undo()
    moved = shutil.copytree(root, tmp_path / "moved")
    shutil.rmtree(root)
    elsewhere, _, _ = opened(moved, tmp_path / "out", expected_key=first.index.key)  # the same files in another place
    assert elsewhere.batch(0).audio.any()


def test_other_audio_builds_a_new_index_or_stops_a_resumed_run(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.full(4000, 1))
    key = opened(root, tmp_path / "out")[0].index.key
    record(root / "train/b.wav", np.full(4000, 2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out/index").iterdir()}
    with pytest.raises(ConfigError, match="other data"):
        opened(root, tmp_path / "out", expected_key=key)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/index").iterdir()} == before
    assert len(names(opened(root, tmp_path / "out")[0])) == 2
    record(root / "train/b.wav", np.full(4001, 2))
    with pytest.raises(ConfigError, match="other data"):
        opened(root, tmp_path / "out", expected_key=key)
    assert len(names(opened(root, tmp_path / "out", recipe_with(split_by="folder"))[0])) == 2


def test_a_resumed_run_recognizes_its_audio_without_an_index(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.full(4000, 1))
    key = opened(root, tmp_path / "out")[0].index.key
    shutil.rmtree(tmp_path / "out")
    assert opened(root, tmp_path / "out", expected_key=key)[0].index.key == key
    shutil.rmtree(tmp_path / "out")
    record(root / "train/b.wav", np.full(4000, 2))
    with pytest.raises(ConfigError, match="other data"):
        opened(root, tmp_path / "out", expected_key=key)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "size"),
    [("index.json", 0), ("index.json", 40), ("train.rows", 10), ("valid.rows", None), ("names", 3), ("names", None)],
)
def test_a_damaged_index_is_built_again(name: str, size: int | None, tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.full(4000, 1), b=np.full(4000, 2))
    before = names(opened(root, tmp_path / "out")[0])
    path = tmp_path / "out/index" / name
    content = path.read_bytes()
    path.unlink() if size is None else path.write_bytes(content[:size])
    assert names(opened(root, tmp_path / "out")[0]) == before
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["[]", "{}", "1", '{"key": 1}', "\0"])
def test_an_invalid_index_is_built_again(content: str, tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.full(4000, 1))
    (tmp_path / "out/index").mkdir(parents=True)
    (tmp_path / "out/index/index.json").write_text(content)
    assert names(opened(root, tmp_path / "out")[0]) == ["train/a.wav"]


@pytest.mark.parametrize("moment", ["split_chooser", "write_split", "json.dumps"])
def test_an_unfinished_index_is_built_again(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, recipe = corpus(tmp_path / "data", a=np.full(4000, 1)), recipe_with()
    opened(root, tmp_path / "out", recipe)
    record(root / "train/b.wav", np.full(4000, 2))

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(f"codec.training.codec.crops.{moment}", full)
        with pytest.raises(StorageError):
            opened(root, tmp_path / "out", recipe)
    (root / "train/b.wav").unlink()
    assert names(opened(root, tmp_path / "out")[0]) == ["train/a.wav"]
    assert not list((tmp_path / "out/index").glob(".codec-*"))


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops_module, "CHUNK", 128)
    record(tmp_path / "a.wav", np.arange(4000))
    peaks = []
    for count in (300, 1500):
        with (tmp_path / "all.jsonl").open("w") as file:
            for number in range(count):
                file.write(
                    json.dumps({"path": "a.wav", "start": number / 1e5, "seconds": 0.1, "speaker": number}) + "\n"
                )
        folders = iter((f"{count}", f"{count} again"))

        def index() -> None:
            train, valid, _ = opened(tmp_path / "all.jsonl", tmp_path / next(folders))  # noqa: B023
            train.batch(0, 0, 1)
            assert len(train.index.rows) + len(valid.index.rows) == count  # noqa: B023
            assert train.index.time + valid.index.time == count * 800  # noqa: B023

        peaks.append(peak_memory(index))
    size = sum(path.stat().st_size for path in (tmp_path / "1500/index").iterdir())
    assert size < 1500 * 32 + 1000  # 24 bytes a clip, and "a.wav" with its end; what describes the index
    assert peaks[1] < peaks[0] + 24_000  # 1200 clips more, 20 bytes each


# crops


def test_crops_are_a_function_of_seed_step_and_row(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a__1=np.arange(9000), b__1=np.arange(-9000, 0), b__2=np.arange(500))
    keys = {"batch_size": 4, "gain_db": [-6.0, 0.0], "tones": 0.2, "mix": 0.3}
    crops, _, _ = opened(root, tmp_path / "out", recipe_with(**keys))
    batch = crops.batch(2)
    crops.batch(9)
    assert batch.audio.shape == (4, 1, CROP)
    assert batch.audio.dtype == torch.float32
    assert batch.audio.equal(opened(root, tmp_path / "out", recipe_with(**keys))[0].batch(2).audio)
    assert torch.cat([crops.batch(2, 0, 1).audio, crops.batch(2, 1, 3).audio, crops.batch(2, 3).audio]).equal(
        batch.audio
    )
    assert not batch.audio.equal(crops.batch(3).audio)
    other = small_recipe(data=keys, train={"seed": 1})
    assert not batch.audio.equal(opened(root, tmp_path / "other", other)[0].batch(2).audio)


def test_crops_come_from_anywhere_in_a_clip(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.arange(6000))
    crops, _, _ = opened(root, tmp_path / "out", recipe_with(batch_size=300))
    rows = integers(crops.batch(0).audio)
    assert (np.diff(rows) == 1).all()
    assert rows.min() < 100
    assert rows.max() > 5900
    assert np.histogram(rows[:, 0], bins=4, range=(0, 4800))[0].min() > 45  # 75 each


def test_crops_of_parts_stay_in_them(tmp_path: Path) -> None:
    """A manifest's parts, of which the last is said to be longer than its file by what rounding may add."""
    record(tmp_path / "a.wav", np.arange(9000))
    record(tmp_path / "b.wav", np.arange(-3000, 0))
    parts = [Clip(tmp_path / "a.wav", "", start=0.25, seconds=0.25, split=split) for split in SPLITS]
    write_manifest(
        tmp_path / "all.jsonl", [*parts, Clip(tmp_path / "b.wav", "", start=0.1, seconds=0.3, split="train")]
    )
    crops, _, _ = opened(tmp_path / "all.jsonl", tmp_path / "out", recipe_with(batch_size=400))
    assert [rows.time for rows in crops.index.sets] == [2000 + 2400]
    batch = crops.batch(0)
    rows = integers(batch.audio)
    first = rows[(rows > 0).all(axis=1)]
    assert (first.min(), first.max()) == (pytest.approx(2000, abs=30), pytest.approx(3999, abs=30))
    assert (first >= 2000).all()
    assert (first < 4000).all()
    assert rows.min() >= -2200
    assert batch.notes == ()


def test_clips_are_drawn_in_proportion_to_their_length(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", long=np.full(9000, 1), short=np.full(3000, 2))
    rows = integers(opened(root, tmp_path / "out", recipe_with(batch_size=1000))[0].batch(0).audio)
    assert (rows == rows[:, :1]).all()
    assert (rows[:, 0] == 1).mean() == pytest.approx(0.75, abs=0.05)


def test_short_clips_are_used_whole_and_follow_each_other(tmp_path: Path) -> None:
    """Ramps of 500 samples, each with its own level: none is cut but the last, and joints are faded over 5 ms."""
    files = {f"s__{level}": np.arange(500) + 1000 * level for level in range(1, 9)}
    root = corpus(tmp_path / "data", **files, other=np.full(5000, -5))
    crops, _, _ = opened(root, tmp_path / "out", recipe_with(batch_size=40, weights={"s": 1.0}))
    rows = integers(crops.batch(0).audio)
    assert set((rows // 1000).flatten().tolist()) == set(range(1, 9))  # never of another set
    assert (rows[:, :460] % 1000 == np.arange(460)).all()
    assert (rows[:, 500:920] % 1000 == np.arange(40, 460)).all()
    assert (np.diff(rows[:, 960:]) == 1).all()
    assert (np.abs(np.diff(rows[:, 450:510])).max(axis=1) <= 7500 / 41 + 2).all()


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"balance": 0.0}, [1, 1, 1]),
        ({"balance": 0.5}, [4, 2, 1]),
        ({"balance": 1.0}, [16, 4, 1]),
        ({"balance": 1.0, "weights": {"c": 0.5}}, [0.4, 0.1, 0.5]),
        ({"weights": {"a": 0.2, "b": 0.0, "c": 0.4}}, [1, 0, 2]),
        ({"weights": {"b": 1.0}}, [0, 1, 0]),
    ],
)
def test_sets_are_drawn_by_weight_and_balance(tmp_path: Path, keys: dict[str, Any], wanted: list[float]) -> None:
    lengths = {"a": 32000, "b": 8000, "c": 2000}
    root = corpus(tmp_path, **{f"{name}__1": np.full(lengths[name], ord(name)) for name in lengths})
    crops, _, _ = opened(root, tmp_path / "out", recipe_with(batch_size=700, **keys))
    drawn = integers(crops.batch(0).audio)[:, 0]
    found = [(drawn == ord(name)).mean() for name in lengths]
    assert found == pytest.approx(np.array(wanted) / sum(wanted), abs=0.06)


def test_weights_of_unknown_sets(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", words__1=np.full(4000, 1), music__1=np.full(4000, 1))
    with pytest.raises(ConfigError, match=r"data\.weights\.word: .* did you mean words\?"):
        opened(root, tmp_path / "out", recipe_with(weights={"word": 0.5}))
    with pytest.raises(ConfigError, match=r"data\.weights\.x: .* its sets are music, words"):
        opened(root, tmp_path / "out", recipe_with(weights={"x": 0.5}))
    with pytest.raises(ConfigError, match=r"weights add up to 1\.2"):
        recipe_with(weights={"words": 0.6, "music": 0.6})
    with pytest.raises(ConfigError, match=r"data\.weights leaves nothing to draw"):
        opened(root, tmp_path / "out", recipe_with(weights={"words": 0.0, "music": 0.0}))


def test_gain_is_random_within_its_range_and_never_clips(tmp_path: Path) -> None:
    loud, quiet = np.resize([32767, -32768], 4000), np.resize([1000, -1000], 4000)
    root = corpus(tmp_path / "data", loud=loud, quiet=quiet)
    crops, _, _ = opened(root, tmp_path / "out", recipe_with(batch_size=300, gain_db=[-12.0, 6.0]))
    peaks = crops.batch(0).audio.abs().amax(dim=(1, 2))
    assert peaks.max() <= 1 + 1e-6
    gains = 20 * (peaks[peaks < 0.08] * 32.768).log10()
    assert -12 <= gains.min() < -11
    assert 5 < gains.max() <= 6


def test_levels_are_within_their_range(tmp_path: Path) -> None:
    """Sines have their peak 3 dB above their RMS; what is 60 dB too quiet is raised by 30."""
    sine = np.sin(np.arange(8000))
    root = corpus(tmp_path / "data", loud=20000 * sine, quiet=1500 * sine, pause=30 * sine)
    crops, _, _ = opened(root, tmp_path / "out", recipe_with(batch_size=200, level_db=[-30.0, -12.0]))
    levels = np.array([20 * np.log10(rms(row)) for row in crops.batch(0).audio.numpy()])
    inside = levels[levels > -32]
    assert inside.min() == pytest.approx(-30, abs=0.6)
    assert inside.max() == pytest.approx(-12, abs=0.6)
    assert 40 < (levels <= -32).sum() < 95  # a third
    assert levels[levels <= -32] == pytest.approx(20 * np.log10(30 / 32768) - 3.01 + 30, abs=0.3)
    clipped, _, _ = opened(root, tmp_path / "out", recipe_with(batch_size=50, level_db=[-1.0, -1.0]))
    assert clipped.batch(0).audio.abs().max() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match=r"data\.level_db = .*lower bound comes first: write \[-30, -12\]"):
        recipe_with(level_db=[-12.0, -30.0])


def test_silence_stays_silence(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.zeros(4000))
    for keys in ({}, {"level_db": [-20.0, -10.0]}, {"mix": 1.0}):
        assert not opened(root, tmp_path / "out", recipe_with(**keys))[0].batch(0).audio.any()


def test_some_crops_are_mixed(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.resize([8000, -8000], 9000), b=np.resize([80, 80, -80, -80], 9000))
    rows = opened(root, tmp_path / "out", recipe_with(batch_size=400, mix=0.5))[0].batch(0).audio.numpy()
    kinds = [len(np.unique(np.abs(row).round(6))) for row in rows]
    assert np.mean([kind > 1 for kind in kinds]) == pytest.approx(0.25, abs=0.07)  # half, and half of these of two
    one, other = np.full(10, 0.3, np.float32), np.resize(np.array([0.01, -0.01], np.float32), 10)
    assert rms(mix_at_level(one, other, 6.0) - one) == pytest.approx(0.3 / 10**0.3, rel=1e-5)
    silent = np.zeros(10, np.float32)
    assert np.array_equal(mix_at_level(silent, other, 6.0), other)
    assert np.array_equal(mix_at_level(one, silent, 6.0), one)


def test_some_crops_are_synthetic(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.full(4000, 1))
    rows = opened(root, tmp_path / "out", recipe_with(batch_size=300, tones=0.5))[0].batch(0).audio.numpy()[:, 0]
    synthetic = rows[[len(np.unique(row)) > 1 for row in rows]]
    assert 120 < len(synthetic) < 180
    assert len(np.unique(synthetic, axis=0)) == len(synthetic)
    peaks = 20 * np.log10(np.abs(synthetic).max(axis=1))
    assert -70 < peaks.min() < -45
    assert -5 < peaks.max() <= 0


def test_some_crops_are_quiet(tmp_path: Path) -> None:
    """A sine has an RMS level of -3 dB; one at -63 dBFS is raised by 30 dB at most."""
    sine = np.sin(np.arange(8000))
    root = corpus(tmp_path / "data", loud=32000 * sine)
    rows = opened(root, tmp_path / "out", recipe_with(batch_size=400, quiet=0.5))[0].batch(0).audio.numpy()
    levels = np.array([20 * np.log10(rms(row)) for row in rows])
    quiet = levels[levels < -10]
    assert len(quiet) / 400 == pytest.approx(0.5, abs=0.08)
    assert levels[levels >= -10] == pytest.approx(20 * np.log10(32000 / 32768) - 3.01, abs=0.1)  # the usual gain
    assert np.histogram(quiet, bins=4, range=(-60, -20))[0].min() > 30  # 50 each
    assert (quiet.min(), quiet.max()) == (pytest.approx(-60, abs=2), pytest.approx(-20, abs=2))
    spiky = np.where(np.arange(8000) % 1000 == 0, 32000, 0)  # -30 dBFS RMS: above that, its peaks would clip
    limited = opened(
        corpus(tmp_path / "spiky", a=spiky), tmp_path / "spiky.out", recipe_with(batch_size=200, quiet=1.0)
    )
    audio = limited[0].batch(0).audio
    assert audio.abs().max() == pytest.approx(1, abs=1e-5)
    lowest = opened(
        corpus(tmp_path / "quiet", a=30 * sine), tmp_path / "quiet.out", recipe_with(batch_size=200, quiet=1.0)
    )
    loudest = max(20 * np.log10(rms(row)) for row in lowest[0].batch(0).audio.numpy())
    assert loudest == pytest.approx(20 * np.log10(30 / 32768) - 3.01 + 30, abs=0.3)


def test_too_short_for_a_crop(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.ones(500), b=np.ones(600))
    with pytest.raises(
        UnsupportedAudio, match=r"train audio is 0\.14 s in all \(the longest clip 0\.07 s\), shorter"
    ) as error:
        opened(root, tmp_path / "out")
    assert "set data.crop lower" in str(error.value)


def test_too_little_validation_audio_says_how_to_hold_out_more(tmp_path: Path) -> None:
    for number in range(10):
        record(tmp_path / f"data/{number}.wav", np.ones(1000))
    with pytest.raises(UnsupportedAudio, match=r"valid audio .* set data\.held_out = 0\.02 higher or data\.crop lower"):
        opened(tmp_path / "data", tmp_path / "out")
    assert opened(tmp_path / "data", tmp_path / "out", recipe_with(held_out=0.4))


def test_clips_are_fixed_and_take_the_sets_in_turn(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", **{f"{name}__1": np.full(4000, ord(name)) for name in "abc"})
    crops, valid, _ = opened(root, tmp_path / "out", recipe_with(gain_db=[-9.0, -9.0], tones=1.0, mix=1.0))
    assert integers(crops.fixed_clips(5))[:, 0].tolist() == [ord(name) for name in "abcab"]
    assert valid.fixed_clips(2).shape == (2, 1, CROP)
    record(root / "train/a/1.wav", np.arange(9000))
    one, other = (
        opened(root, tmp_path / f"{seed}", small_recipe(train={"seed": seed}))[0].fixed_clips(7) for seed in (0, 7)
    )
    assert one.equal(other)
    assert not one[0].equal(one[3])


def test_audio_for_the_closed_form_start(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.arange(9000))
    crops, _, _ = opened(root, tmp_path / "out")
    audio = crops.init_audio(1.0)
    assert audio.shape == (7, 1, CROP)  # 1.05 s
    assert torch.cat([crops.init_audio(1.0, 0, 3), crops.init_audio(1.0, 3)]).equal(audio)
    assert not audio[:3].equal(crops.batch(0).audio)


def test_a_crop_is_a_part_of_the_resampled_file(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for side in SPLITS:
        (root / side).mkdir(parents=True)
        write_audio(root / side / "a.flac", tones(1, 44100, seed=1, channels=2), 44100)
    whole = read_audio(root / "train/a.flac", rate=RATE, mono=True)[0][0]
    for row in opened(root, tmp_path / "out")[0].batch(0).audio.numpy()[:, 0]:
        place = int(np.correlate(whole, row, "valid").argmax())
        assert np.abs(whole[place : place + CROP] - row).max() < 1e-4


def stereo(root: Path, left: np.ndarray, right: np.ndarray) -> Path:
    for side in SPLITS:
        record(root / side / "a.wav", np.stack([left, right], axis=1))
    return root


def test_crops_have_the_channels_of_the_model(tmp_path: Path) -> None:
    root = stereo(tmp_path / "data", np.arange(3000), np.arange(3000) + 5000)
    crops, valid, _ = opened(root, tmp_path / "out", recipe_with(batch_size=4))
    both = (crops.with_channels(2).batch(0).audio * 32768).round()
    assert both.shape == (4, 2, CROP)
    assert (both[:, 1] - both[:, 0] == 5000).all()
    assert (crops.batch(0).audio * 32768).round().equal(both.mean(dim=1, keepdim=True))
    assert valid.with_channels(2).fixed_clips(3).shape == (3, 2, CROP)
    mono = corpus(tmp_path / "mono", a=np.arange(700), b=np.arange(900))  # shorter than a crop, so cross-faded
    repeated = opened(mono, tmp_path / "two", recipe_with(tones=0.3, mix=0.3))[0].with_channels(2).batch(0).audio
    assert repeated[:, 0].equal(repeated[:, 1])
    assert repeated.any()


def test_channels_of_opposite_phase_are_not_averaged(tmp_path: Path) -> None:
    wave = (8000 * np.sin(np.arange(3000) / 7)).round()
    crops, _, _ = opened(stereo(tmp_path / "data", wave, -wave), tmp_path / "out", recipe_with(batch_size=4))
    batch = crops.batch(0)
    assert integers(batch.audio).max() > 7900
    (note,) = batch.notes
    assert note.text.startswith(f"{tmp_path}/data/train/a.wav: its channels cancel in their average (opposite phase)")
    assert not note.left_out
    crops.check_sound()


def test_samples_that_look_like_integers_are_named(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data", a=np.arange(3000) % 50)
    soundfile.write(data / "train/a.wav", np.arange(3000.0) % 5000, 8000, subtype="FLOAT")
    (note,) = opened(data, tmp_path / "out", recipe_with(batch_size=4))[0].batch(0).notes
    assert note.text.endswith("as if it held integers: divide its samples by 32768 first")
    assert not note.left_out


def test_silence_is_named(tmp_path: Path) -> None:
    crops, _, _ = opened(corpus(tmp_path / "data", a=np.zeros(3000)), tmp_path / "out")
    with pytest.raises(UsageError, match=r"100 crops in a row of .*data are silence: check how"):
        crops.check_sound()


# bad files


def test_bad_files_are_replaced_and_named_once(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", good=np.full(9000, 1), gone=np.full(9000, 2), cut=np.full(9000, 3))
    loud = np.full(9000, 0.5, np.float32)
    loud[::500] = np.nan
    soundfile.write(root / "train/nan.wav", loud, RATE, subtype="FLOAT")
    crops, _, _ = opened(root, tmp_path / "out", recipe_with(batch_size=12))
    (root / "train/gone.wav").unlink()
    cut = (root / "train/cut.wav").read_bytes()
    (root / "train/cut.wav").write_bytes(cut[:100])
    found = list(load_batches(crops, 0, 4, num_workers=0))
    assert len(found) == 4
    assert all((integers(batch.audio) == 1).all() for batch in found)
    notes = [note for batch in found for note in batch.notes]
    assert sorted(note.file for note in notes) == ["train/cut.wav", "train/gone.wav", "train/nan.wav"]
    assert all(note.left_out for note in notes)
    reasons = {note.file: note.text for note in notes}
    assert "does not exist" in reasons["train/gone.wav"]
    assert "NaN at" in reasons["train/nan.wav"]
    again = crops.batch(1)
    assert again.audio.equal(found[1].audio)
    assert len(again.notes) == 3


def test_only_bad_files(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.full(9000, 1), b=np.full(9000, 2))
    crops, _, _ = opened(root, tmp_path / "out")
    shutil.rmtree(root / "train")
    with pytest.raises(UnsupportedAudio, match=r"100 draws in a row could not be read, .*\.wav does not exist"):
        list(load_batches(crops, 0, 2, num_workers=0))


# workers


def test_order_and_content_do_not_depend_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forked = partial(DataLoader, multiprocessing_context=processes.context())
    monkeypatch.setattr(
        crops_module,
        "DataLoader",
        lambda *data, multiprocessing_context, **options: (
            forked(*data, **options) if multiprocessing_context else DataLoader(*data, **options)
        ),
    )
    root = corpus(tmp_path / "data", a__1=np.arange(9000), b__1=np.arange(-9000, 0), b__2=np.arange(500))
    (root / "train/a/2.wav").write_bytes((root / "train/a/1.wav").read_bytes())
    crops, _, _ = opened(root, tmp_path / "out", recipe_with(batch_size=4, mix=0.3))
    (root / "train/a/2.wav").write_bytes(b"")
    state = torch.get_rng_state()
    wanted = list(load_batches(crops, 3, 9, num_workers=0))
    assert len(wanted) == 6
    for rows, workers in ((None, 2), ((1, 3), 0)):
        found = list(load_batches(crops, 3, 9, rows=rows, num_workers=workers))
        for ours, theirs in zip(found, wanted, strict=True):
            assert isinstance(ours, Batch)
            assert ours.audio.equal(theirs.audio if rows is None else theirs.audio[1:3])
            assert rows or ours.notes == theirs.notes
    assert list(load_batches(crops, 3, 3, num_workers=0)) == []
    assert torch.get_rng_state().equal(state)  # the state of training is unchanged


def test_workers_ignore_stop_signals_and_end_with_the_run(tmp_path: Path) -> None:
    root = corpus(tmp_path / "data", a=np.arange(9000))
    crops, _, _ = opened(root, tmp_path / "out")
    running = load_batches(crops, 0, 1000, num_workers=1)
    next(running)
    (worker,) = active_children()
    assert worker.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(worker.pid, number)
    for _ in range(6):  # more than were read ahead
        batch = next(running)
    assert batch.audio.equal(crops.batch(6).audio)
    shutil.rmtree(root)
    with pytest.raises(UnsupportedAudio, match="draws in a row") as error:
        list(running)
    assert "\n" not in str(error.value)
    del error
    assert active_children() == []
