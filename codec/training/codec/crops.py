"""A corpus as random training crops, each read from its file by seeking.

What a run needs to know of millions of files lies in an index beside it, memory-mapped. A crop is a draw of a set, of a
clip in it (in proportion to its length) and of a place in that; it depends on the seed, the step and the row of the
batch alone. So a resumed run sees what an uninterrupted one would, and processes that share a batch what one would.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import mmap
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from codec.data.clips import Clip, clip_audio, clips, hashed, root_of
from codec.errors import CodecError, ConfigError, InputNotFound, UnsupportedAudio
from codec.io.audio import open_reader
from codec.io.storage import atomic_output
from codec.training.codec.synthetic import Samples, synthetic

if TYPE_CHECKING:
    from codec.training.codec.recipe import DataConfig, Recipe

Report = Callable[[str], None]
Choice = Callable[[NDArray[Any], str], NDArray[np.bool_]]  # rows of `FOUND`, a side -> which of them are of it

SIDES = ("train", "valid")
FILES = ("names", *(f"{side}.rows" for side in SIDES))  # of an index, beside its index.json
CHUNK = 2**14  # clips held in memory at a time while an index is made
NAMED = 20  # files left out that are named one by one; the others are counted
FIT_STEP = 2**32 - 1  # whose crops are those of the closed-form start: no training comes so far
PATIENCE = 100  # draws in a row that may fail
FADE = 0.005  # s, of the cross-fade where clips are joined: a step between two rooms is a click that nobody recorded
MOST_GAIN = 10 ** (30 / 20)  # of levelling: 30 dB; pauses are not blown up to noise
MIX_DB = 15.0  # the softer of two mixed crops lies at most so far below the other
INTERRUPTS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
FAINT_DB = (-60.0, -20.0)  # levels of faint crops, RMS below full scale

ROW = np.dtype([("end", "<i8"), ("start", "<f8"), ("name", "<i8")])  # of an index: 24 bytes a clip, and its path
FOUND = np.dtype(
    [
        ("set", "<i4"),
        ("side", "i1"),  # 1 + its place in SIDES; 0 is for the hash to say
        ("group", "<u8"),  # hash of what a split must not tear apart
        ("file", "<u8"),
        ("time", "<i8"),
        ("start", "<f8"),
        ("name", "<i8"),
    ]
)


# the index


class Stretch(NamedTuple):
    """A set in an index: its rows, and their length in samples at the model's rate."""

    set: str
    first: int
    last: int
    time: int


class Index:
    """The clips of one side of a corpus, set by set; opened from `folder`, where `build` made it.

    A row holds where its clip ends if the clips of its set were laid end to end (samples at the model's rate), where it
    begins in its file (s), and where in the blob of names its path begins, which ends with a zero byte.
    """

    def __init__(self, folder: Path, side: str) -> None:
        self.folder, self.side = folder, side
        content = json.loads((folder / "index.json").read_text())
        self.key = str(content["key"])
        self.root = Path(content["root"])
        self.sample_rate = int(content["sample_rate"])
        self.sets = [Stretch(*stretch) for stretch in content[side]]
        self.rows = np.memmap(folder / f"{side}.rows", dtype=ROW, mode="r")
        with (folder / "names").open("rb") as file:
            self.names = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[object, ...]:
        return Index, (self.folder, self.side)  # workers open the files themselves: a memory map would be copied

    @property
    def time(self) -> int:
        """Samples of all clips, at the model's rate."""
        return sum(stretch.time for stretch in self.sets)

    @property
    def seconds(self) -> float:
        """Length of all clips."""
        return self.time / self.sample_rate

    def longest(self) -> float:
        """Length of the longest clip, in seconds."""
        lengths = (np.diff(self.rows["end"][first:last], prepend=0).max() for _, first, last, _ in self.sets)
        return float(max(lengths)) / self.sample_rate

    def clip(self, stretch: Stretch, place: int) -> tuple[Clip, int]:
        """The clip at a place (samples into a set laid end to end), and its length in samples."""
        ends = self.rows["end"][stretch.first : stretch.last]
        number = int(np.searchsorted(ends, place, side="right"))
        row = self.rows[stretch.first + number]
        time = int(row["end"]) - (int(ends[number - 1]) if number else 0)
        begin = int(row["name"])
        name = os.fsdecode(self.names[begin : self.names.find(b"\0", begin)])
        return Clip(self.root / name, name, float(row["start"]), time / self.sample_rate), time


def build(recipe: Recipe, data: Path, folder: Path, *, report: Report, resumed: bool | str = False) -> None:
    """Make the index of a corpus in `folder`, unless it is there and whole.

    Lengths come from the manifest or from the files' headers; files that cannot be opened are reported and left out.
    `resumed` is the `Index.key` of the audio that a training began with, or True: the one of the index in `folder`.

    Raises:
        InputNotFound: there is no audio, or none for one of the sides.
        ConfigError: for a resumed training, this is other audio; or the manifest is wrong.
        UnsupportedAudio: none of the files can be opened.
        StorageError: the index cannot be written.
    """
    rate = recipe.model.sample_rate
    key = fingerprint(recipe, data)
    target = folder / "index.json"
    known = last_index(target)
    root = str(root_of(data).absolute())
    if (known.get("key"), known.get("root")) == (key, root) and is_whole(folder, known):
        return
    began = known.get("key") if resumed is True else resumed
    if began and began != key:
        raise ConfigError(
            f"{data} is not the audio that this training began with: give it the same files, or begin anew in another "
            "--out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # it never stands beside rows that are not its own
    content: dict[str, Any] = {"key": key, "root": root, "sample_rate": rate}
    with tempfile.TemporaryFile(dir=folder) as found:
        with atomic_output(folder / "names", force=True) as names:
            sets = survey(recipe, data, found, names, report=report)
        choice = divided(found, data, recipe.data.held_out)
        for side in SIDES:
            with atomic_output(folder / f"{side}.rows", force=True) as file:
                content[side] = sort(found, choice, side, sets, file)
    content["sizes"] = {name: (folder / name).stat().st_size for name in FILES}
    with atomic_output(target, force=True) as file:
        file.write(json.dumps(content).encode())


def last_index(path: Path) -> dict[str, Any]:
    """What an `index.json` says; nothing if it is not there or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_whole(folder: Path, content: dict[str, Any]) -> bool:
    """Whether the files of an index have the sizes that they were written with."""
    sizes = content.get("sizes", {})
    return all((folder / name).is_file() and (folder / name).stat().st_size == sizes.get(name) for name in FILES)


def fingerprint(recipe: Recipe, data: Path) -> str:
    """A hash of everything that an index depends on; files are told apart by their place in the corpus and size."""
    config = recipe.data
    digest = hashlib.sha256(f"1 {recipe.model.sample_rate} {config.held_out} {config.split_by}\n".encode())
    for clip in clips(data):
        told = (clip.id, clip.start, clip.seconds, clip.set, clip.split, clip.speaker, clip.size())
        digest.update(repr(told).encode())
    return digest.hexdigest()


def survey(recipe: Recipe, data: Path, found: BinaryIO, names: BinaryIO, *, report: Report) -> list[str]:
    """Write what is known of every clip that can be opened, in the corpus's order; the names of the sets."""
    rate, by_folder, root = recipe.model.sample_rate, recipe.data.split_by == "folder", root_of(data)
    sets: dict[str, int] = {}
    bad = total = place = 0
    corpus = (clip for clip in clips(data) if clip.split != "test")
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(corpus, CHUNK)):
            total += len(chunk)
            rows = []
            mapped = pool.map if any(clip.seconds is None for clip in chunk) else map
            for clip, time in zip(chunk, mapped(lambda clip: length(clip, rate), chunk), strict=True):
                if isinstance(time, CodecError):
                    bad += 1
                    if bad <= NAMED:
                        report(f"left out: {time}")
                    continue
                inside = clip.path.is_relative_to(root)
                path = clip.path.relative_to(root) if inside else clip.path
                group = clip.speaker or str(path.parent if by_folder else path)
                side = 1 + SIDES.index(clip.split) if clip.split else 0
                number = sets.setdefault(clip.set, len(sets))
                rows.append((number, side, hashed(group), hashed(str(path)), time, clip.start, place))
                place += names.write(os.fsencode(path if inside else path.absolute()) + b"\0")
            found.write(np.array(rows, FOUND).tobytes())
    if not total:
        raise InputNotFound(f"{data} has audio of the split test alone: mark some as train and valid")
    if bad == total:
        raise UnsupportedAudio(f"none of the {total} audio files of {data} could be opened: add some that can")
    if bad > NAMED:
        report(f"left out {bad} of {total} files in all")
    return list(sets)


def length(clip: Clip, rate: int) -> int | CodecError:
    """Samples of a clip at `rate` Hz, or why it has none."""
    if clip.seconds is not None:
        if clip.size() is None:
            return InputNotFound(f"{clip.path} does not exist: fetch it")
        return max(1, int(clip.seconds * rate))
    try:
        with open_reader(clip.path) as reader:
            time = (reader.length() - round(clip.start * reader.rate)) * rate // reader.rate
            return time if time > 0 else UnsupportedAudio(f"{reader.label} has nothing from {clip.start:g} s on")
    except CodecError as error:
        return error


def chunks(found: BinaryIO) -> Iterator[NDArray[Any]]:
    """What `survey` wrote, some rows at a time."""
    found.seek(0)
    while content := found.read(CHUNK * FOUND.itemsize):
        yield np.frombuffer(content, FOUND)


def divided(found: BinaryIO, data: Path, held_out: float) -> Choice:
    """What tells a side's rows: those said to be of it, and of the others a share by their hash.

    Who adds files moves none over. Only a share that is empty, as with few files, takes what has the lowest hash; and
    what is all of one speaker or folder is divided by files.
    """
    said: set[int] = set()
    low, high = {"group": 2**64, "file": 2**64}, {"group": -1, "file": -1}
    for rows in chunks(found):
        said |= set(np.unique(rows["side"]).tolist())
        for by in low:
            hashes = rows[by][rows["side"] == 0]
            low[by] = min(low[by], int(hashes.min(initial=2**64 - 1)))
            high[by] = max(high[by], int(hashes.max(initial=0)))
    for number, side in enumerate(SIDES, 1):
        if not said & {0, number}:
            raise InputNotFound(
                f"{data} has no audio for {side}, as folders or manifest say which is whose: "
                f"mark some as {side}, or name no split at all, and data.held_out of the audio is kept for valid"
            )
    by = "group" if low["group"] < high["group"] else "file"
    limit = int(held_out * 2**64)
    if 2 not in said:
        limit = max(limit, low[by] + 1)
    if 1 not in said:
        limit = min(limit, high[by])
    alone = low[by] == high[by]  # one file is on both sides

    def choice(rows: NDArray[Any], side: str) -> NDArray[np.bool_]:
        held = rows[by] < np.uint64(limit)
        drawn = alone | (held if side == "valid" else ~held)
        chosen: NDArray[np.bool_] = np.where(rows["side"] == 0, drawn, rows["side"] == 1 + SIDES.index(side))
        return chosen

    return choice


def sort(found: BinaryIO, choice: Choice, side: str, sets: list[str], file: BinaryIO) -> list[Stretch]:
    """Write the rows of a side set by set, each set in the corpus's order; where the sets lie."""
    counts = np.zeros(len(sets), np.int64)
    for rows in chunks(found):
        counts += np.bincount(rows["set"][choice(rows, side)], minlength=len(sets))
    order = sorted(range(len(sets)), key=lambda number: sets[number])
    lasts = np.zeros_like(counts)
    lasts[order] = np.cumsum(counts[order])
    places, ends = lasts - counts, np.zeros_like(counts)
    for rows in chunks(found):
        rows = rows[choice(rows, side)]
        for number in np.unique(rows["set"]):
            part = rows[rows["set"] == number]
            written = np.empty(len(part), ROW)
            written["end"] = ends[number] + np.cumsum(part["time"])
            written["start"], written["name"] = part["start"], part["name"]
            file.seek(int(places[number]) * ROW.itemsize)
            file.write(written.tobytes())
            places[number] += len(part)
            ends[number] = written["end"][-1]
    return [
        Stretch(sets[number], int(lasts[number] - counts[number]), int(lasts[number]), int(ends[number]))
        for number in order
        if counts[number]
    ]


# crops


class Batch(NamedTuple):
    """What a step sees."""

    audio: Tensor
    """float32 [rows, 1, time]."""
    bad: tuple[tuple[str, str], ...]
    """(file, what is wrong with it) of the draws that failed and were replaced by others."""


class Crops:
    """Random crops of one side of a corpus: `batch(step)` is a function of the seed and the step.

    A clip shorter than a crop is used whole, and further draws of its set follow it: nothing is lost to padding.

    Raises UnsupportedAudio if all clips together are shorter than a crop.
    """

    def __init__(self, index: Index, config: DataConfig, *, seed: int) -> None:
        self.index = index
        self.config = config
        self.seed = seed
        self.sample_rate = index.sample_rate
        self.time = round(config.crop * index.sample_rate)
        if index.time < self.time:
            more = f"data.held_out = {config.held_out:g} higher or " if index.side == "valid" else ""
            raise UnsupportedAudio(
                f"the {index.side} audio is {index.seconds:.2f} s in all (the longest clip {index.longest():.2f} s), "
                f"shorter than a crop of {config.crop} s: set {more}data.crop lower or add audio"
            )
        self.shares = shares({stretch.set: stretch.time for stretch in index.sets}, config)

    def batch(self, step: int, first: int = 0, last: int | None = None) -> Batch:
        """Rows `first` to before `last` of a step's batch; all `data.batch_size` of them unless told.

        Raises UnsupportedAudio when a hundred draws in a row fail.
        """
        bad: dict[str, str] = {}
        rows = range(first, self.config.batch_size if last is None else last)
        crops = [self.crop(np.random.default_rng((self.seed, step, row)), bad) for row in rows]
        return Batch(torch.from_numpy(np.stack(crops)[:, None]), tuple(bad.items()))

    def fit_audio(self, seconds: float, first: int = 0, last: int | None = None) -> Tensor:
        """Crops [rows, 1, time] for the closed-form start, about `seconds` in all; or some rows of them."""
        rows = math.ceil(seconds / self.config.crop)
        return self.batch(FIT_STEP, first, rows if last is None else last).audio

    def first_clips(self, count: int) -> Tensor:
        """`count` fixed clips [count, 1, time], one after another over the sets, as they were recorded."""
        sets = self.index.sets
        clips = [self.joined(np.random.default_rng((1, turn)), sets[turn % len(sets)], {}) for turn in range(count)]
        return torch.from_numpy(np.stack(clips)[:, None])

    def crop(self, rng: np.random.Generator, bad: dict[str, str]) -> Samples:
        """A crop [time] as training sees it; `bad` takes in the files that failed."""
        config = self.config
        if config.tones and rng.random() < config.tones:
            return synthetic(rng, self.time, self.sample_rate)
        audio = self.drawn(rng, bad)
        if config.mix and rng.random() < config.mix:
            audio = mixed(audio, self.drawn(rng, bad), rng.uniform(-MIX_DB, MIX_DB))
        peak = float(np.abs(audio).max())
        if peak == 0:
            return audio
        if config.faint and rng.random() < config.faint:
            gain = min(10 ** (rng.uniform(*FAINT_DB) / 20) / rms(audio), MOST_GAIN)
        elif config.level_db is None:
            gain = 10 ** (rng.uniform(*config.gain_db) / 20)
        else:
            gain = min(10 ** (rng.uniform(*config.level_db) / 20) / rms(audio), MOST_GAIN)
        audio *= np.float32(min(gain, 1 / peak))
        return audio

    def drawn(self, rng: np.random.Generator, bad: dict[str, str]) -> Samples:
        """Audio [time] of a set drawn by the recipe's shares."""
        return self.joined(rng, self.index.sets[rng.choice(len(self.shares), p=self.shares)], bad)

    def joined(self, rng: np.random.Generator, stretch: Stretch, bad: dict[str, str]) -> Samples:
        """Audio [time] of one set: of one clip, or of as many as it takes."""
        fade = round(FADE * self.sample_rate)
        audio = self.part(rng, stretch, self.time, bad)
        while (missing := self.time - len(audio)) > 0:
            following = self.part(rng, stretch, missing + fade, bad)
            over = min(fade, len(audio) // 2, len(following) // 2)
            rising = np.linspace(0, 1, over + 2, dtype=np.float32)[1:-1]
            joint = audio[len(audio) - over :] * (1 - rising) + following[:over] * rising
            audio = np.concatenate([audio[: len(audio) - over], joint, following[over:]])
        return audio[: self.time]

    def part(self, rng: np.random.Generator, stretch: Stretch, time: int, bad: dict[str, str]) -> Samples:
        """Audio [at most `time`] of one clip of a set: anywhere in it, or all of a shorter one."""
        for _ in range(PATIENCE):
            clip, clip_time = self.index.clip(stretch, int(rng.integers(stretch.time)))
            first = int(rng.integers(clip_time - time + 1)) if clip_time > time else 0
            try:
                (audio,) = clip_audio(clip, rate=self.sample_rate, first=first, time=min(time, clip_time))
                return np.asarray(audio)
            except (UnsupportedAudio, InputNotFound) as error:
                bad[clip.id] = str(error)
        raise UnsupportedAudio(f"{PATIENCE} draws in a row could not be read, the last of them because {bad[clip.id]}")


def shares(times: dict[str, int], config: DataConfig) -> NDArray[np.float64]:
    """How often each set is drawn: as `weights` says, and what that leaves by length ** balance."""
    named = {name: config.weights[name] for name in times if name in config.weights}
    lengths = {name: float(time) ** config.balance for name, time in times.items() if name not in named}
    left = max(0.0, 1 - sum(named.values())) / max(sum(lengths.values()), 1e-300)
    drawn = np.array([named[name] if name in named else lengths[name] * left for name in times])
    if not drawn.any():
        raise ConfigError(f"data.weights leaves nothing to draw: give one of {', '.join(times)} more than 0")
    parts: NDArray[np.float64] = drawn / drawn.sum()
    return parts


def mixed(audio: Samples, other: Samples, ratio_db: float) -> Samples:
    """The sum of two recordings, the second `ratio_db` below the first; silence adds nothing and drowns in nothing."""
    if not (audio.any() and other.any()):
        return audio + other
    return audio + other * np.float32(10 ** (-ratio_db / 20) * rms(audio) / rms(other))


def rms(audio: Samples) -> float:
    """Root of the mean square."""
    return math.sqrt(float(np.mean(np.square(audio, dtype=np.float64))))


def material(
    recipe: Recipe, data: Path, out: Path, *, report: Report, resumed: bool | str = False
) -> tuple[Crops, Crops]:
    """Crops of the training and of the validation audio; their index is kept in `out`.

    `data` is a folder or a manifest. `resumed` refuses other audio, as `build` does. Raises as `build` and
    `Crops`, and ConfigError where `data.weights` names no set.
    """
    build(recipe, data, out / "index", report=report, resumed=resumed)
    train, valid = (Index(out / "index", side) for side in SIDES)
    sets = [stretch.set for stretch in train.sets]
    for name in recipe.data.weights:
        if name not in sets:
            close = difflib.get_close_matches(name, sets, n=1)
            hint = f"did you mean {close[0]}?" if close else f"its sets are {', '.join(sets)}"
            raise ConfigError(f"data.weights.{name}: {data} has no such set to train on; {hint}")
    report(f"train on {train.seconds / 3600:.2f} h, validate on {valid.seconds / 60:.1f} min")
    unweighted = recipe.data.model_copy(update={"weights": {}})  # what is validated takes the sets in turn
    return Crops(train, recipe.data, seed=recipe.train.seed), Crops(valid, unweighted, seed=0)


# workers


class Steps(Dataset[Batch | CodecError]):
    """The batches by step, as a DataLoader asks for them; errors are values, since it would make long texts of them."""

    def __init__(self, crops: Crops, rows: tuple[int, int] | None) -> None:
        self.crops = crops
        self.rows = rows or (0, crops.config.batch_size)

    def __getitem__(self, step: int) -> Batch | CodecError:
        try:
            return self.crops.batch(step, *self.rows)
        except CodecError as error:
            return error


def batches(
    crops: Crops, first_step: int, last_step: int, *, rows: tuple[int, int] | None = None, workers: int
) -> Generator[tuple[int, Batch], None, None]:
    """(step, its batch) from `first_step` to before `last_step`, made by so many processes, or in this one if 0.

    `rows` are the (first, last) rows to make of each batch. A bad file is named in the first batch that met it.
    Workers leave `INTERRUPTS` to the process they work for, and end with it or when the iterator is closed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are more workers than cores: two do no harm on one
        loader = DataLoader(
            Steps(crops, rows),
            batch_size=None,
            sampler=range(first_step, last_step),
            num_workers=workers,
            collate_fn=as_is,
            worker_init_fn=undisturbed,
            multiprocessing_context="spawn" if workers else None,  # forked, they would share locks with a GPU's threads
            generator=torch.Generator(),  # else its seed would be taken from the training's random state
        )
        with held_back(*INTERRUPTS):  # workers are born so, until `undisturbed`
            made = iter(loader)
    known: set[str] = set()
    try:
        for step, batch in zip(range(first_step, last_step), made, strict=True):
            if isinstance(batch, CodecError):
                raise batch
            news = tuple((name, reason) for name, reason in batch.bad if name not in known)
            known.update(name for name, _ in news)
            yield step, Batch(batch.audio, news)
    finally:
        del made  # ends the workers; an error that is raised would keep them


@contextmanager
def held_back(*numbers: int) -> Iterator[None]:
    """Signals wait meanwhile, also in processes that are started; on systems that know that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the first process that is started would let signals through to start it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def as_is(batch: Any) -> Any:
    """In place of a DataLoader's own collating, which would make lists of the tuples."""
    return batch


def undisturbed(_: int) -> None:
    """In a worker: whoever interrupts a training wants the step that is under way finished.

    A second SIGTERM ends the worker, for that is how a process that ends gets rid of those that do not hear it.
    """
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)

    def endure(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, endure)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
