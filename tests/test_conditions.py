"""The table of conditions: manifests, recipes and the command line know each of its kinds."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer.main

from codec.cli import main
from codec.conditions import CLASSES, KINDS, ClassKind
from codec.data.clips import Clip, clips, write_manifest
from codec.errors import UsageError
from codec.lm.conditioning import encode_conditions


def test_kinds() -> None:
    assert [kind.name for kind in KINDS] == ["speaker", "label", "text", "language"]
    assert list(CLASSES) == list(get_args(ClassKind)) == ["speaker", "label", "language"]


def test_manifests_keep_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    conditions: dict[str, Any] = {kind.key: f"a {kind.name}" for kind in KINDS}
    clip = Clip(tmp_path / "a.wav", "a.wav", **conditions)
    write_manifest(tmp_path / "manifest.jsonl", [clip])
    assert list(clips(tmp_path)) == [clip]


def test_every_kind_is_an_option() -> None:
    command = typer.main.get_command(main.app).commands["generate"]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {f"--{kind.name}" for kind in KINDS} <= options


def test_language_is_a_kind() -> None:
    classes = {"language": ["de", "en"]}
    assert encode_conditions([{"language": "en"}, {}], classes, text=False).classes.equal(torch.tensor([[1], [-1]]))
    with pytest.raises(UsageError, match="takes no speaker; it takes language"):
        encode_conditions([{"speaker": "eva"}], classes, text=False)
