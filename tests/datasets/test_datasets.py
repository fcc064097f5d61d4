"""Every dataset: its layout as published, and the same clips as lhotse and torchaudio read."""

import ast
import dataclasses
import hashlib
import re
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import torch

from codec import datasets
from codec.data.clips import MANIFEST
from codec.errors import UsageError
from tests.datasets.miniatures import LIBRI, MINIATURES, PACKED, Rows, pack, prepared

DATASETS = {name: datasets.find(name) for name in datasets.NAMES}


def test_every_module_is_named() -> None:
    shared = {"__init__", "archive", "base", "download", "libri", "prepare", "progress", "recipes"}
    assert {path.stem for path in Path(datasets.__file__).parent.glob("*.py")} == shared | set(datasets.NAMES)
    assert set(datasets.NAMES) == set(MINIATURES)
    assert all(name == dataset.name for name, dataset in DATASETS.items())


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"unknown dataset ljspech; did you mean ljspeech\?"):
        datasets.find("ljspech")
    with pytest.raises(UsageError, match="unknown dataset base; there are general, common_voice"):
        datasets.find("base")


@pytest.mark.parametrize("name", datasets.NAMES)
def test_manifest_of_a_miniature(name: str, tmp_path: Path) -> None:
    expected = MINIATURES[name](tmp_path)
    assert prepared(DATASETS[name], tmp_path) == expected


@pytest.mark.parametrize("name", sorted(PACKED))
def test_archives_give_the_same_manifest(name: str, tmp_path: Path) -> None:
    expected = MINIATURES[name](tmp_path / "unpacked")
    folder = tmp_path / "data"
    folder.mkdir()
    sums: dict[str, str] = {}
    for archive, (source, prefix) in PACKED[name].items():
        pack(tmp_path / "unpacked" / source, folder / archive, prefix)
        sums[archive] = hashlib.sha256((folder / archive).read_bytes()).hexdigest()
    dataset = DATASETS[name]
    assert {dataset.parts[part].name for part in dataset.default or dataset.parts} <= set(sums)
    parts = {
        part: dataclasses.replace(archive, size=None, sha256=sums[archive.name])
        for part, archive in dataset.parts.items()
        if archive.name in sums
    }
    assert prepared(dataclasses.replace(dataset, parts=parts), folder) == expected


def test_known_checksums_and_sizes() -> None:
    archives = {archive for dataset in DATASETS.values() for archive in dataset.parts.values()}
    assert {name for name, dataset in DATASETS.items() if not dataset.parts} == {"general", "common_voice"}
    unknown = {archive.name for archive in archives if archive.sha256 is None}
    assert unknown == {"ESC-50-master.zip", "free-spoken-digit-dataset-1.0.10.zip"}
    for archive in archives:
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256 or "0" * 64)
        assert bool(archive.unchecked) == (archive.sha256 is None)
        assert (archive.size is None) == (archive.size_limit is not None)


def test_other_parts(tmp_path: Path) -> None:
    def rows(name: str, *parts: str) -> Rows:
        if not (tmp_path / name).exists():
            MINIATURES[name](tmp_path / name)
        return prepared(DATASETS[name], tmp_path / name, *parts)

    assert {row["label"] for row in rows("speech_commands", "words").values()} == {"bed"}
    assert {row["set"] for row in rows("musdb18hq", "vocals", "bass").values()} == {"vocals", "bass"}
    assert {row["set"] for row in rows("musdb18hq", "all").values()} == {
        "mixture",
        "vocals",
        "drums",
        "bass",
        "other",
    }
    assert {row["label"] for row in rows("esc50", "esc10").values()} == {"dog"}
    assert {row["split"] for row in rows("librispeech", "dev-clean").values()} == {"valid"}
    assert "p280" in {row["speaker"] for row in rows("vctk", "mic1").values()}


def test_digits_skips_other_files(tmp_path: Path) -> None:
    expected = MINIATURES["digits"](tmp_path)
    recordings = tmp_path / next(iter(expected))
    for name in ("a_b_c.wav", "12_theo_3.wav", "1_theo_x.wav", "1_theo_3_4.wav"):
        recordings.with_name(name).write_bytes(recordings.read_bytes())
    assert prepared(DATASETS["digits"], tmp_path) == expected


def test_general_never_replaces_a_manifest(tmp_path: Path) -> None:
    MINIATURES["general"](tmp_path)
    content = '{"path": "train/b.flac", "story": "an unknown key"}\n'
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UsageError, match=f"{MANIFEST} exists already"):
        prepared(DATASETS["general"], tmp_path)
    assert (tmp_path / MANIFEST).read_text() == content


# The same folders read by lhotse and torchaudio


def peer(name: str) -> ModuleType:
    """Import a package; skip the test if it is missing or incompatible with torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return __import__(name, fromlist=["_"])
        except Exception as error:
            pytest.skip(f"{name} cannot be imported: {type(error).__name__}: {error}"[:200])


def ours(name: str, folder: Path, *parts: str) -> list[dict[str, Any]]:
    return [{"path": path, **row} for path, row in prepared(DATASETS[name], folder, *parts).items()]


def by_stem(rows: list[dict[str, Any]], *keys: str) -> dict[str, tuple[Any, ...]]:
    return {Path(row["path"]).stem: tuple(row.get(key) for key in keys) for row in rows}


@pytest.mark.filterwarnings("ignore")
def test_lhotse_reads_the_same(tmp_path: Path) -> None:
    recipes = peer("lhotse.recipes")
    for name in ("ljspeech", "libritts", "librispeech", "vctk", "speech_commands"):
        MINIATURES[name](tmp_path / name)

    def fields(supervisions: Any, *keys: str) -> dict[str, tuple[Any, ...]]:
        return {one.recording_id: tuple(getattr(one, key) for key in keys) for one in supervisions}

    found = recipes.prepare_ljspeech(tmp_path / "ljspeech/LJSpeech-1.1")["supervisions"]
    normalized = {one.recording_id: (one.custom["normalized_text"],) for one in found}
    assert by_stem(ours("ljspeech", tmp_path / "ljspeech"), "transcript") == normalized

    for name, root in (("libritts", "LibriTTS"), ("librispeech", "LibriSpeech")):
        prepare = getattr(recipes, f"prepare_{name}")
        parts = prepare(tmp_path / name / root, dataset_parts=LIBRI)
        rows = ours(name, tmp_path / name)
        for part in LIBRI:
            expected = fields(parts[part]["supervisions"], "text", "speaker")
            assert len(expected) == 2
            assert by_stem([row for row in rows if row["set"] == part], "transcript", "speaker") == expected

    (tmp_path / "vctk/VCTK-Corpus-0.92/speaker-info.txt").write_text(
        "ID AGE GENDER ACCENTS REGION\np226 22 M English\n"
    )
    found = recipes.prepare_vctk(tmp_path / "vctk/VCTK-Corpus-0.92", use_edinburgh_vctk_url=True)["supervisions"]
    rows = [row for row in ours("vctk", tmp_path / "vctk") if "transcript" in row]
    assert by_stem(rows, "transcript", "speaker") == fields(found, "text", "speaker")

    corpus = tmp_path / "speech_commands/SpeechCommands"
    (corpus / "speech_commands_test_set_v0.02").mkdir()
    (corpus / "speech_commands_v0.02/_background_noise_/running_tap.wav").unlink()
    rows = ours("speech_commands", tmp_path / "speech_commands", "all")
    for split in ("train", "valid"):
        paths, *_ = (recipes.speechcommands._split_train_valid("2", corpus),)
        expected_paths = {path for path in paths[split == "valid"] if "_background_" not in path}
        mine = {"/".join(Path(row["path"]).parts[-2:]) for row in rows if row["split"] == split}
        assert mine == expected_paths


def test_checksums_equal_those_of_torchaudio() -> None:
    """Read from its source, because it cannot be imported beside every torch."""
    found = find_spec("torchaudio")
    if found is None or not found.submodule_search_locations:
        pytest.skip("torchaudio is not installed")
    known: dict[str, str] = {}
    for path in Path(found.submodule_search_locations[0], "datasets").glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_CHECKSUMS":
                known |= ast.literal_eval(node.value)
    ours = {archive.url: archive.sha256 for dataset in DATASETS.values() for archive in dataset.parts.values()}
    theirs = {by_end(url): digest for url, digest in known.items()}
    both = {by_end(url): digest for url, digest in ours.items() if by_end(url) in theirs}
    assert len(both) > 10  # enough to notice a change of its source
    assert both == {end: theirs[end] for end in both}


def by_end(url: str) -> str:
    """Last folder and name of an archive, which are the same on all mirrors."""
    return "/".join(url.rsplit("/", 2)[1:])


@pytest.mark.filterwarnings("ignore")
def test_torchaudio_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchaudio = peer("torchaudio")
    datasets = peer("torchaudio.datasets")

    def load(path: Any) -> tuple[torch.Tensor, int]:  # torchaudio.load needs another package and FFmpeg
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T), rate

    monkeypatch.setattr(torchaudio, "load", load)
    for name in MINIATURES:
        MINIATURES[name](tmp_path / name)

    root = tmp_path / "speech_commands"
    rows = ours("speech_commands", root, "all")
    for subset, split in (("training", "train"), ("validation", "valid"), ("testing", "test")):
        data = datasets.SPEECHCOMMANDS(root, subset=subset)
        expected = {data.get_metadata(index)[0]: data.get_metadata(index)[2:4] for index in range(len(data))}
        assert {
            row["path"].removeprefix("SpeechCommands/"): (row["label"], row["speaker"])
            for row in rows
            if row["split"] == split
        } == expected

    data = datasets.LJSPEECH(tmp_path / "ljspeech")
    assert [row["transcript"] for row in ours("ljspeech", tmp_path / "ljspeech")] == [item[3] for item in data]

    for path in (tmp_path / "libritts").rglob("._*"):  # which torchaudio cannot read
        path.unlink()
    rows, more = ours("libritts", tmp_path / "libritts"), ours("librispeech", tmp_path / "librispeech")
    for part in LIBRI:
        data = datasets.LIBRITTS(tmp_path / "libritts", url=part)
        expected = {item[6]: (item[3].strip(), str(item[4])) for item in data}
        assert by_stem([row for row in rows if row["set"] == part], "transcript", "speaker") == expected
        data = datasets.LIBRISPEECH(tmp_path / "librispeech", url=part)
        expected = {Path(item[0]).stem: (item[2], str(item[3])) for item in map(data.get_metadata, range(len(data)))}
        assert by_stem([row for row in more if row["set"] == part], "transcript", "speaker") == expected

    for microphone in ("mic1", "mic2"):
        data = datasets.VCTK_092(str(tmp_path / "vctk"), mic_id=microphone)
        expected = {f"{item[3]}_{item[4]}_{microphone}": (item[2].strip(), item[3]) for item in data}
        rows = ours("vctk", tmp_path / "vctk", microphone)
        assert by_stem([row for row in rows if "transcript" in row], "transcript", "speaker") == expected

    rows = ours("musdb18hq", tmp_path / "musdb18hq")
    tracks = {
        split: {row["path"].split("/")[2] for row in rows if row["split"] == split} for split in ("train", "test")
    }
    assert tracks["train"] == set(datasets.MUSDB_HQ(tmp_path / "musdb18hq", "train", split="train").names)
    assert tracks["test"] == set(datasets.MUSDB_HQ(tmp_path / "musdb18hq", "test").names)
    usual = import_module("codec.datasets.musdb18hq").VALID
    assert usual == set(datasets.MUSDB_HQ(tmp_path / "musdb18hq", "train", split="validation").names)

    rows = ours("common_voice", tmp_path / "common_voice")
    for table, split in (("train", "train"), ("dev", "valid"), ("test", "test")):
        language = tmp_path / "common_voice/cv-corpus-13.0-2023-03-09/br"
        rows_of_table = [item[2] for item in datasets.COMMONVOICE(language, f"{table}.tsv")]
        expected_ = [(item["path"], item["client_id"]) for item in rows_of_table]
        mine = [row for row in rows if (row["set"], row["split"]) == ("br", split)]
        assert [(Path(row["path"]).name, row["speaker"]) for row in mine] == expected_
