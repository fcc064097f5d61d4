"""Random training crops of a corpus, each read from its file by seeking.

An index beside the run, memory-mapped, holds what a run needs to know of millions of files. A crop is a draw of a set,
of a clip in it (in proportion to its length) and of a position in the clip; it depends on the seed, the step and the
row of the batch alone. So a resumed run gets the same crops as an uninterrupted one, and processes that share a batch
the same as one process.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import mmap
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from codec.data.clips import Clip, clip_audio, clip_time, clips, hashed, root_of
from codec.data.split import KEYS, SIDES, Chooser, path_in, split_chooser, split_number
from codec.errors import CodecError, ConfigError, InputNotFound, UnsupportedAudio, UsageError
from codec.frames import Narrowband
from codec.io.storage import atomic_output
from codec.io.synthetic import Samples, synthetic
from codec.parallel import each, in_threads
from codec.training.logger import FileNote
from codec.training.signals import block_stop_signals, ignore_stop_signals

if TYPE_CHECKING:
    from codec.training.codec.recipe import DataConfig

Report = Callable[[str], None]
CheckKey = Callable[[str], None]
Notes = dict[str, FileNote]
"""By file; the first of each."""

SPLITS = SIDES
FILES = ("names", *(f"{split}.rows" for split in SPLITS))  # of an index, beside its index.json
CHUNK = 2**14  # clips held in memory at a time while an index is built
MAX_NAMED = 20  # unreadable files that are named one by one; the others are counted
INIT_STEP = 2**32 - 1  # the step number of the crops for the initialization from audio, which training never reaches
MAX_FAILED_DRAWS = 100  # in a row
FADE = 0.005  # s, of the cross-fade between clips, because a cut between two rooms is a click in neither recording
MAX_GAIN = 10 ** (30 / 20)  # 30 dB, so that pauses are not amplified to noise
MIX_DB = 15.0  # the softer of two mixed crops lies at most this far below the other
QUIET_DB = (-60.0, -20.0)  # levels of quiet crops, RMS below full scale

ROW = np.dtype([("end", "<i8"), ("start", "<f8"), ("name", "<i8"), ("channel", "<i2")])  # of an index; 26 bytes
SCANNED = np.dtype(
    [
        ("set", "<i4"),
        *KEYS,
        ("time", "<i8"),
        ("start", "<f8"),
        ("name", "<i8"),
        ("channel", "<i2"),  # -1: all
    ]
)


# the index


class SetRows(NamedTuple):
    """The rows of one set in an index, and their length in samples at the model's rate."""

    set: str
    first: int
    last: int
    time: int


class Index:
    """The clips of one split of a corpus, set by set; `build_index` writes it to `folder`.

    A row holds where its clip ends if the clips of its set were laid end to end (samples at the model's rate), where
    the clip begins in its file (s), where its path begins in the file of names, and its channel or -1; a path ends with
    a zero byte.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        content = json.loads((folder / "index.json").read_text())
        self.key = str(content["key"])
        self.root = Path(content["root"])
        self.sample_rate = int(content["sample_rate"])
        self.sets = [SetRows(*rows) for rows in content[split]]
        self.rows = np.memmap(folder / f"{split}.rows", dtype=ROW, mode="r")
        with (folder / "names").open("rb") as file:
            self.names = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[object, ...]:
        return Index, (self.folder, self.split)  # workers open the files, because a memory map would be copied

    @property
    def time(self) -> int:
        """Samples of all clips, at the model's rate."""
        return sum(rows.time for rows in self.sets)

    @property
    def seconds(self) -> float:
        """Length of all clips."""
        return self.time / self.sample_rate

    def longest(self) -> float:
        """Length of the longest clip, in seconds."""
        lengths = (np.diff(self.rows["end"][first:last], prepend=0).max() for _, first, last, _ in self.sets)
        return float(max(lengths)) / self.sample_rate

    def clip(self, rows: SetRows, position: int) -> tuple[Clip, int]:
        """The clip at a position (samples into a set laid end to end), and its length in samples."""
        ends = self.rows["end"][rows.first : rows.last]
        number = int(np.searchsorted(ends, position, side="right"))
        row = self.rows[rows.first + number]
        time = int(row["end"]) - (int(ends[number - 1]) if number else 0)
        begin = int(row["name"])
        name = os.fsdecode(self.names[begin : self.names.find(b"\0", begin)])
        channel = None if row["channel"] < 0 else int(row["channel"])
        return Clip(self.root / name, name, float(row["start"]), time / self.sample_rate, channel=channel), time


def build_index(
    data: Path,
    folder: Path,
    config: DataConfig,
    *,
    sample_rate: int,
    report: Report,
    check_key: CheckKey = lambda _: None,
) -> None:
    """Write the index of a corpus to `folder`, unless a complete one is there.

    Lengths come from the manifest or from the headers of the files; files that cannot be opened are reported and left
    out. `check_key` is called with the `Index.key` of the audio before anything is written; it may raise an error.

    Raises:
        InputNotFound: there is no audio, or none for one of the splits.
        ConfigError: the manifest is wrong.
        UnsupportedAudio: none of the files can be opened.
        StorageError: the index cannot be written.
    """
    key = fingerprint(data, config, sample_rate)
    target = folder / "index.json"
    existing = read_index(target)
    root = str(root_of(data).absolute())
    check_key(key)
    if (existing.get("key"), existing.get("root")) == (key, root) and is_complete(folder, existing):
        return
    folder.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # so that it never stands beside rows that do not belong to it
    content: dict[str, Any] = {"key": key, "root": root, "sample_rate": sample_rate, "row_bytes": ROW.itemsize}
    with tempfile.TemporaryFile(dir=folder) as scanned:
        with atomic_output(folder / "names", force=True) as names:
            by_folder = config.split_by == "folder"
            sets = scan(data, scanned, names, sample_rate=sample_rate, by_folder=by_folder, report=report)
        check_splits(scanned, data)
        choose = split_chooser(chunks(scanned), config.held_out)
        for split in SPLITS:
            with atomic_output(folder / f"{split}.rows", force=True) as file:
                content[split] = write_split(scanned, choose, split, sets, file)
    content["sizes"] = {name: (folder / name).stat().st_size for name in FILES}
    with atomic_output(target, force=True) as file:
        file.write(json.dumps(content).encode())


def read_index(path: Path) -> dict[str, Any]:
    """The content of an `index.json`; empty if the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_complete(folder: Path, content: dict[str, Any]) -> bool:
    """Whether the files of an index have the sizes that they were written with, and the rows of this release."""
    sizes = content.get("sizes", {})
    if content.get("row_bytes") != ROW.itemsize:
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == sizes.get(name) for name in FILES)


def fingerprint(data: Path, config: DataConfig, sample_rate: int) -> str:
    """A hash of everything that an index depends on; files count by their path in the corpus and their size."""
    digest = hashlib.sha256(f"1 {sample_rate} {config.held_out} {config.split_by}\n".encode())
    for clip in clips(data):
        parts = (clip.id, clip.start, clip.seconds, clip.set, clip.split, clip.speaker, clip.size())
        digest.update(repr(parts).encode())
        if clip.channel is not None:  # so that other corpora keep their keys
            digest.update(f"#{clip.channel}".encode())
    return digest.hexdigest()


def scan(
    data: Path, scanned: BinaryIO, names: BinaryIO, *, sample_rate: int, by_folder: bool, report: Report
) -> list[str]:
    """Write a row of `SCANNED` for every clip that can be opened, in corpus order; returns the names of the sets.

    `report` is called with the clips that cannot, and with what those lack that have less than half of `sample_rate`,
    if their files had to be opened.
    """
    root = root_of(data)
    sets: dict[str, int] = {}
    narrowband = Narrowband()
    bad = total = position = 0
    corpus = (clip for clip in clips(data) if clip.split != "test")
    while chunk := list(islice(corpus, CHUNK)):
        total += len(chunk)
        rows = []
        opens_files = any(clip.seconds is None for clip in chunk)
        times = (in_threads if opens_files else each)(partial(clip_time, rate=sample_rate), chunk)
        for clip, found in times:
            if isinstance(found, CodecError):
                bad += 1
                if bad <= MAX_NAMED:
                    report(f"left out: {found}")
                continue
            time, rate = found
            if rate is not None:
                narrowband.add(clip.id, rate, sample_rate)
            path = path_in(clip, root)
            group = clip.speaker or str(path.parent if by_folder else path)
            split = split_number(clip.split)
            number = sets.setdefault(clip.set, len(sets))
            channel = -1 if clip.channel is None else clip.channel
            rows.append((number, split, hashed(group), hashed(str(path)), time, clip.start, position, channel))
            position += names.write(os.fsencode(path if clip.path.is_relative_to(root) else path.absolute()) + b"\0")
        scanned.write(np.array(rows, SCANNED).tobytes())
    if not total:
        raise InputNotFound(f"{data} has only audio of the split test: mark some as train and valid")
    if bad == total:
        raise UnsupportedAudio(f"none of the {total} audio files of {data} could be opened: add some that can")
    if bad > MAX_NAMED:
        report(f"left out {bad} of {total} files in all")
    for note in narrowband.notes("clip"):
        report(note)
    return list(sets)


def chunks(scanned: BinaryIO) -> Iterator[NDArray[Any]]:
    """The rows that `scan` wrote, chunk by chunk."""
    scanned.seek(0)
    while content := scanned.read(CHUNK * SCANNED.itemsize):
        yield np.frombuffer(content, SCANNED)


def check_splits(scanned: BinaryIO, data: Path) -> None:
    """Raise InputNotFound unless there is audio for both splits."""
    marked = {number for rows in chunks(scanned) for number in np.unique(rows["split"]).tolist()}
    for number, split in enumerate(SPLITS, 1):
        if not marked & {0, number}:
            raise InputNotFound(
                f"{data} has no audio for {split} by the splits of its folders or manifest: "
                f"mark some as {split}, or mark none at all, and data.held_out of the audio is kept for valid"
            )


def write_split(scanned: BinaryIO, choose: Chooser, split: str, sets: list[str], file: BinaryIO) -> list[SetRows]:
    """Write the rows of a split set by set, each set in corpus order; returns the rows of each set."""
    counts = np.zeros(len(sets), np.int64)
    for rows in chunks(scanned):
        counts += np.bincount(rows["set"][choose(rows, split)], minlength=len(sets))
    order = sorted(range(len(sets)), key=lambda number: sets[number])
    lasts = np.zeros_like(counts)
    lasts[order] = np.cumsum(counts[order])
    positions, ends = lasts - counts, np.zeros_like(counts)
    for rows in chunks(scanned):
        rows = rows[choose(rows, split)]
        for number in np.unique(rows["set"]):
            part = rows[rows["set"] == number]
            written = np.empty(len(part), ROW)
            written["end"] = ends[number] + np.cumsum(part["time"])
            for field in ("start", "name", "channel"):
                written[field] = part[field]
            file.seek(int(positions[number]) * ROW.itemsize)
            file.write(written.tobytes())
            positions[number] += len(part)
            ends[number] = written["end"][-1]
    return [
        SetRows(sets[number], int(lasts[number] - counts[number]), int(lasts[number]), int(ends[number]))
        for number in order
        if counts[number]
    ]


# crops


class Batch(NamedTuple):
    """The rows of a step."""

    audio: Tensor
    """float32 [rows, channels, time]."""
    notes: tuple[FileNote, ...]
    """On files that could not be read, whose draws were replaced by others, and on channels that cancel."""


class Crops:
    """Random crops of one split of a corpus: `batch(step)` is a function of the seed and the step.

    A clip shorter than a crop is used whole, and further draws of its set follow it, so nothing is lost to padding.
    A crop has as many `channels` as the model: a recording of one channel is repeated, others are mixed down first.

    Raises UnsupportedAudio: all clips together are shorter than a crop.
    """

    def __init__(self, index: Index, config: DataConfig, *, channels: int = 1, seed: int) -> None:
        self.index = index
        self.channels = channels
        self.config = config
        self.seed = seed
        self.sample_rate = index.sample_rate
        self.time = round(config.crop * index.sample_rate)
        if index.time < self.time:
            more = f"data.held_out = {config.held_out:g} higher or " if index.split == "valid" else ""
            raise UnsupportedAudio(
                f"the {index.split} audio is {index.seconds:.2f} s in all (the longest clip {index.longest():.2f} s), "
                f"shorter than a crop of {config.crop} s: set {more}data.crop lower or add audio"
            )
        self.probabilities = set_probabilities({rows.set: rows.time for rows in index.sets}, config)

    def with_channels(self, channels: int) -> Crops:
        """The same crops for a model of other channels."""
        return Crops(self.index, self.config, channels=channels, seed=self.seed)

    def batch(self, step: int, first: int = 0, last: int | None = None) -> Batch:
        """Rows `first` to before `last` of a step's batch, by default all `data.batch_size`.

        Raises UnsupportedAudio: a hundred draws in a row could not be read.
        """
        notes: Notes = {}
        rows = range(first, self.config.batch_size if last is None else last)
        crops = [self.crop(np.random.default_rng((self.seed, step, row)), notes) for row in rows]
        return Batch(torch.from_numpy(np.stack(crops)), tuple(notes.values()))

    def init_audio(self, seconds: float, first: int = 0, last: int | None = None) -> Tensor:
        """Crops [rows, channels, time] for the initialization, about `seconds` in all; or rows `first` to `last`."""
        rows = math.ceil(seconds / self.config.crop)
        return self.batch(INIT_STEP, first, rows if last is None else last).audio

    def fixed_clips(self, count: int) -> Tensor:
        """`count` fixed clips [count, channels, time], the sets in turn, at their recorded level."""
        sets = self.index.sets
        clips = [self.fill(np.random.default_rng((1, turn)), sets[turn % len(sets)], {}) for turn in range(count)]
        return torch.from_numpy(np.stack(clips))

    def crop(self, rng: np.random.Generator, notes: Notes) -> Samples:
        """A crop [channels, time] with the augmentations of training."""
        config = self.config
        if config.tones and rng.random() < config.tones:
            return synthetic(rng, self.time, self.sample_rate)[None].repeat(self.channels, axis=0)
        audio = self.draw(rng, notes)
        if config.mix and rng.random() < config.mix:
            audio = mix_at_level(audio, self.draw(rng, notes), rng.uniform(-MIX_DB, MIX_DB))
        peak = float(np.abs(audio).max())
        if peak == 0:
            return audio
        if config.quiet and rng.random() < config.quiet:
            gain = min(10 ** (rng.uniform(*QUIET_DB) / 20) / rms(audio), MAX_GAIN)
        elif config.level_db is None:
            gain = 10 ** (rng.uniform(*config.gain_db) / 20)
        else:
            gain = min(10 ** (rng.uniform(*config.level_db) / 20) / rms(audio), MAX_GAIN)
        audio *= np.float32(min(gain, 1 / peak))
        return audio

    def draw(self, rng: np.random.Generator, notes: Notes) -> Samples:
        """Audio [channels, time] of a set drawn by the recipe's weights."""
        return self.fill(rng, self.index.sets[rng.choice(len(self.probabilities), p=self.probabilities)], notes)

    def fill(self, rng: np.random.Generator, rows: SetRows, notes: Notes) -> Samples:
        """Audio [channels, time] of one set: of one clip, or of several that are cross-faded."""
        fade = round(FADE * self.sample_rate)
        audio = self.read(rng, rows, self.time, notes)
        while (missing := self.time - audio.shape[1]) > 0:
            following = self.read(rng, rows, missing + fade, notes)
            over = min(fade, audio.shape[1] // 2, following.shape[1] // 2)
            kept = audio.shape[1] - over
            rising = np.linspace(0, 1, over + 2, dtype=np.float32)[1:-1]
            joint = audio[:, kept:] * (1 - rising) + following[:, :over] * rising
            audio = np.concatenate([audio[:, :kept], joint, following[:, over:]], axis=1)
        return audio[:, : self.time]

    def read(self, rng: np.random.Generator, rows: SetRows, time: int, notes: Notes) -> Samples:
        """Audio [channels, at most `time`] of one clip of a set: anywhere in it, or all of a shorter one."""
        for _ in range(MAX_FAILED_DRAWS):
            clip, length = self.index.clip(rows, int(rng.integers(rows.time)))
            first = int(rng.integers(length - time + 1)) if length > time else 0
            span = {"first": first, "time": min(time, length)}
            note = partial(_add_note, notes, clip.id)
            try:
                return clip_audio(clip, rate=self.sample_rate, channels=self.channels, note=note, **span)
            except (UnsupportedAudio, InputNotFound) as error:
                notes[clip.id] = FileNote(clip.id, str(error), left_out=True)
        raise UnsupportedAudio(
            f"{MAX_FAILED_DRAWS} draws in a row could not be read, the last because {notes[clip.id].text}"
        )

    def check_sound(self) -> None:
        """Raise UsageError if a hundred crops in a row are silence."""
        for turn in range(MAX_FAILED_DRAWS):
            if self.draw(np.random.default_rng((self.seed, INIT_STEP, turn)), {}).any():
                return
        raise UsageError(
            f"{MAX_FAILED_DRAWS} crops in a row of {self.index.root} are silence: check how it was recorded or prepared"
        )


def _add_note(notes: Notes, file: str, text: str) -> None:
    notes.setdefault(file, FileNote(file, text))


def set_probabilities(times: dict[str, int], config: DataConfig) -> NDArray[np.float64]:
    """How often each set is drawn: by `weights`, and the other sets by length ** balance."""
    named = {name: config.weights[name] for name in times if name in config.weights}
    lengths = {name: float(time) ** config.balance for name, time in times.items() if name not in named}
    left = max(0.0, 1 - sum(named.values())) / max(sum(lengths.values()), 1e-300)
    shares = np.array([named[name] if name in named else lengths[name] * left for name in times])
    if not shares.any():
        raise ConfigError(f"data.weights leaves nothing to draw: give one of {', '.join(times)} more than 0")
    probabilities: NDArray[np.float64] = shares / shares.sum()
    return probabilities


def mix_at_level(audio: Samples, other: Samples, ratio_db: float) -> Samples:
    """The sum of two recordings, the second `ratio_db` below the first; silence is mixed as it is."""
    if not (audio.any() and other.any()):
        return audio + other
    return audio + other * np.float32(10 ** (-ratio_db / 20) * rms(audio) / rms(other))


def rms(audio: Samples) -> float:
    """Root mean square."""
    return math.sqrt(float(np.mean(np.square(audio, dtype=np.float64))))


def open_crops(
    data: Path,
    index_folder: Path,
    config: DataConfig,
    *,
    sample_rate: int,
    seed: int,
    report: Report,
    check_key: CheckKey = lambda _: None,
) -> tuple[Crops, Crops]:
    """Crops of the training and of the validation audio of a folder or a manifest; their index is kept.

    Raises as `build_index` and `Crops`, and ConfigError: `data.weights` names an unknown set.
    """
    build_index(data, index_folder, config, sample_rate=sample_rate, report=report, check_key=check_key)
    train, valid = (Index(index_folder, split) for split in SPLITS)
    sets = [rows.set for rows in train.sets]
    for name in config.weights:
        if name not in sets:
            close = difflib.get_close_matches(name, sets, n=1)
            hint = f"did you mean {close[0]}?" if close else f"its sets are {', '.join(sets)}"
            raise ConfigError(f"data.weights.{name}: {data} has no such set to train on; {hint}")
    report(f"train on {train.seconds / 3600:.2f} h, validate on {valid.seconds / 60:.1f} min")
    unweighted = config.model_copy(update={"weights": {}})  # validation takes the sets in turn
    return Crops(train, config, seed=seed), Crops(valid, unweighted, seed=0)


# workers


class StepDataset(Dataset[Batch | CodecError]):
    """The batches by step, for a DataLoader; errors are values, because it would turn them into long texts."""

    def __init__(self, crops: Crops, rows: tuple[int, int] | None) -> None:
        self.crops = crops
        self.rows = rows or (0, crops.config.batch_size)

    def __getitem__(self, step: int) -> Batch | CodecError:
        try:
            return self.crops.batch(step, *self.rows)
        except CodecError as error:
            return error


def load_batches(
    crops: Crops, first_step: int, last_step: int, *, rows: tuple[int, int] | None = None, num_workers: int
) -> Generator[Batch, None, None]:
    """Batches of the steps `first_step` to before `last_step`, read by worker processes, or by this one if 0.

    `rows` are the (first, last) rows to read of each batch. A note on a file comes with the first batch alone
    that met it. Workers ignore stop signals, and end with this process or when the iterator is closed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about more workers than cores: two do no harm on one core
        loader = DataLoader(
            StepDataset(crops, rows),
            batch_size=None,
            sampler=range(first_step, last_step),
            num_workers=num_workers,
            collate_fn=identity,
            worker_init_fn=ignore_stop_signals,
            multiprocessing_context="spawn"
            if num_workers
            else None,  # forked, they would share locks with a GPU's threads
            generator=torch.Generator(),  # otherwise its seed would be drawn from the random state of training
        )
        with block_stop_signals():  # workers start like this, until `ignore_stop_signals`
            batches = iter(loader)
    known: set[str] = set()
    try:
        for batch in batches:
            if isinstance(batch, CodecError):
                raise batch
            new = tuple(note for note in batch.notes if note.file not in known)
            known.update(note.file for note in new)
            yield Batch(batch.audio, new)
    finally:
        del batches  # ends the workers, which a raised error would keep alive


def identity(batch: Any) -> Any:
    """Replace a DataLoader's collating, which would turn the tuples into lists."""
    return batch
