"""data/split.py: a codec and a language model hold out the same clips of a corpus."""

import json
from pathlib import Path
from typing import Any

import pytest

from codec.data.split import SplitBy
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.io.audio import write_audio
from codec.training.codec.crops import Crops, open_crops
from codec.training.lm.crops import split_clips
from tests.helpers.training import small_recipe, tones, write_codec

CLIPS = 24


def row(number: int, **keys: Any) -> dict[str, Any]:
    return {"path": f"{number % 5}/{number}.wav", **keys}


def marked(number: int) -> dict[str, Any]:
    return row(number, split=(None, "train", "valid", "test")[number % 4])


def of_speakers(number: int) -> dict[str, Any]:
    return row(number, speaker=None if number % 7 == 3 else f"speaker {number % 7}")


def parts(number: int) -> dict[str, Any]:
    return {"path": f"{number // 2}.wav", "start": 0.1 * (number % 2), "seconds": 0.1}


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codec(tmp_path_factory.mktemp("codec"))


def ids(crops: Crops) -> set[tuple[str, float]]:
    """Path and start of every clip."""
    found = set()
    for rows in crops.index.sets:
        for end in crops.index.rows["end"][rows.first : rows.last]:
            clip, _ = crops.index.clip(rows, int(end) - 1)
            found.add((clip.id, round(clip.start, 3)))
    return found


@pytest.fixture(scope="module", params=[row, marked, of_speakers, parts])
def corpus(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, codec: Path) -> Path:
    """A folder with a manifest, and its token store."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [request.param(number) for number in range(CLIPS)]
    for number, path in enumerate(sorted({row["path"] for row in rows})):
        (folder / path).parent.mkdir(exist_ok=True)
        write_audio(folder / path, tones(0.2, 8000, seed=number), 8000)
    lines = [json.dumps({key: value for key, value in row.items() if value is not None}) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    tokenize(folder, folder / "store", model=codec)
    return folder


@pytest.mark.parametrize("split_by", ["file", "folder"])
@pytest.mark.parametrize("held_out", [1e-9, 0.3])
def test_both_hold_out_the_same_clips(tmp_path: Path, corpus: Path, split_by: SplitBy, held_out: float) -> None:
    config = small_recipe(data={"held_out": held_out, "split_by": split_by}).data
    sides = open_crops(corpus, tmp_path / "index", config, sample_rate=8000, seed=0, report=lambda _: None)
    store = TokenStore(corpus / "store")
    for crops, clips in zip(sides, split_clips(store, held_out, split_by), strict=True):
        stored = [store.row(int(clip)) for clip in clips]
        assert ids(crops) == {(row.id.partition("@")[0], row.start) for row in stored}
        assert stored
