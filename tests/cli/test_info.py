"""codec info, on recordings, folders and models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from torch import Tensor

from codec.checkpoint import save_model
from codec.compression import header_of
from codec.errors import InputNotFound
from codec.io.bitstream import Writer, open_reader
from codec.io.tags import Cover, Tags
from tests.cli.conftest import Cli
from tests.tiny import tiny_model


def test_a_name_that_is_nearly_that_of_a_model(cli: Cli) -> None:
    assert cli("info", "general-24").err.startswith("codec: there is no model general-24: did you mean general-24k? ")
    assert cli("info", "nothing.codec").code == InputNotFound.exit_code


def test_info_of_a_recording(cli: Cli, recording: Path) -> None:
    cli("encode", recording)
    facts = json.loads(cli("info", "in.codec", "--json").out)
    expected = {
        "model": "general-24k",
        "source_rate": 16_000,
        "channels": 2,
        "time": 11_200,
        "seconds": 0.7,
        "num_codebooks": 3,
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["file_bytes"] == Path("in.codec").stat().st_size
    text = cli("info", "in.codec").out.decode()
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines] == [name for name, fact in facts.items() if fact not in ("", [], {})]
    assert ["codebook_sizes", "3", "×", "20"] in lines
    assert ["seconds", "0.7"] in lines
    assert ["weights_hash", facts["weights_hash"]] in lines


def test_info_shows_tags_and_escapes_what_cannot_be_printed(cli: Cli) -> None:
    header = replace(
        header_of(tiny_model(), 8000, 1, 3),
        tags=Tags((("title", "a\x1b[2J"), ("title", "b\nc")), Cover("image/png", b"12")),
    )
    with Path("a.codec").open("wb") as file:
        Writer(file, header).close(time=0)
    assert json.loads(cli("info", "a.codec", "--json").out)["tags"] == {"title": ["a\x1b[2J", "b\nc"]}
    lines = [line.split(maxsplit=1) for line in cli("info", "a.codec").out.decode().splitlines()]
    assert ["tags.title", r"a\x1b[2J,b\nc"] in lines
    assert ["cover", "image/png, 2 bytes"] in lines


def test_info_of_a_variable_rate_has_its_numbers_of_codebooks(cli: Cli, recording: Path) -> None:
    cli("encode", recording, "in.codec", "--vbr", 2.5)
    facts = json.loads(cli("info", "in.codec", "--json").out)
    with open_reader("in.codec") as reader:
        packets = list(reader.intact())
    counts = np.concatenate([(packet.codes >= 0).sum(axis=1).ravel() for packet in packets])
    assert facts["codebooks_per_frame"] == {"min": counts.min(), "mean": counts.mean(), "max": counts.max()}
    assert facts["payload_kbps"] == pytest.approx(sum(packet.payload_bytes for packet in packets) * 8 / 0.7 / 1000)
    cli("encode", recording, "in.codec", "--force")
    assert "codebooks_per_frame" not in json.loads(cli("info", "in.codec", "--json").out)
    whole = bytearray(Path("in.codec").read_bytes())
    whole[len(whole) // 2] ^= 1
    Path("in.codec").write_bytes(whole)
    damaged = cli("info", "in.codec", "--json")
    assert damaged.code == 0
    assert "payload_kbps" not in json.loads(damaged.out)


def test_info_names_mid_and_side(cli: Cli, recording: Path) -> None:
    assert cli("encode", recording, "in.codec", "--stereo", "mid-side").code == 0
    assert json.loads(cli("info", "in.codec", "--json").out)["mix"] == [[1, 1], [1, -1]]
    lines = [line.split() for line in cli("info", "in.codec").out.decode().splitlines()]
    assert ["stereo", "mid-side"] in lines
    assert ["settings", "stereo", "mid-side"] in lines
    cli("encode", recording, "in.codec", "--force")
    assert "stereo" not in cli("info", "in.codec").out.decode()


def test_info_verifies_files_if_asked(cli: Cli, recording: Path) -> None:
    cli("encode", recording, "a.codec")
    intact = "intact, 0.700 s, 1 packets"
    assert json.loads(cli("info", "a.codec", "--check", "--json").out)["check"] == intact
    lines = cli("info", "a.codec", "--check").out.decode().splitlines()
    assert lines[-1].split(maxsplit=1) == ["check", intact]
    Path("set").mkdir()
    Path("set/a.codec").write_bytes(Path("a.codec").read_bytes())
    assert cli("info", "set", "--check").code == 0
    whole = bytearray(Path("a.codec").read_bytes())
    whole[len(whole) // 2] ^= 1
    for path in ("a.codec", "set/b.codec"):
        Path(path).write_bytes(whole)
    checked = cli("check", "a.codec")
    damaged = cli("info", "a.codec", "--check", "--json")
    assert damaged.code == checked.code == 5
    facts = json.loads(damaged.out)
    assert facts["seconds"] == 0.7
    assert facts["check"] == checked.out.decode().strip()
    of_folder = cli("info", "set", "--check", "--json")
    assert of_folder.code == 5
    assert list(json.loads(of_folder.out)["files"]) == ["a.codec"]
    assert "b.codec" in json.loads(of_folder.out)["failures"]
    whole_set = cli("info", "set", "--check")
    assert whole_set.code == 5
    assert "failed: b.codec: " in whole_set.out.decode()
    model = cli("info", "general-24k", "--check")
    assert model.code == 2
    assert "--check verifies .codec files" in model.err


def test_info_of_a_folder(cli: Cli, recording: Path) -> None:
    Path("set/deep").mkdir(parents=True)
    cli("encode", recording, "set/deep/one.codec")
    cli("encode", recording, "set/two.codec", "--codebooks", 1)
    result = cli("info", "set")
    assert (result.code, result.err) == (0, "")
    headings, one, two, total = (line.split() for line in result.out.decode().splitlines())
    assert headings[:3] == ["file", "seconds", "channels"]
    assert one[:6] == ["deep/one.codec", "0.70", "2", "16000", "Hz", "3"]
    assert (two[0], two[5]) == ("two.codec", "1")
    assert total[:4] == ["2", "files,", "1.40", "s,"]
    Path("set/two.codec").rename("set/two.CODEC")
    assert b"two.CODEC" in cli("info", "set").out
    Path("set/bad.codec").write_bytes(b"nothing")
    result = cli("info", "set")
    assert result.code == 1
    assert result.out.decode().splitlines()[-1].startswith("failed: bad.codec: ")
    listed = json.loads(cli("info", "set", "--json").out)
    assert listed["files"].keys() == {"deep/one.codec", "two.CODEC"}
    assert listed["failures"].keys() == {"bad.codec"}
    Path("empty").mkdir()
    assert cli("info", "empty").code == 3


def test_info_of_a_model(cli: Cli) -> None:
    facts = json.loads(cli("info", "general-24k", "--json").out)
    assert (facts["family"], facts["frame_spec"]["num_codebooks"], facts["training"]) == ("causal", 3, {"step": 3})
    summary = cli("info", "general-24k").out.decode()
    assert "codebooks      3 of " in summary
    Path("run").mkdir()
    save_model("run/model.safetensors", tiny_model(), training={"a_name_past_the_column": 1})
    assert "frame_spec.num_codebooks         3\n" in cli("info", "run", "--all").out.decode()
    assert "training.a_name_past_the_column  1\n" in cli("info", "run/model.safetensors", "--all").out.decode()


def test_summary_of_a_model_fits_on_a_screen(cli: Cli) -> None:
    measures = {f"speech, {n} codebooks": {"pesq_wb": np.pi, "si_sdr": n} for n in range(20)}
    training = {"recipe": {"name": "mine", "train": {"steps": 5}}, "step": 3, "numbers": measures}
    save_model("a.safetensors", tiny_model(), training=training)
    lines = cli("info", "a.safetensors").out.decode().splitlines()
    assert len(lines) <= 30
    assert any("pesq_wb 3.14159" in line for line in lines)
    assert "train.steps" not in "\n".join(lines)
    assert len(cli("info", "a.safetensors", "--all").out.splitlines()) > 30


def test_summary_of_a_language_model(cli: Cli, language_model: str) -> None:
    summary = cli("info", language_model).out.decode()
    assert "language model" in summary
    assert "source.weights_hash" in cli("info", language_model, "--all").out.decode()


def test_info_of_other_files(cli: Cli, recording: Path) -> None:
    assert cli("info", recording).code == 4
    assert cli("info", "nothing").code == 3


ESCAPE = "a\x1b[2J[red]b\u202e"
SHOWN = "a\\x1b[2J[red]b\\u202e"


def test_control_characters_are_shown_escaped(cli: Cli, recording: Path) -> None:
    """Names and metadata of files that others wrote must not reach the terminal as control sequences or markup."""
    Path("set/closing[").mkdir(parents=True)  # with the file in it, a closing tag of rich
    cli("encode", recording, f"set/{ESCAPE}.codec")
    Path("set/closing[/x].codec").write_bytes(Path(f"set/{ESCAPE}.codec").read_bytes())
    Path(f"set/{ESCAPE}-2.codec").write_bytes(b"nothing")
    listed = cli("info", "set")
    assert listed.code == 1
    for text in (listed.out.decode(), cli("info", f"set/{ESCAPE}-2.codec").err, cli("encode", ESCAPE).err):
        assert SHOWN in text
        assert not {"\x1b", "\u202e"} & {*text}
    training = {"step": 3, "data": ESCAPE, "recipe": {"name": ESCAPE}, "numbers": {ESCAPE: {"snr": 3.0, "x": "y"}}}
    save_model("m.safetensors", tiny_model(), training=training)
    for options in ([], ["--all"]):
        text = cli("info", "m.safetensors", *options).out.decode()
        assert SHOWN in text
        assert "\x1b" not in text


def test_names_in_a_pipe_are_not_cut_off(cli: Cli, recording: Path) -> None:
    Path("set").mkdir()
    cli("encode", recording, f"set/{'n' * 150}.codec")
    assert f"{'n' * 150}.codec" in cli("info", "set").out.decode()


@pytest.mark.parametrize("training", [{"recipe": 3, "numbers": [1]}, {"recipe": {}, "numbers": {"a": 3}}, {}])
def test_training_facts_of_any_form(cli: Cli, training: dict[str, object]) -> None:
    save_model("m.safetensors", tiny_model(), training=training)
    assert cli("info", "m.safetensors").code == cli("info", "m.safetensors", "--all").code == 0


def test_deep_metadata_are_refused(cli: Cli) -> None:
    deep: object = 1
    for _ in range(900):
        deep = [deep]
    save_file(load_tiny(), "m.safetensors", metadata={"codec": json.dumps({"format": 1, "x": deep})})
    result = cli("info", "m.safetensors")
    assert (result.code, result.err.count("\n")) == (6, 1)


def load_tiny() -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tiny_model().state_dict().items()}
