"""The programs in docs/examples run, with a tiny model and tiny sizes."""

import runpy
import sys
from pathlib import Path

import pytest
import soundfile

from codec.checkpoint import save_model
from codec.data.tokenize import tokenize
from tests.helpers.tokens import noise
from tests.tiny import tiny_model

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SIZES = [
    *("--codebooks=2", "--context=33", "--width=16", "--layers=1", "--heads=2"),
    *("--steps=3", "--batch-size=2", "--seconds=0.3"),
]


def test_every_example_has_a_test() -> None:
    assert [path.name for path in EXAMPLES.iterdir() if path.is_file()] == ["gpt.py"]


@pytest.mark.parametrize("source", ["folder", "store"])
def test_gpt(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "tiny.safetensors", tiny_model(), training={})
    for number in range(3):
        noise(tmp_path / f"folder/{number}.wav", time=3000 + number)
    if source == "store":
        tokenize(tmp_path / "folder", tmp_path / "store", model=tmp_path / "tiny.safetensors")
    output = tmp_path / "sample.wav"
    arguments = [tmp_path / source, "--model", tmp_path / "tiny.safetensors", *SIZES, "-o", output]
    monkeypatch.setattr(sys, "argv", ["gpt.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / "gpt.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[0] == "3 clips, 234 tokens"
    assert soundfile.info(output).frames == 2400
