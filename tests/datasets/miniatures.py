"""Miniature copies of the datasets, laid out as their publishers document them, not as our code reads them.

Each function fills a folder as unpacking the dataset would and gives the rows its manifest must have, by path.
"""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from codec.data.clips import MANIFEST
from codec.datasets.base import Dataset
from codec.datasets.prepare import prepare
from codec.io.audio import write_audio
from tests.helpers.training import tones

SECONDS = 0.3

Rows = dict[str, dict[str, str]]


def audio(path: Path, rate: int, *, channels: int = 1) -> None:
    """A short recording at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.as_posix().encode()) % 1000
    write_audio(path, tones(SECONDS, rate, seed=seed, channels=channels), rate)


def text(path: Path, *lines: str) -> None:
    """A text file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def general(folder: Path) -> Rows:
    """Folders train and valid, with and without a set, and another file."""
    rows: Rows = {}
    for path, split in (("train/birds/a.wav", "train"), ("train/b.flac", "train"), ("valid/birds/c.aiff", "valid")):
        audio(folder / path, 16000)
        rows[path] = {"split": split} | ({"set": "birds", "label": "birds"} if "birds" in path else {})
    text(folder / "train/notes.txt", "not audio")
    return rows


def digits(folder: Path) -> Rows:
    """As in the README of its repository: {digit}_{speaker}_{index}.wav; indices 0 to 4 are the test set."""
    rows: Rows = {}
    root = "free-spoken-digit-dataset-1.0.10"
    for digit, word, speaker, index, split in (
        ("0", "zero", "jackson", 4, "test"),
        ("7", "seven", "george", 5, "valid"),
        ("9", "nine", "theo", 10, "train"),
        ("9", "nine", "theo", 49, "train"),
    ):
        path = f"{root}/recordings/{digit}_{speaker}_{index}.wav"
        audio(folder / path, 8000)
        rows[path] = {"set": "digits", "split": split, "speaker": speaker, "label": digit, "transcript": word}
    text(folder / root / "metadata.py", "metadata = {}")
    return rows


def speech_commands(folder: Path) -> Rows:
    """As in the paper and README: word/speaker_nohash_number.wav, two lists, and background noise."""
    rows: Rows = {}
    root = "SpeechCommands/speech_commands_v0.02"
    for word, speaker, split in (
        ("zero", "0a7c2a8d", "train"),
        ("zero", "1b88bf70", "valid"),
        ("seven", "1b88bf70", "valid"),
        ("nine", "0ab3b47d", "test"),
        ("three", "0a7c2a8d", "train"),
        ("bed", "0a7c2a8d", "train"),  # not a digit
    ):
        path = f"{root}/{word}/{speaker}_nohash_0.wav"
        audio(folder / path, 16000)
        if word != "bed":
            rows[path] = {"set": "digits", "split": split, "speaker": speaker, "label": word, "transcript": word}
    audio(folder / root / "_background_noise_/running_tap.wav", 16000)
    text(folder / root / "validation_list.txt", "zero/1b88bf70_nohash_0.wav", "seven/1b88bf70_nohash_0.wav")
    text(folder / root / "testing_list.txt", "nine/0ab3b47d_nohash_0.wav")
    return rows


def ljspeech(folder: Path) -> Rows:
    """As on its page: metadata.csv has id|text|normalized text without quoting; wavs/id.wav."""
    rows: Rows = {}
    lines = []
    for name, split in (
        ("LJ001-0001", "train"),
        ("LJ050-0278", "train"),
        ("LJ009-0002", "valid"),
        ("LJ010-0003", "test"),
    ):
        path = f"LJSpeech-1.1/wavs/{name}.wav"
        audio(folder / path, 22050)
        spoken = f'Chapter {name}, "as" read'
        lines.append(f'{name}|Ch. {name}, "as" read|{spoken}')
        rows[path] = {"set": "ljspeech", "split": split, "speaker": "LJ", "transcript": spoken}
    text(folder / "LJSpeech-1.1/metadata.csv", *lines)
    return rows


def libritts(folder: Path) -> Rows:
    """As in its README: part/speaker/chapter/speaker_chapter_paragraph_sentence.wav, texts beside each and together."""
    rows: Rows = {}
    for part, speaker, chapter, split in (
        ("train-clean-100", "103", "1240", "train"),
        ("dev-clean", "84", "121123", "valid"),
        ("test-clean", "1089", "134686", "test"),
    ):
        chapter_folder = f"LibriTTS/{part}/{speaker}/{chapter}"
        lines, pages = [], []
        for number in (0, 1):
            name = f"{speaker}_{chapter}_000007_00000{number}"
            audio(folder / chapter_folder / f"{name}.wav", 24000)
            spoken = f"Mister {name}."
            text(folder / chapter_folder / f"{name}.original.txt", f"Mr. {name}.")
            text(folder / chapter_folder / f"{name}.normalized.txt", spoken)
            lines.append(f"{name}\tMr. {name}.\t{spoken}")
            pages.append(f"{name}\tMr. {name}.\t27.5")
            rows[f"{chapter_folder}/{name}.wav"] = {
                "set": part,
                "split": split,
                "speaker": speaker,
                "transcript": spoken,
            }
        text(folder / chapter_folder / f"{speaker}_{chapter}.trans.tsv", *lines)
        text(folder / chapter_folder / f"{speaker}_{chapter}.book.tsv", *pages)
        text(folder / chapter_folder / f"._{name}.wav", "left by another system")
    return rows


def librispeech(folder: Path) -> Rows:
    """As in its README: part/speaker/chapter/speaker-chapter-utterance.flac and speaker-chapter.trans.txt."""
    rows: Rows = {}
    for part, speaker, chapter, split in (
        ("train-clean-100", "19", "198", "train"),
        ("dev-clean", "84", "121123", "valid"),
        ("test-clean", "61", "70968", "test"),
    ):
        place = f"LibriSpeech/{part}/{speaker}/{chapter}"
        lines = []
        for number in (0, 1):
            name = f"{speaker}-{chapter}-000{number}"
            audio(folder / place / f"{name}.flac", 16000)
            lines.append(f"{name} SAID IN {chapter}")
            spoken = f"SAID IN {chapter}"
            rows[f"{place}/{name}.flac"] = {"set": part, "split": split, "speaker": speaker, "transcript": spoken}
        text(folder / place / f"{speaker}-{chapter}.trans.txt", *lines)
    return rows


def vctk(folder: Path) -> Rows:
    """As in its README: two microphones, texts by speaker; no text of p315, no mic2 of p280."""
    rows: Rows = {}
    root = "VCTK-Corpus-0.92"
    for speaker, microphones, split in (
        ("p226", "12", "train"),
        ("p280", "1", "train"),
        ("p315", "12", "train"),
        ("p238", "12", "valid"),
        ("p225", "12", "test"),
        ("s5", "12", "train"),
    ):
        for number in microphones:
            path = f"{root}/wav48_silence_trimmed/{speaker}/{speaker}_001_mic{number}.flac"
            audio(folder / path, 48000)
            if number == "2":
                rows[path] = {"set": "mic2", "split": split, "speaker": speaker}
                rows[path] |= {"transcript": f"Please call {speaker}."} if speaker != "p315" else {}
        if speaker != "p315":
            text(folder / f"{root}/txt/{speaker}/{speaker}_001.txt", f"Please call {speaker}.")
    text(
        folder / f"{root}/speaker-info.txt",
        "ID  AGE  GENDER  ACCENTS  REGION COMMENTS",
        "p226  22  M    English Surrey",
    )
    return rows


def musdb18hq(folder: Path) -> Rows:
    """As on its page: train and test, a folder per track with five stereo files."""
    rows: Rows = {}
    for place, split in (
        ("train/A Classic Education - NightOwl", "train"),
        ("train/Actions - One Minute Smile", "valid"),
        ("test/AM Contra - Heart Peripheral", "test"),
    ):
        for source in ("mixture", "vocals", "drums", "bass", "other"):
            audio(folder / f"musdb18hq/{place}/{source}.wav", 44100, channels=2)
        rows[f"musdb18hq/{place}/mixture.wav"] = {"set": "mixture", "split": split, "label": "mixture"}
    return rows


def maestro(folder: Path) -> Rows:
    """As on its page: the columns of the table; files by year."""
    rows: Rows = {}
    table = [["canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename", "duration"]]
    for composer, year, rate, split, ours in (
        ("Alban Berg", 2018, 48000, "train", "train"),
        ("Franz Liszt", 2004, 44100, "validation", "valid"),
        ("Frédéric Chopin", 2008, 44100, "test", "test"),
    ):
        name = f"{year}/MIDI-Unprocessed_{year}_wav--1"
        audio(folder / f"maestro-v3.0.0/{name}.wav", rate, channels=2)
        text(folder / f"maestro-v3.0.0/{name}.midi", "notes")
        table.append([composer, "Sonata, Op. 1", split, str(year), f"{name}.midi", f"{name}.wav", "0.31"])
        rows[f"maestro-v3.0.0/{name}.wav"] = {"set": "maestro", "split": ours, "label": composer}
    with (folder / "maestro-v3.0.0/maestro-v3.0.0.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)
    return rows


def esc50(folder: Path) -> Rows:
    """As in its README: audio/fold-source-take-class.wav and the columns of meta/esc50.csv."""
    rows: Rows = {}
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold, split in enumerate(("train", "train", "train", "valid", "test"), 1):
        for target, category, small in ((0, "dog", True), (14, "chirping_birds", False)):
            name = f"{fold}-10003{fold}-A-{target}.wav"
            audio(folder / "ESC-50-master/audio" / name, 44100)
            lines.append(f"{name},{fold},{target},{category},{small},10003{fold},A")
            set_ = "esc10" if small else "others"
            rows[f"ESC-50-master/audio/{name}"] = {"set": set_, "split": split, "label": category}
    text(folder / "ESC-50-master/meta/esc50.csv", *lines)
    return rows


def common_voice(folder: Path) -> Rows:
    """As in its data sheets: a folder per language, clips, and a table per split with unpaired quotes."""
    rows: Rows = {}
    head = (
        "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant"
    )
    for language in ("en", "br"):
        for table, split in (("train", "train"), ("dev", "valid"), ("test", "test")):
            name = f"common_voice_{language}_{sum(table.encode())}.mp3"
            path = f"cv-corpus-13.0-2023-03-09/{language}/clips/{name}"
            audio(folder / path, 32000)
            speaker, spoken = f"{table}{language}" * 8, f'He said: "{language}, {table}'
            line = f"{speaker}\t{name}\tid\t{spoken}\t\t2\t0\t\t\t\t"
            text(folder / f"cv-corpus-13.0-2023-03-09/{language}/{table}.tsv", head, line)
            rows[path] = {"set": language, "split": split, "speaker": speaker, "transcript": spoken}
    return rows


MINIATURES: dict[str, Callable[[Path], Rows]] = {
    make.__name__: make
    for make in (
        general,
        digits,
        speech_commands,
        ljspeech,
        libritts,
        librispeech,
        vctk,
        musdb18hq,
        maestro,
        esc50,
        common_voice,
    )
}

# Archives of the publishers: archive -> (folder, prefix of the paths in it).
LIBRI = ("train-clean-100", "dev-clean", "test-clean")
PACKED: dict[str, dict[str, tuple[str, str]]] = {
    "digits": {
        "free-spoken-digit-dataset-1.0.10.zip": ("free-spoken-digit-dataset-1.0.10", "free-spoken-digit-dataset-1.0.10")
    },
    "speech_commands": {"speech_commands_v0.02.tar.gz": ("SpeechCommands/speech_commands_v0.02", ".")},
    "ljspeech": {"LJSpeech-1.1.tar.bz2": ("LJSpeech-1.1", "LJSpeech-1.1")},
    "libritts": {f"{part}.tar.gz": (f"LibriTTS/{part}", f"LibriTTS/{part}") for part in LIBRI},
    "librispeech": {f"{part}.tar.gz": (f"LibriSpeech/{part}", f"LibriSpeech/{part}") for part in LIBRI},
    "vctk": {"VCTK-Corpus-0.92.zip": ("VCTK-Corpus-0.92", ".")},
    "musdb18hq": {"musdb18hq.zip": ("musdb18hq", ".")},
    "maestro": {"maestro-v3.0.0.zip": ("maestro-v3.0.0", "maestro-v3.0.0")},
    "esc50": {"ESC-50-master.zip": ("ESC-50-master", "ESC-50-master")},
    "common_voice": {"cv-corpus-13.0-2023-03-09-br.tar.gz": ("cv-corpus-13.0-2023-03-09", "cv-corpus-13.0-2023-03-09")},
}


def pack(source: Path, target: Path, prefix: str) -> None:
    """Pack the folder `source` as a zip or tar file with paths that begin with `prefix`."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(source.rglob("*")):
                archive.write(path, f"{prefix}/{path.relative_to(source).as_posix()}")
    else:
        with tarfile.open(target, f"w:{target.suffix[1:]}") as tar:  # type: ignore[call-overload]
            tar.add(source, prefix)


def manifest(folder: Path) -> Rows:
    """Rows of a folder's manifest by path, without their lengths."""
    rows = [json.loads(line) for line in (folder / MANIFEST).read_text("utf-8").splitlines()]
    lengths = [row.pop("seconds") for row in rows]
    assert lengths == pytest.approx([SECONDS] * len(rows), abs=0.15)  # MP3 adds silence
    return {row.pop("path"): row for row in rows}


def prepared(dataset: Dataset, folder: Path, *parts: str) -> Rows:
    """Prepare a folder and return the rows of its manifest."""
    console = Console(file=io.StringIO())
    prepare(dataset, folder, parts=parts or None, may_download=False, console=console)
    return manifest(folder)
