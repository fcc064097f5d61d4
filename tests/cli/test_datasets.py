"""codec prepare and codec recipes: their output, and their calls of the library."""

from pathlib import Path

import pytest

from codec import datasets
from tests.cli.conftest import Cli
from tests.datasets.miniatures import MINIATURES, manifest

ROOT = Path(__file__).parents[2]


def test_prepare_without_a_name_lists_the_datasets(cli: Cli) -> None:
    result = cli("prepare")
    assert (result.code, result.err) == (0, "")
    head, *rows = result.out.decode().splitlines()
    assert head.split() == ["name", "dataset", "hours", "download", "license"]
    assert [row.split()[0] for row in rows] == list(datasets.NAMES)
    (libritts,) = [row for row in rows if row.startswith("libritts")]
    assert [part.strip() for part in libritts.split("  ") if part.strip()] == [
        *("libritts", "LibriTTS", "71 of 586", "10.2 of 84 GB", "CC BY 4.0")
    ]


def test_prepare_shows_the_license_and_writes_the_manifest(cli: Cli) -> None:
    MINIATURES["digits"](Path("data"))
    result = cli("prepare", "digits", "data", "--no-download")
    assert (result.code, result.out) == (0, b"")
    lines = result.err.splitlines()
    assert lines[0] == (
        "the Free Spoken Digit Dataset 1.0.10 · CC BY-SA 4.0 · https://creativecommons.org/licenses/by-sa/4.0/"
    )
    assert "train: 2 files, 0.00 h" in lines
    assert lines[-1] == "next: codec train digits --data data/manifest.jsonl"
    assert len(manifest(Path("data"))) == 4


@pytest.mark.parametrize("parts", [["--parts", "vocals,bass"], ["--parts", "vocals", "--parts", "bass"]])
def test_parts(cli: Cli, parts: list[str]) -> None:
    MINIATURES["musdb18hq"](Path("data"))
    assert cli("prepare", "musdb18hq", "data", "--no-download", *parts).code == 0
    assert {row["set"] for row in manifest(Path("data")).values()} == {"vocals", "bass"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["ljspech", "data"], 2, "unknown dataset ljspech; did you mean ljspeech?"),
        (["vctk"], 2, "give a folder for the dataset: codec prepare vctk DIR; its parts are mic1, mic2"),
        (["digits", "data"], 2, "has not been accepted: read it above and pass --accept-license"),
        (["digits", "data", "--no-download"], 3, "is missing: run without --no-download"),
        (["vctk", "data", "--parts", "mic3"], 2, "vctk has no part mic3; did you mean mic2?"),
        (["general", "data", "--parts", "x"], 2, "general has no parts: leave --parts out"),
        (["general", "data"], 3, "data is not a folder: check the name"),
    ],
)
def test_invalid_arguments(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, says: str
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    result = cli("prepare", *arguments)
    assert (result.code, result.out) == (code, b"")
    assert says in result.err.splitlines()[-1]
    assert list(Path().iterdir()) == []


def test_accept_license(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("codec.datasets.prepare.prepare", lambda *given, **options: calls.append((given, options)))
    assert cli("prepare", "digits", "data", "--accept-license").code == 0
    (((dataset, folder), options),) = calls
    assert (dataset, folder) == (datasets.find("digits"), Path("data"))
    assert {key: options[key] for key in ("parts", "accepted", "may_download")} == {
        "parts": None,
        "accepted": True,
        "may_download": True,
    }


def test_an_interrupt_prints_how_to_resume(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codec.datasets.prepare.prepare", interrupt)
    result = cli("prepare", "digits", "data")
    assert (result.code, result.err) == (130, "stopped; the same command resumes\n")


def test_recipes_are_listed_and_printed(cli: Cli) -> None:
    result = cli("recipes")
    assert result.code == 0
    assert result.err == "print a codec recipe: codec recipes NAME; a language model recipe: codec recipes NAME/lm\n"
    head, *rows = result.out.decode().splitlines()
    assert head.split() == ["name", "purpose", "hours", "license"]
    assert [row.split()[0] for row in rows if row[0] != " "] == list(datasets.NAMES)
    for name, file in (("digits", "digits/codec.toml"), ("digits/lm", "digits/lm.toml")):
        assert cli("recipes", name).out == (ROOT / "recipes" / file).read_bytes()
    assert "did you mean digits?" in cli("recipes", "digit").err
    assert cli("recipes", "digit").code == 2
    assert cli("recipes", "none.toml").code == 3


def test_files_that_are_not_read_are_counted(cli: Cli, recording: Path) -> None:
    Path("set").mkdir()
    recording.rename("set/a.wav")
    for name in ("b.m4a", "c.wma", "d.wma"):
        Path("set", name).touch()
    result = cli("prepare", "general", "set")
    assert result.code == 0
    assert result.err.splitlines()[-1] == "not read: 2 .wma, 1 .m4a (convert them to WAV or FLAC first)"
