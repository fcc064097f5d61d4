"""recipes/: every folder is whole, reads its dataset as it is laid out, and trains."""

import ast
import dataclasses
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import torch

from codec import hub
from codec.config import load_toml
from codec.corpus import MANIFEST
from codec.errors import UsageError
from codec.lm import build
from codec.tokens import tokenize
from codec.training import lm_loop
from codec.training.codec_loop import train
from codec.training.lm_recipe import LMRecipe
from codec.training.prepare import Dataset, run
from codec.training.recipe import Recipe
from tests.recipes.miniatures import LIBRI, MINIATURES, PACKED, SECONDS, Rows, audio, pack

ROOT = Path(__file__).parents[2]
PICTURES = {"digits": {"bits.svg", "accuracy.svg"}}  # of what its README compares
FOLDERS = sorted(path for path in (ROOT / "recipes").iterdir() if path.is_dir() and path.name != "__pycache__")
NAMES = [folder.name for folder in FOLDERS]
DATASETS: dict[str, Dataset] = {
    folder.name: runpy.run_path(str(folder / "prepare.py"))["DATASET"] for folder in FOLDERS
}
SMALL = [
    "model.dim=8",
    "model.books=2",
    "model.codebook_size=8",
    "model.modes=2",
    "model.encoder_width=8",
    "model.encoder_blocks=1",
    "model.decoder_width=8",
    "model.decoder_blocks=1",
    "data.crop=0.2",
    "data.batch=2",
    "data.fit_seconds=0.4",
    "data.workers=0",
    "adversary.start=1",
    "adversary.channels=2",
    "adversary.crop=0.1",
    "train.precision=float32",
]


SMALL_LM = [
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "data.frames=10",
    "data.batch=4",
    "losses.soft=0.04",
    "losses.stochastic=0.04",
    "train.precision=float32",
    "train.samples=0",
]


def manifest(folder: Path) -> Rows:
    """The rows of a folder's manifest by path, without their lengths."""
    rows = [json.loads(line) for line in (folder / MANIFEST).read_text("utf-8").splitlines()]
    lengths = [row.pop("seconds") for row in rows]
    assert lengths == pytest.approx([SECONDS] * len(rows), abs=0.15)  # MP3 adds silence
    return {row.pop("path"): row for row in rows}


def test_every_recipe_is_four_files_and_stands_in_the_readme() -> None:
    assert len(FOLDERS) == 11
    assert set(NAMES) == set(MINIATURES)
    for folder in FOLDERS:
        files = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
        assert files == {"README.md", "prepare.py", "codec.toml", "lm.toml"} | PICTURES.get(folder.name, set()), folder
        assert DATASETS[folder.name].recipe == folder.name
    section = (ROOT / "README.md").read_text("utf-8").split("## Recipes\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| \[`(\w+)`\]\(recipes/\1\) \|", section, re.MULTILINE) == ["general"] + [
        name for name in NAMES if name != "general"
    ]


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_a_readme_says_what_a_user_needs(folder: Path) -> None:
    text = (folder / "README.md").read_text("utf-8")
    assert text.startswith(f"# {folder.name}\n")
    assert f"python recipes/{folder.name}/prepare.py " in text
    assert f"codec train recipes/{folder.name}/codec.toml --data " in text
    assert f"codec train recipes/{folder.name}/lm.toml --data " in text
    licence = DATASETS[folder.name].licence
    if licence is not None:
        assert licence.name.split(";")[0] in text
        assert len(text.splitlines()) <= (130 if folder.name == "digits" else 40)  # where shipped models come from
        assert set(re.findall(r"\((\w+\.svg)\)", text)) == PICTURES.get(folder.name, set())
        for word in ("hours", "files", "licence"):
            assert word in text.lower()


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_is_read_as_it_is_laid_out_and_trains(name: str, tmp_path: Path) -> None:
    expected = MINIATURES[name](tmp_path / "data")
    run(DATASETS[name], [str(tmp_path / "data"), "--no-download"])
    assert manifest(tmp_path / "data") == expected

    recipe = load_toml(ROOT / "recipes" / name / "codec.toml", Recipe, SMALL)
    model = train(recipe, data=tmp_path / "data" / MANIFEST, out=tmp_path / "run", steps=2, device="cpu")
    assert model.is_file()

    tokenize(tmp_path / "data" / MANIFEST, tmp_path / "tokens", model=model)
    talk = load_toml(ROOT / "recipes" / name / "lm.toml", LMRecipe, SMALL_LM)
    options: dict[str, Any] = {"data": tmp_path / "tokens", "codec": model, "steps": 2, "device": "cpu"}
    assert lm_loop.train(talk, out=tmp_path / "lm", **options).is_file()


@pytest.mark.parametrize("name", sorted(PACKED))
def test_the_publishers_archives_become_the_same(name: str, tmp_path: Path) -> None:
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
    run(dataclasses.replace(dataset, parts=parts), [str(folder), "--no-download"])
    assert manifest(folder) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_makes_fifty_frames_a_second_and_switches_its_discriminators_on(name: str) -> None:
    recipe = load_toml(ROOT / "recipes" / name / "codec.toml", Recipe)
    assert recipe.model.sample_rate == 50 * recipe.model.hop
    assert recipe.adversary.start is not None
    assert recipe.adversary.start < recipe.train.steps


@pytest.mark.parametrize("name", NAMES)
def test_a_language_model_sees_all_of_the_longest_crop(name: str) -> None:
    codec = load_toml(ROOT / "recipes" / name / "codec.toml", Recipe).model
    recipe = load_toml(ROOT / "recipes" / name / "lm.toml", LMRecipe)
    source = {"codec": "", "weights_hash": "", "books": codec.books, "codebook_size": codec.codebook_size}
    with torch.device("meta"):
        model = build(recipe.model.model_dump(), source | {"dim": codec.dim})
    assert recipe.model.context >= model.pattern.steps(recipe.data.frames)
    assert recipe.name == f"{name}-{codec.sample_rate // 1000}k-lm"


def test_the_shipped_language_model_is_made_by_its_recipe() -> None:
    made = LMRecipe.from_data(hub.describe(hub.DEFAULT_LM).training["recipe"]).model_dump()
    told = load_toml(ROOT / "recipes/digits/lm.toml", LMRecipe).model_dump()
    assert told["train"].pop("expected") == 7.8  # which was measured afterwards
    assert made["train"].pop("expected") is None
    assert made == told


def test_known_checksums_and_sizes() -> None:
    archives = {archive for dataset in DATASETS.values() for archive in dataset.parts.values()}
    assert len(archives) == 21
    unknown = sorted(archive.name for archive in archives if archive.sha256 is None)
    assert unknown == ["ESC-50-master.zip", "free-spoken-digit-dataset-1.0.10.zip"]
    for archive in archives:
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256 or "0" * 64)
        assert bool(archive.unchecked) == (archive.sha256 is None)


def test_other_parts(tmp_path: Path) -> None:
    def prepared(name: str, *parts: str) -> Rows:
        if not (tmp_path / name).exists():
            MINIATURES[name](tmp_path / name)
        run(DATASETS[name], [str(tmp_path / name), "--no-download", "--parts", *parts])
        return manifest(tmp_path / name)

    assert {row["label"] for row in prepared("speech_commands", "words").values()} == {"bed"}
    assert {row["set"] for row in prepared("musdb18hq", "vocals", "bass").values()} == {"vocals", "bass"}
    assert {row["set"] for row in prepared("musdb18hq", "all").values()} == {
        "mixture",
        "vocals",
        "drums",
        "bass",
        "other",
    }
    assert {row["label"] for row in prepared("esc50", "esc10").values()} == {"dog"}
    assert {row["split"] for row in prepared("librispeech", "dev-clean").values()} == {"valid"}
    assert "p280" in {row["speaker"] for row in prepared("vctk", "mic1").values()}


def test_general_leaves_it_to_the_training_what_is_held_out(tmp_path: Path) -> None:
    for number in range(3):
        audio(tmp_path / "data" / f"{number}.wav", 8000)
    run(DATASETS["general"], [str(tmp_path / "data")])
    assert manifest(tmp_path / "data") == {f"{number}.wav": {} for number in range(3)}
    recipe = load_toml(ROOT / "recipes/general/codec.toml", Recipe, [*SMALL, "train.steps=1"])
    train(recipe, data=tmp_path / "data" / MANIFEST, out=tmp_path / "run")


def test_digits_leaves_out_what_is_not_of_the_dataset(tmp_path: Path) -> None:
    expected = MINIATURES["digits"](tmp_path)
    recordings = tmp_path / next(iter(expected))
    for name in ("a_b_c.wav", "12_theo_3.wav", "1_theo_x.wav", "1_theo_3_4.wav"):
        recordings.with_name(name).write_bytes(recordings.read_bytes())
    run(DATASETS["digits"], [str(tmp_path), "--no-download"])
    assert manifest(tmp_path) == expected


def test_general_never_replaces_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MINIATURES["general"](tmp_path)
    told = '{"path": "train/b.flac", "story": "a key that we do not know"}\n'
    (tmp_path / MANIFEST).write_text(told)
    with pytest.raises(SystemExit) as ended:
        run(DATASETS["general"], [str(tmp_path)])
    assert ended.value.code == UsageError.exit_code
    assert f"{tmp_path / MANIFEST} is there already" in capsys.readouterr().err
    assert (tmp_path / MANIFEST).read_text() == told


def test_prepare_is_a_command(tmp_path: Path) -> None:
    MINIATURES["digits"](tmp_path)
    done = subprocess.run(
        [sys.executable, ROOT / "recipes/digits/prepare.py", tmp_path, "--no-download"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "CC BY-SA 4.0 · https://creativecommons.org/licenses/by-sa/4.0/" in done.stderr
    assert "train: 2 files" in done.stderr
    assert f"codec train recipes/digits/codec.toml --data {tmp_path / MANIFEST}" in done.stderr
    assert len(manifest(tmp_path)) == 4


# What peers read in the same folders


def peer(name: str) -> ModuleType:
    """A package that may not be there, or may not go with the torch that is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return __import__(name, fromlist=["_"])
        except Exception as error:
            pytest.skip(f"{name} cannot be imported: {type(error).__name__}: {error}"[:200])


def ours(name: str, folder: Path, *options: str) -> list[dict[str, Any]]:
    run(DATASETS[name], [str(folder), "--no-download", *options])
    return [{"path": path, **row} for path, row in manifest(folder).items()]


def by_stem(rows: list[dict[str, Any]], *keys: str) -> dict[str, tuple[Any, ...]]:
    return {Path(row["path"]).stem: tuple(row.get(key) for key in keys) for row in rows}


@pytest.mark.filterwarnings("ignore")
def test_lhotse_reads_the_same(tmp_path: Path) -> None:
    recipes = peer("lhotse.recipes")
    for name in ("ljspeech", "libritts", "librispeech", "vctk", "speech_commands"):
        MINIATURES[name](tmp_path / name)

    def told(supervisions: Any, *keys: str) -> dict[str, tuple[Any, ...]]:
        return {one.recording_id: tuple(getattr(one, key) for key in keys) for one in supervisions}

    found = recipes.prepare_ljspeech(tmp_path / "ljspeech/LJSpeech-1.1")["supervisions"]
    normalised = {one.recording_id: (one.custom["normalized_text"],) for one in found}
    assert by_stem(ours("ljspeech", tmp_path / "ljspeech"), "transcript") == normalised

    for name, root in (("libritts", "LibriTTS"), ("librispeech", "LibriSpeech")):
        prepare = getattr(recipes, f"prepare_{name}")
        parts = prepare(tmp_path / name / root, dataset_parts=LIBRI)
        rows = ours(name, tmp_path / name)
        for part in LIBRI:
            expected = told(parts[part]["supervisions"], "text", "speaker")
            assert len(expected) == 2
            assert by_stem([row for row in rows if row["set"] == part], "transcript", "speaker") == expected

    (tmp_path / "vctk/VCTK-Corpus-0.92/speaker-info.txt").write_text(
        "ID AGE GENDER ACCENTS REGION\np226 22 M English\n"
    )
    found = recipes.prepare_vctk(tmp_path / "vctk/VCTK-Corpus-0.92", use_edinburgh_vctk_url=True)["supervisions"]
    rows = [row for row in ours("vctk", tmp_path / "vctk") if "transcript" in row]
    assert by_stem(rows, "transcript", "speaker") == told(found, "text", "speaker")

    corpus = tmp_path / "speech_commands/SpeechCommands"
    (corpus / "speech_commands_test_set_v0.02").mkdir()
    (corpus / "speech_commands_v0.02/_background_noise_/running_tap.wav").unlink()
    rows = ours("speech_commands", tmp_path / "speech_commands", "--parts", "all")
    for split in ("train", "valid"):
        paths, *_ = (recipes.speechcommands._split_train_valid("2", corpus),)
        expected_paths = {path for path in paths[split == "valid"] if "_background_" not in path}
        mine = {"/".join(Path(row["path"]).parts[-2:]) for row in rows if row["split"] == split}
        assert mine == expected_paths


def test_torchaudio_knows_the_same_checksums() -> None:
    """Read from its source, for it cannot be imported beside every torch."""
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
    assert len(both) > 10
    assert both == {end: theirs[end] for end in both}


def by_end(url: str) -> str:
    """Name of an archive and its folder, whatever mirror it is on."""
    return "/".join(url.rsplit("/", 2)[1:])


@pytest.mark.filterwarnings("ignore")
def test_torchaudio_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchaudio = peer("torchaudio")
    datasets = peer("torchaudio.datasets")

    def load(path: Any) -> tuple[torch.Tensor, int]:  # its own needs one more package and FFmpeg
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        return torch.from_numpy(samples.T), rate

    monkeypatch.setattr(torchaudio, "load", load)
    for name in MINIATURES:
        MINIATURES[name](tmp_path / name)

    root = tmp_path / "speech_commands"
    rows = ours("speech_commands", root, "--parts", "all")
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

    for path in (tmp_path / "libritts").rglob("._*"):  # which it stumbles over
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
        rows = ours("vctk", tmp_path / "vctk", "--parts", microphone)
        assert by_stem([row for row in rows if "transcript" in row], "transcript", "speaker") == expected

    rows = ours("musdb18hq", tmp_path / "musdb18hq")
    tracks = {
        split: {row["path"].split("/")[2] for row in rows if row["split"] == split} for split in ("train", "test")
    }
    assert tracks["train"] == set(datasets.MUSDB_HQ(tmp_path / "musdb18hq", "train", split="train").names)
    assert tracks["test"] == set(datasets.MUSDB_HQ(tmp_path / "musdb18hq", "test").names)
    usual = runpy.run_path(str(ROOT / "recipes/musdb18hq/prepare.py"))["VALID"]
    assert usual == set(datasets.MUSDB_HQ(tmp_path / "musdb18hq", "train", split="validation").names)

    rows = ours("common_voice", tmp_path / "common_voice")
    for table, split in (("train", "train"), ("dev", "valid"), ("test", "test")):
        language = tmp_path / "common_voice/cv-corpus-13.0-2023-03-09/br"
        told = [item[2] for item in datasets.COMMONVOICE(language, f"{table}.tsv")]
        expected_ = [(item["path"], item["client_id"]) for item in told]
        mine = [row for row in rows if (row["set"], row["split"]) == ("br", split)]
        assert [(Path(row["path"]).name, row["speaker"]) for row in mine] == expected_
