"""codec models and codec evaluate."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from codec import pretrained
from codec.checkpoint import save_model
from codec.io.audio import write_audio
from tests.cli.conftest import Cli
from tests.tiny import tiny_model


def test_models_are_listed(cli: Cli) -> None:
    headings, line, *_ = cli("models").out.decode().splitlines()
    assert headings.split()[0] == "codec"
    assert line.split()[:3] == ["general-24k", "8000", "Hz"]
    assert "0.5 to 1.5 kbit/s" in line


def test_models_as_json(cli: Cli) -> None:
    card, *published = json.loads(cli("models", "--json").out)
    assert all("repository" in row for row in published)
    assert (card["name"], card["config"]["hop"]) == ("general-24k", 80)


def test_language_models_are_listed_after_codecs(cli: Cli, language_model: str) -> None:
    lines = cli("models").out.decode().partition("\n\npublished")[0].splitlines()
    assert [line.split()[:1] for line in lines] == [["codec"], ["general-24k"], [], ["language"], ["words"]]
    assert " ".join(lines[-1].split()).startswith("words tiny, 3 codebooks 2 labels, 3 speakers 0.0 M")
    first, second, *_ = json.loads(cli("models", "--json").out)
    assert (first["frame_spec"]["hop"], second["source"]["num_codebooks"]) == (80, 3)
    refused = cli("evaluate", "--model", "words", "--data", ".")
    assert (refused.code, refused.err) == (
        6,
        "codec: words is a language model: codec generate takes it; name a codec here\n",
    )


@pytest.fixture
def folder(cli: Cli) -> Path:
    Path("set/noise").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 24_000)).astype(np.float32)
    write_audio("set/noise/a.wav", noise, 24_000)
    return Path("set")


def test_evaluate_prints_a_table_and_writes_json(cli: Cli, folder: Path) -> None:
    result = cli("evaluate", "--data", folder, "--codebooks", "1,3", "--json", "out.json")
    assert result.code == 0, result.err
    rows = json.loads(Path("out.json").read_text())["rows"]
    assert {row["num_codebooks"] for row in rows} == {1, 3}
    assert "noise" in result.out.decode()
    (folder / "b.m4a").touch()
    result = cli("evaluate", "--data", folder, "--codebooks", "1")
    assert result.err == "not read: 1 .m4a (convert them to WAV or FLAC first)\n"


def test_evaluate_says_once_what_lies_far_below_the_rate_of_the_model(cli: Cli, folder: Path) -> None:
    write_audio(folder / "noise/low.wav", np.full((1, 900), 0.1, np.float32), 3000)
    result = cli("evaluate", "--data", folder, "--codebooks", "1,2")
    note = "low.wav: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz"
    assert [line for line in result.out.decode().splitlines() if "resampled" in line] == [f"noise/{note}"]


@pytest.mark.parametrize(("option", "taken"), [("--speech", True), ("--no-speech", False)])
def test_speech_option_computes_or_omits_stoi(cli: Cli, folder: Path, option: str, taken: bool) -> None:
    assert cli("evaluate", "--data", folder, option, "--json", "out.json").code == 0
    (row,) = [row for row in json.loads(Path("out.json").read_text())["rows"] if row["group"] == "all"]
    assert (row["measures"]["stoi"] is not None) == taken


@pytest.mark.slow
def test_all_codebooks_are_evaluated_one_by_one(cli: Cli, folder: Path) -> None:
    assert cli("evaluate", "--data", folder, "--codebooks", "all", "--json", "out.json").code == 0
    assert {row["num_codebooks"] for row in json.loads(Path("out.json").read_text())["rows"]} == {1, 2, 3}


@pytest.mark.slow
def test_evaluate_continues_after_a_damaged_file(cli: Cli, folder: Path) -> None:
    (folder / "noise" / "bad.wav").write_text("not audio")
    result = cli("evaluate", "--data", folder)
    assert result.code == 1
    assert "bad.wav" in result.out.decode()


@pytest.mark.slow
def test_several_models_and_decoded_files(cli: Cli, folder: Path) -> None:
    torch.manual_seed(1)
    save_model("other.safetensors", tiny_model(), training={})
    models = "--model", "general-24k", "--model", "other.safetensors"
    result = cli("evaluate", "--data", folder / "noise" / "a.wav", *models, "--codebooks", "1,3", "--write", "decoded")
    assert result.code == 0, result.err
    first, second, headings, *lines = result.out.decode().splitlines()
    hashes = [pretrained.describe(name).weights_hash[:12] for name in ("general-24k", "other.safetensors")]
    assert [first.split()[0], first.split()[-1]] == ["general-24k:", hashes[0]]
    assert [second.split()[0], second.split()[-1]] == ["other:", hashes[1]]
    assert headings.split()[:2] == ["codec", "codebooks"]
    assert [line.split()[1:3] for line in lines[:4]] == [
        ["general-24k", "1"],
        ["general-24k", "3"],
        ["other", "1"],
        ["other", "3"],
    ]
    assert sorted(path.name for path in Path("decoded").iterdir()) == [
        f"a.{name}.{count}-codebooks.wav" for name in ("general-24k", "other") for count in (1, 3)
    ]


@pytest.fixture
def librispeech(cli: Cli) -> Path:
    """The layout of LibriSpeech: speaker/chapter/speaker-chapter-number.flac at 16 kHz, with transcripts."""
    root = Path("LibriSpeech/test-clean")
    for speaker, chapter in ((1089, 134686), (1089, 134691), (61, 70968)):
        folder = root / f"{speaker}/{chapter}"
        folder.mkdir(parents=True)
        name = f"{speaker}-{chapter}"
        noise = np.random.default_rng(chapter).uniform(-0.3, 0.3, (1, 19_200)).astype(np.float32)
        write_audio(folder / f"{name}-0000.flac", noise * np.clip(np.sin(np.arange(19_200) / 700), 0, None), 16_000)
        (folder / f"{name}.trans.txt").write_text(f"{name}-0000 HE HOPED THERE WOULD BE STEW FOR DINNER\n")
    return root


@pytest.mark.slow
def test_evaluate_reads_the_folders_of_librispeech(cli: Cli, librispeech: Path) -> None:
    """The command of docs/evaluate.md."""
    for package in ("visqol", "speechmos"):
        pytest.importorskip(package)
    arguments = "--model general-24k --speech --codebooks 1,3 --visqol --dnsmos --bands --rows all --json out.json"
    result = cli("evaluate", "--data", librispeech, *arguments.split())
    assert result.code == 0, result.err
    evaluation = json.loads(Path("out.json").read_text())
    assert [
        (row["name"], row["num_codebooks"], row["files"]) for row in evaluation["rows"] if row["group"] == "all"
    ] == [
        ("all", 1, 3),
        ("all", 3, 3),
    ]
    assert {row["name"] for row in evaluation["rows"] if row["group"] == "set"} == {"1089", "61"}
    asked = {name for name, value in evaluation["rows"][1]["measures"].items() if value is not None}
    assert {"pesq_wb", "stoi", "visqol_speech", "dnsmos", "si_sdr", "mel_dac", "hop_periodicity"} <= asked
    lines = result.out.decode().splitlines()
    assert [line.split()[0] for line in lines if line] == [
        *("general-24k:", "codec", "all", "all", "SI-SDR,", "all", "all", "hop", "all", "all", "peak")
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("opusenc") is None, reason="opus-tools is not installed")
def test_baselines_have_rows_after_the_model(cli: Cli, folder: Path) -> None:
    result = cli("evaluate", "--data", folder, "--baseline", "opus:6,opus:32,original", "--json", "out.json")
    assert result.code == 0, result.err
    rows = [row for row in json.loads(Path("out.json").read_text())["rows"] if row["group"] == "all"]
    assert [row["codec"].split()[0] for row in rows] == ["general-24k", "opus:6", "opus:32", "original"]
    ratios = [row["measures"]["si_sdr"] for row in rows[1:]]
    assert ratios == sorted(ratios)
    assert all(math.isfinite(ratio) for ratio in ratios)
    assert "libopus" in result.out.decode().splitlines()[-3]


def test_missing_programs_and_packages_are_named_in_one_line(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = cli("evaluate", "--data", folder, "--baseline", "opus:6")
    assert (result.code, result.err.count("\n")) == (9, 1)
    assert "apt-get install opus-tools" in result.err
    monkeypatch.setitem(sys.modules, "visqol", None)
    result = cli("evaluate", "--data", folder, "--visqol")
    assert (result.code, result.err.count("\n")) == (9, 1)
    assert "visqol is not installed: it comes with the extra eval" in result.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--data", "none"], 3),
        (["--data", "set", "--codebooks", "x"], 2),
        (["--data", "set", "--baseline", "opus"], 2),
        (["--data", "set", "--dnsmos"], 2),
        (["--data", "set", "--vbr", "2.5;4"], 2),
    ],
)
def test_evaluate_refuses_invalid_options(cli: Cli, folder: Path, arguments: list[str], code: int) -> None:
    result = cli("evaluate", *arguments)
    assert result.code == code
    assert result.err.startswith("codec: ")
