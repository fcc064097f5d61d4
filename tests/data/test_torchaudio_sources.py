"""Datasets of torchaudio as corpora: the clips that `codec prepare` finds in the same folders, and refusals.

Without torchaudio, a stand-in for two of its classes takes part.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codec import datasets
from codec.data.clips import Clip, clips, root_of
from codec.data.token_store import TokenStore
from codec.errors import InputNotFound, MissingDependency, UsageError
from codec.nn import resample
from tests.cli.conftest import Cli, cli  # noqa: F401 (a fixture)
from tests.datasets.miniatures import MINIATURES, prepared


class LIBRISPEECH:
    """As torchaudio's: the path is relative to a folder that only the class knows."""

    def __init__(self, root: Path, url: str = "train-clean-100", download: bool = False) -> None:
        self.archive = str(root / "LibriSpeech")
        self.files = sorted((root / "LibriSpeech" / url).rglob("*.flac"))
        if "clean" not in url:
            raise ValueError(f"Invalid url '{url}'")
        if not self.files:
            raise RuntimeError("Dataset not found.\nPlease set `download=True`")

    def __len__(self) -> int:
        return len(self.files)

    def get_metadata(self, n: int) -> tuple[str, int, str, int]:
        """Get metadata.

        Returns:
            Tuple of the following items;

            str:
                Path to audio
            int:
                Sample rate
            str:
                Transcript
            int:
                Speaker ID
        """
        path = self.files[n]
        lines = next(path.parent.glob("*.trans.txt")).read_text().splitlines()
        text = dict(line.split(" ", 1) for line in lines)[path.stem]
        return str(path.relative_to(self.archive)), 16000, text, int(path.stem.split("-")[0])


class YESNO:
    """As torchaudio's: without `get_metadata`."""


@pytest.fixture(params=["torchaudio", "stand-in"], autouse=True)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "stand-in":
        found = SimpleNamespace(__all__=["LIBRISPEECH", "YESNO"], LIBRISPEECH=LIBRISPEECH, YESNO=YESNO)
        monkeypatch.setattr(resample, "torchaudio_module", lambda name: found)
    elif resample.torchaudio_module("datasets") is None:
        pytest.skip("torchaudio cannot be imported here")


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    MINIATURES["librispeech"](tmp_path)
    return tmp_path


def fields(found: Iterator[Clip], *names: str) -> dict[str, tuple[Any, ...]]:
    return {clip.id: tuple(getattr(clip, name) for name in names) for clip in found}


def test_the_clips_are_those_of_codec_prepare(libri: Path) -> None:
    source = Path(f"torchaudio:LIBRISPEECH,url=train-clean-100+dev-clean+test-clean:{libri}")
    expected = prepared(datasets.find("librispeech"), libri)
    names = ("set", "split", "speaker", "transcript")
    found = list(clips(source))
    assert fields(iter(found), *names) == {path: tuple(row[name] for name in names) for path, row in expected.items()}
    assert all(clip.path == libri / clip.id for clip in found)
    assert root_of(source) == libri


def test_a_split_needs_its_counterpart(libri: Path) -> None:
    """Else a share of the recordings is held out."""

    def splits(parts: str) -> set[str | None]:
        return {clip.split for clip in clips(Path(f"torchaudio:LIBRISPEECH,url={parts}:{libri}"))}

    assert splits("train-clean-100") == splits("test-clean") == {None}
    assert splits("train-clean-100+test-clean") == {None, "test"}
    assert {clip.set for clip in clips(Path(f"torchaudio:LIBRISPEECH:{libri}"))} == {""}


def test_labels_and_subsets(tmp_path: Path) -> None:
    if "SPEECHCOMMANDS" not in resample.torchaudio_module("datasets").__all__:  # type: ignore[union-attr]
        pytest.skip("the stand-in does not have it")
    expected = MINIATURES["speech_commands"](tmp_path)
    found = clips(Path(f"torchaudio:SPEECHCOMMANDS,subset=training+validation+testing:{tmp_path}"))
    labeled = fields((clip for clip in found if clip.label != "bed"), "split", "speaker", "label")
    assert labeled == {path: (row["split"], row["speaker"], row["label"]) for path, row in expected.items()}


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("LIBRISPEECH", UsageError, "write torchaudio:CLASS:DIR"),
        (":DIR", UsageError, "write torchaudio:CLASS:DIR"),
        ("LIBRISPEECH,url:DIR", UsageError, "write torchaudio:CLASS:DIR"),
        ("librispeech:DIR", UsageError, "did you mean LIBRISPEECH?"),
        ("WAVES:DIR", UsageError, "torchaudio has no dataset WAVES; there are .*LIBRISPEECH"),
        ("YESNO:DIR", UsageError, "YESNO does not say where its recordings are"),
        ("LIBRISPEECH,part=a:DIR", UsageError, "LIBRISPEECH has no argument part: it has url"),
        ("LIBRISPEECH,download=1:DIR", UsageError, "not downloaded here"),
        ("LIBRISPEECH,url=all:DIR", UsageError, "LIBRISPEECH: Invalid url 'all'"),
        ("LIBRISPEECH,url=dev-clean:DIR/LibriSpeech", InputNotFound, "LIBRISPEECH: Dataset not found"),
        ("LIBRISPEECH:DIR/none", InputNotFound, "none is not a folder: give the one that holds LIBRISPEECH"),
    ],
)
def test_what_is_refused(libri: Path, source: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as refused:
        list(clips(Path("torchaudio:" + source.replace("DIR", str(libri)))))
    assert "\n" not in str(refused.value)


def test_a_missing_transcript_is_named(libri: Path) -> None:
    for path in libri.rglob("dev-clean/**/*.trans.txt"):
        path.write_text("1-1-0000 OTHER\n")
    with pytest.raises(InputNotFound, match="torchaudio's LIBRISPEECH, item 0: "):
        list(clips(Path(f"torchaudio:LIBRISPEECH,url=dev-clean:{libri}")))


def test_tokenize_takes_them(libri: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    source = f"torchaudio:LIBRISPEECH,url=dev-clean:{libri}"
    assert cli("tokenize", source, "--out", libri / "store").code == 0
    assert TokenStore(libri / "store").classes["speaker"] == ("84",)
    monkeypatch.setattr(resample, "torchaudio_module", lambda name: None)
    refused = cli("tokenize", source, "--out", libri / "other")
    assert (refused.code, refused.err.count("\n"), (libri / "other").exists()) == (9, 1, False)
    with pytest.raises(MissingDependency, match="torchaudio cannot be imported"):
        list(clips(Path(source)))
