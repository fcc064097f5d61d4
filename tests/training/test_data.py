"""training/data.py: any folder becomes crops, and the same step always the same ones."""

from pathlib import Path

import numpy as np
import pytest

from codec.audio import read_audio, write_audio
from codec.errors import ConfigError, InputNotFound, StorageError, UnsupportedAudio
from codec.frames import resampled_length
from codec.training import data
from codec.training.data import AudioStore, Crops, Entry, split
from codec.training.recipe import DataConfig
from tests.training.small import tones, write_recordings


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def build(root: Path, cache: Path, *, resumed: bool = False) -> tuple[AudioStore, list[str]]:
    """The store of all files below `root`, and what was reported."""
    reports: list[str] = []
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    store = AudioStore.build(root, paths, cache, sample_rate=8000, report=reports.append, resumed=resumed)
    return store, reports


def sets(**samples: np.ndarray) -> AudioStore:
    """A store of sets by name, two files each."""
    entries, start = [], 0
    for name, values in samples.items():
        half = len(values) // 2
        entries += [Entry(f"{name}/1.wav", start, half), Entry(f"{name}/2.wav", start + half, len(values) - half)]
        start += len(values)
    return AudioStore(np.concatenate(list(samples.values())).astype("<i2"), entries, 1000, "train")


# which files


def test_a_stable_share_is_held_out(tmp_path: Path) -> None:
    names = [f"{set_}/{number}.wav" for set_ in "abc" for number in range(100)]
    train, valid = split(touch(tmp_path, *names), 0.1)
    assert not set(train) & set(valid)
    assert {path.relative_to(tmp_path).as_posix() for path in train + valid} == set(names)
    assert 15 <= len(valid) <= 45  # 30, within three standard deviations of a fair draw
    assert split(tmp_path, 0.1) == (train, valid)
    wider = split(tmp_path, 0.2)[1]
    assert set(valid) < set(wider)
    more, more_valid = split(touch(tmp_path, *(f"d/{number}.wav" for number in range(100))), 0.1)
    assert set(train) < set(more)  # what is added moves nothing over
    assert set(valid) < set(more_valid)


def test_folders_named_train_and_valid_are_obeyed(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.wav", "train/2.flac", "valid/3.wav", "else/4.wav", "train/notes.txt")
    train, valid = split(tmp_path, 0.5)
    assert train == [tmp_path / "train/2.flac", tmp_path / "train/a/1.wav"]
    assert valid == [tmp_path / "valid/3.wav"]


def test_few_files_still_leave_something_on_both_sides(tmp_path: Path) -> None:
    first = touch(tmp_path, "1.wav") / "1.wav"
    assert split(tmp_path, 0.001) == ([first], [first])
    assert split(touch(tmp_path, "2.wav"), 1e-9) == ([tmp_path / "2.wav"], [first])
    assert split(tmp_path, 1 - 1e-9) == ([first, tmp_path / "2.wav"], [first, tmp_path / "2.wav"])


def test_no_audio(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="nowhere is not a folder"):
        split(tmp_path / "nowhere", 0.1)
    with pytest.raises(InputNotFound, match="holds no audio files"):
        split(touch(tmp_path, "notes.txt"), 0.1)
    with pytest.raises(InputNotFound, match="valid holds no audio files"):
        split(touch(tmp_path, "train/1.wav", "valid/notes.txt"), 0.1)


# the store


def test_every_set_is_one_stretch_of_the_store(tmp_path: Path) -> None:
    """Loose files come before and after a folder by name, and a folder may turn up again below train."""
    root = tmp_path / "data"
    write_recordings(root)
    (root / "train/b").mkdir(parents=True)
    for name in ("z.wav", "train/b/e.wav", "c.wav"):
        write_audio(root / name, np.full((1, 4000), 0.1, np.float32), 8000)
    store, _ = build(root, tmp_path / "all.i16")
    assert [entry.group for entry in store.entries] == ["", "", "", "b", "b", "b"]
    assert {entry.path for entry in store.entries} == {
        "a.wav",
        "c.wav",
        "z.wav",
        "b/c.flac",
        "b/d.aiff",
        "train/b/e.wav",
    }
    crops = Crops(store, DataConfig(crop=0.05), seed=0)
    assert crops.spans == [(0, 12000), (12000, len(store.samples))]


def test_the_store_holds_every_file_at_one_rate(tmp_path: Path) -> None:
    root = write_recordings(tmp_path / "data")
    store, reports = build(root, tmp_path / "train.i16")
    assert not reports
    assert [entry.path for entry in store.entries] == ["a.wav", "b/c.flac", "b/d.aiff"]
    assert [entry.group for entry in store.entries] == ["", "b", "b"]
    assert Entry("train/b/c.wav", 0, 1).group == Entry("b/train/c.wav", 0, 1).group == "b"
    assert Entry("train/c.wav", 0, 1).group == ""
    assert [entry.time for entry in store.entries] == [4000, 4000, resampled_length(5512, 11025, 8000)]
    assert store.seconds == len(store.samples) / 8000 == sum(entry.time for entry in store.entries) / 8000
    for entry in store.entries:
        audio = read_audio(root / entry.path, rate=8000, mono=True)[0][0]
        kept = store.samples[entry.start : entry.start + entry.time] / 32767
        assert np.abs(kept - audio).max() < 0.51 / 32767


def test_unreadable_files_are_reported_and_left_out(tmp_path: Path) -> None:
    root = write_recordings(tmp_path / "data")
    (root / "b/broken.wav").write_bytes(b"RIFF of nothing")
    store, reports = build(root, tmp_path / "train.i16")
    assert len(store.entries) == 3
    assert len(reports) == 1
    assert "left out: " in reports[0]
    assert "broken.wav" in reports[0]


def test_nothing_readable(tmp_path: Path) -> None:
    root = touch(tmp_path / "data", "1.wav", "2.wav")
    with pytest.raises(UnsupportedAudio, match="none of the 2 audio files"):
        build(root, tmp_path / "train.i16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_store_is_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_recordings(tmp_path / "data")
    first, _ = build(root, tmp_path / "train.i16")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(data, "read_audio", forbidden)
    again, _ = build(root, tmp_path / "train.i16", resumed=True)
    assert again.entries == first.entries
    assert np.array_equal(again.samples, first.samples)


def test_other_files_make_a_new_store_or_stop_a_resumed_training(tmp_path: Path) -> None:
    root = write_recordings(tmp_path / "data")
    first, _ = build(root, tmp_path / "train.i16")
    samples = np.array(first.samples)
    write_audio(root / "e.wav", tones(0.1, 8000, seed=5), 8000)
    with pytest.raises(ConfigError, match=r"train audio below .* is not what this training began with"):
        build(root, tmp_path / "train.i16", resumed=True)
    assert np.array_equal(np.fromfile(tmp_path / "train.i16", "<i2"), samples)
    assert len(build(root, tmp_path / "train.i16")[0].entries) == 4


def test_a_lost_store_is_filled_again_when_resuming(tmp_path: Path) -> None:
    root = write_recordings(tmp_path / "data")
    samples = np.array(build(root, tmp_path / "train.i16")[0].samples)
    (tmp_path / "train.i16").unlink()
    assert np.array_equal(build(root, tmp_path / "train.i16", resumed=True)[0].samples, samples)


@pytest.mark.parametrize("moment", ["Entry", "json.dumps"])
def test_a_store_that_was_not_finished_is_not_taken_for_whole(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_recordings(tmp_path / "data")
    samples = np.array(build(root, tmp_path / "train.i16")[0].samples)
    write_audio(root / "0.wav", tones(0.1, 8000, seed=5), 8000)

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(f"codec.training.data.{moment}", full)  # amid the samples; between them and the index
        with pytest.raises(StorageError):
            build(root, tmp_path / "train.i16")
    (root / "0.wav").unlink()
    assert np.array_equal(build(root, tmp_path / "train.i16")[0].samples, samples)


# crops


def test_crops_are_a_function_of_seed_and_step() -> None:
    store = sets(a=np.arange(5000), b=np.arange(-5000, 0))
    config = DataConfig(crop=0.1, batch=4)
    crops = Crops(store, config, seed=1)
    second = crops.batch(2).audio
    crops.batch(9)
    assert second.shape == (4, 1, 100)
    assert second.equal(Crops(store, config, seed=1).batch(2).audio)
    assert not second.equal(crops.batch(3).audio)
    assert not second.equal(Crops(store, config, seed=2).batch(2).audio)
    assert crops.batch(2, 1, 3).audio.equal(second[1:3])


def test_crops_never_leave_their_set_but_run_across_its_files() -> None:
    store = sets(
        a=np.repeat([1, 2], 300), b=np.repeat([11, 12], 300), short=np.full(50, 30), c=np.repeat([21, 22], 300)
    )
    crops = Crops(store, DataConfig(crop=0.1, batch=500, gain_db=(0, 0)), seed=0).batch(0).audio
    values = (crops * 32768).round().int()[:, 0]
    assert {int(decade) for decade in (values // 10).flatten().tolist()} == {0, 1, 2}
    assert (values // 10 == values[:, :1] // 10).all()
    assert (values != values[:, :1]).any(dim=1).float().mean() > 0.1  # 100 of 500 places lie across
    assert crops.dtype.is_floating_point


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_sets_are_drawn_in_proportion_to_their_length_to_the_power_of_balance(balance: float) -> None:
    store = sets(long=np.full(9000, 1), short=np.full(1000, 2))
    crops = Crops(store, DataConfig(crop=0.1, batch=4000, balance=balance, gain_db=(0, 0)), seed=0).batch(0).audio
    share = float((crops[:, 0, 0] * 32768).round().eq(1).float().mean())
    assert share == pytest.approx(9**balance / (9**balance + 1), abs=0.025)


def test_gain_is_random_within_its_range_and_never_clips() -> None:
    loud, quiet = np.resize([32767, -32768], 4000), np.resize([1000, -1000], 4000)
    crops = (
        Crops(sets(loud=loud, quiet=quiet), DataConfig(crop=0.1, batch=300, gain_db=(-12, 6)), seed=0).batch(0).audio
    )
    peaks = crops.abs().amax(dim=(1, 2))
    assert peaks.max() <= 1 + 1e-6
    gains = 20 * (peaks[peaks < 0.08] * 32.768).log10()
    assert -12 <= gains.min() < -11
    assert 5 < gains.max() <= 6


def test_silence_stays_silence() -> None:
    assert not Crops(sets(a=np.zeros(4000)), DataConfig(crop=0.1), seed=0).batch(0).audio.any()


def test_too_short_for_a_crop() -> None:
    with pytest.raises(
        UnsupportedAudio, match=r"train audio is longer than a crop of 2.0 s \(the longest has 1.50 s\)"
    ):
        Crops(sets(a=np.zeros(1000), b=np.zeros(1500)), DataConfig(crop=2.0), seed=0)


def test_clips_are_fixed_and_take_the_sets_in_turn() -> None:
    store = sets(a=np.full(500, 1), b=np.full(500, 2), c=np.full(500, 3))
    clips = Crops(store, DataConfig(crop=0.1), seed=0).first_clips(5)
    assert clips.shape == (5, 1, 100)
    assert (clips[:, 0, 0] * 32768).tolist() == [1, 2, 3, 1, 2]
    ramp = sets(a=np.arange(5000))
    assert (
        Crops(ramp, DataConfig(crop=0.1), seed=0)
        .first_clips(3)
        .equal(Crops(ramp, DataConfig(crop=0.1), seed=7).first_clips(3))
    )
