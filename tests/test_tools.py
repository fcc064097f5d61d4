"""tools/: they start, say what they do, and measure what they say; how fast is nothing a test can know."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from codec.checkpoint import save_model
from tests.tiny import tiny_model

TOOLS = sorted((Path(__file__).parents[1] / "tools").glob("*.py"))


def run(tool: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(tool), *arguments])
    monkeypatch.syspath_prepend(str(tool.parent))
    runpy.run_path(str(tool), run_name="__main__")


@pytest.mark.parametrize("tool", TOOLS, ids=[tool.stem for tool in TOOLS])
def test_every_tool_says_what_it_does(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tool, monkeypatch, "--help")
    assert ended.value.code == 0
    assert f"usage: {tool.name}" in capsys.readouterr().out


def test_there_are_as_many_tools_as_there_were() -> None:
    assert len(TOOLS) == 7


def test_the_speed_of_generation_is_measured_for_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = next(tool for tool in TOOLS if tool.stem == "bench_lm")
    sizes = ["--width", "32", "--layers", "1", "--heads", "2", "--books", "2"]
    few = ["--frames", "3", "--rounds", "1", "--batch", "1", "--threads", "1", "--json", str(tmp_path / "speeds.json")]
    run(tool, monkeypatch, *sizes, *few)
    rows = json.loads((tmp_path / "speeds.json").read_text())
    assert [row["name"] for row in rows] == [
        "delay",
        "flatten",
        "depth",
        "delay, int8",
        "delay, drawn",
        "delay, heard",
    ]
    assert all(row["step_ms"] > 0 and row["weights"] > 0 for row in rows)
    assert "1 thread, batch 1" in capsys.readouterr().out


def test_signal_checks_print_a_line_and_a_row_of_json_for_each_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = next(tool for tool in TOOLS if tool.stem == "check_signals")
    save_model(tmp_path / "tiny.safetensors", tiny_model(), training={})
    run(tool, monkeypatch, str(tmp_path / "tiny.safetensors"), "--quick", "--json", str(tmp_path / "figures.json"))
    heading, *lines, summary = capsys.readouterr().out.splitlines()
    assert "full = 3, half = 1, quarter = 1 codebooks" in heading
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert [line[:25].rstrip() for line in lines] == [row["check"] for row in rows]
    assert len(rows) == 23  # all but rain
    beeps = next(row for row in rows if row["check"] == "beeps")
    assert beeps["aims"] == {"worst_db": "±3"}
    assert beeps["missed"] == ["worst_db"]
    assert sum(len(row["missed"]) for row in rows) == int(summary.split()[0])
