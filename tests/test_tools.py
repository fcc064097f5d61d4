"""tools/: --help of each, and what some of them print and write."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codec.checkpoint import load_model, read_card, save_model
from codec.errors import ConfigError
from codec.evaluation.signal_checks import AIMS
from codec.io import entropy
from codec.io.entropy_model import EntropyModel
from codec.models.base import Codec
from codec.models.causal import CausalCodec
from tests.tiny import tiny_model

TOOLS = sorted((Path(__file__).parents[1] / "tools").glob("*.py"))


def run(tool: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(tool), *arguments])
    monkeypatch.syspath_prepend(str(tool.parent))
    runpy.run_path(str(tool), run_name="__main__")


@pytest.mark.parametrize("tool", TOOLS, ids=[tool.stem for tool in TOOLS])
def test_every_tool_has_a_help_page(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tool, monkeypatch, "--help")
    assert ended.value.code == 0
    assert f"usage: {tool.name}" in capsys.readouterr().out


def test_all_tools_are_found() -> None:
    assert {tool.stem for tool in TOOLS} == {
        "api_reference",
        "bench",
        "bench_data",
        "bench_format",
        "bench_lm",
        "bench_peers",
        "bench_train",
        "check_signals",
        "compare_lms",
        "format_report",
        "fuzz",
        "pack_weights",
        "plot_rates",
        "reduce_dim",
        "refit_codebooks",
        "train_entropy",
    }


def test_the_delay_of_a_pipe_is_that_of_its_oldest_sample_and_counts_once_no_queue_is_left() -> None:
    tool = runpy.run_path(str(next(tool for tool in TOOLS if tool.stem == "bench")))
    delays_of, live_since, rate = tool["delays_of"], tool["live_since"], tool["RATE"]
    packet, own, begins = 0.5, 0.06, 3.0  # s; a queue of the first three seconds is worked off twice as fast as it grew

    def read(speed: float) -> list[tuple[float, int]]:
        """Packets in two pieces, decoded `speed` times as fast as they play, with times from 100 s on."""
        reads, at = [], begins
        for number in range(20):
            at = max(at + packet / speed, (number + 1) * packet + own)
            middle, end = round((number + 0.5) * packet * rate), round((number + 1) * packet * rate)
            reads += [(100 + at, middle), (100 + at + 0.01, end)]
        return reads

    delays = delays_of(read(2), 100.0, packet)
    assert [round(delay - packet - own + 0.01, 9) for _, delay in delays[-5:]] == [0.0] * 5  # from blocks of 10 ms
    assert delays[0][1] == pytest.approx(begins + packet / 2 - 0.01)
    live = live_since(delays, packet)
    assert live == pytest.approx(12 * packet + own)  # packet 11 waits for the queue up to 3 + 11 * 0.25 s
    assert live_since(delays_of(read(0.9), 100.0, packet), packet) is None


def test_bench_measures_an_untrained_model_of_any_family(monkeypatch: pytest.MonkeyPatch) -> None:
    main = runpy.run_path(str(next(tool for tool in TOOLS if tool.stem == "bench")))["main"]
    found: list[Codec] = []
    monkeypatch.setitem(main.__globals__, "report_memory", lambda model, *_: found.append(load_model(Path(model))))
    keys = ["filters=2", "dim=4", "num_codebooks=3"]
    monkeypatch.setattr(sys, "argv", ["bench.py", "--no-speed", "--untrained", "encodec", *keys])
    main()
    (model,) = found
    assert (model.config.family, model.num_codebooks) == ("encodec", 3)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--no-speed", "--untrained", "encodec", "filter=2"])
    with pytest.raises(ConfigError, match="did you mean filters"):
        main()


@pytest.mark.parametrize("bits", [2, 5, 9])
def test_weights_are_rounded_to_the_nearest(bits: int) -> None:
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0)).half().float()
    mantissa, exponent = torch.frexp(exact)  # of 0.5 to 1, so the first bit is not stored
    steps = mantissa * 2 ** (bits + 1)
    nearest = torch.ldexp(steps.sign() * (steps.abs() + 0.5).floor(), exponent - bits - 1)
    tool = runpy.run_path(str(next(tool for tool in TOOLS if tool.stem == "pack_weights")))
    assert torch.equal(tool["round_mantissa"](exact, bits), nearest)
    assert (nearest != exact).any()


def test_the_speed_of_generation_is_measured_for_every_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = next(tool for tool in TOOLS if tool.stem == "bench_lm")
    sizes = ["--width", "32", "--layers", "1", "--heads", "2", "--codebooks", "2"]
    few = ["--frames", "3", "--rounds", "1", "--batch", "1", "--threads", "1", "--json", str(tmp_path / "speeds.json")]
    run(tool, monkeypatch, *sizes, *few)
    rows = json.loads((tmp_path / "speeds.json").read_text())
    assert [row["name"] for row in rows] == [
        "delay",
        "flatten",
        "depth",
        "delay, sampled",
        "delay, audio",
    ]
    assert all(row["step_ms"] > 0 and row["weights"] > 0 for row in rows)
    assert "1 thread, batch 1" in capsys.readouterr().out


def test_check_signals_prints_a_line_and_writes_a_row_for_each_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = next(tool for tool in TOOLS if tool.stem == "check_signals")
    save_model(tmp_path / "tiny.safetensors", tiny_model(), training={})
    run(tool, monkeypatch, str(tmp_path / "tiny.safetensors"), "--quick", "--json", str(tmp_path / "figures.json"))
    heading, *lines, summary = capsys.readouterr().out.splitlines()
    assert "full = 3, half = 1, quarter = 1 codebooks" in heading
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert [line[:25].rstrip() for line in lines] == [row["check"] for row in rows]
    assert {check for check, _ in AIMS} - {row["check"] for row in rows} == {"periodicity, rain"}
    beeps = next(row for row in rows if row["check"] == "beeps")
    assert beeps["aims"] == {"worst_db": "±3"}
    assert beeps["missed"] == ["worst_db"]
    assert sum(len(row["missed"]) for row in rows) == int(summary.split()[0])


def test_refitted_codebooks_leave_less_of_other_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tool,) = (tool for tool in TOOLS if tool.stem == "refit_codebooks")
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 160_000).clip(-1, 1), 8000)
    model = tiny_model()
    save_model(tmp_path / "tiny.safetensors", model, training={"step": 2})
    options = ["--out", str(tmp_path / "new.safetensors"), "--prefixes", "2:1,3:1", "--rounds", "2"]
    run(tool, monkeypatch, str(tmp_path / "tiny.safetensors"), str(tmp_path), *options)
    counted, *shares, _ = capsys.readouterr().out.splitlines()
    assert counted == "2000 frames, 1900 used, 100 held out"
    left = [[float(share.split(": ")[-1]) for share in line.split(", ")] for line in shares]
    assert len(left) == 3
    assert all(after < 0.9 * before for before, after in zip(left[0], left[2], strict=True))
    new = load_model(tmp_path / "new.safetensors")
    assert read_card(tmp_path / "new.safetensors").training == {"step": 2, "refit": {"frames": 1900, "rounds": 2}}
    changed = {name for name, tensor in new.state_dict().items() if not tensor.equal(model.state_dict()[name])}
    assert changed == {f"quantizer.residual.stages.{stage}.codebook" for stage in (0, 1)}


def test_latents_of_fewer_dimensions_have_the_same_codes_and_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tool,) = (tool for tool in TOOLS if tool.stem == "reduce_dim")
    model, random = tiny_model(), torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(model.config.dim, 3, generator=random)).Q
    for name, tensor in model.state_dict().items():
        if name.startswith("quantizer.residual.") and name.endswith(".codebook"):
            tensor.copy_(tensor @ axes @ axes.T)  # entries in three dimensions
    for layer in (model.encoder.out_proj, model.decoder.gain, model.decoder.head):  # zero before training
        layer.weight.data.normal_(0, 0.1, generator=random)
    save_model(tmp_path / "tiny.safetensors", model, training={"step": 2})
    for dim, refused in ((model.config.dim, "use 1 to"), (0, "use 1 to")):
        with pytest.raises(SystemExit, match=refused):
            run(tool, monkeypatch, str(tmp_path / "tiny.safetensors"), str(dim), "--out", str(tmp_path / "no"))
    run(tool, monkeypatch, str(tmp_path / "tiny.safetensors"), "3", "--out", str(tmp_path / "new.safetensors"))
    assert float(capsys.readouterr().out.split("without ")[1].split()[0]) < 1e-6
    assert read_card(tmp_path / "new.safetensors").training == {"step": 2, "reduced_dim": 3}
    new = load_model(tmp_path / "new.safetensors")
    audio = torch.randn(1, 1, 40 * model.frame_spec.hop, generator=random) * 0.1
    codes = model.encode(audio)
    assert isinstance(new, CausalCodec)
    assert new.config.dim == 3
    assert new.encode(audio).equal(codes)
    assert len(set(codes[:, 1:].flatten().tolist())) > 4
    torch.testing.assert_close(new.decode(codes), model.decode(codes), atol=1e-5, rtol=0)


def test_rates_are_plotted_with_baselines_and_published_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tool,) = (tool for tool in TOOLS if tool.stem == "plot_rates")

    def row(group: str, codec: str, kbps: float, pesq: float | None, num_codebooks: int | None) -> dict[str, object]:
        measures = {"payload_kbps": kbps, "file_kbps": kbps + 0.3, "pesq_wb": pesq, "mel_dac": 2.0, "stft_dac": None}
        name = {"all": "all", "domain": "speech", "set": "digits"}[group]
        return {
            "group": group,
            "name": name,
            "codec": codec,
            "measures": measures,
            "codebooks": [{}] * (num_codebooks or 0),
        }

    rows = [
        row("domain", "mine", 0.5 * num_codebooks, 1 + 0.1 * num_codebooks, num_codebooks)
        for num_codebooks in (12, 1, 6)
    ]
    rows += [row("domain", f"opus:{kbps} (libopus 1.3.1)", kbps * 0.95, 2.0, None) for kbps in (6, 12)]
    rows += [row("domain", "original", 384.0, 4.64, None), row("set", "mine", 0.5, None, 1)]
    Path(tmp_path, "a.json").write_text(json.dumps({"model": "mine", "rows": rows}))
    data = [str(tmp_path / "a.json"), "--out"]
    run(tool, monkeypatch, *data, str(tmp_path / "new" / "a.svg"))
    run(tool, monkeypatch, *data, str(tmp_path / "b.svg"))
    text = Path(tmp_path, "new", "a.svg").read_text("utf-8")
    assert text == Path(tmp_path, "b.svg").read_text("utf-8")
    for label in ("mine", "opus (libopus 1.3.1)", "DAC (published, other recordings)", "PESQ-wb", "mel_dac"):
        assert label in text, label
    assert "original" not in text
    with pytest.raises(SystemExit):
        run(tool, monkeypatch, *data, str(tmp_path / "c.svg"), "--measures", "stft_dac")
    assert "no stft_dac of speech: the rows are of digits, speech" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_for_entropy_coding_learns_what_follows_what(capsys: pytest.CaptureFixture[str]) -> None:
    tool = runpy.run_path(str(next(tool for tool in TOOLS if tool.stem == "train_entropy")), run_name="tool")
    model = tiny_model()
    generator = np.random.default_rng(0)
    clips = []
    for _ in range(40):
        codes = np.empty((3, 40), np.int64)
        codes[0] = (generator.integers(20) + np.arange(40) * 7 + generator.integers(2, size=40)) % 20
        codes[1] = (codes[0] * 3 + generator.integers(2, size=40)) % 20
        codes[2] = generator.integers(20, size=40)
        clips.append(("walk", codes))
    network = EntropyModel(tool["fit"](clips[:30], model, steps=40))
    assert network.sizes == model.codebook_sizes
    sizes = [tool["sizes_of"](codes, network.sizes, network) for _, codes in clips[30:]]
    adaptive, modeled, information = (
        sum(getattr(size, name) for size in sizes) for name in ("adaptive", "model", "information")
    )
    assert modeled < 0.9 * adaptive
    assert information - 80 < modeled < information + 90  # a byte for each of ten packets
    lines = list(tool["report"](clips[30:], model, network))
    assert len(lines) == 2 + 2  # the set and all, with three codebooks


def test_sizes_are_those_of_the_files() -> None:
    tool = runpy.run_path(str(next(tool for tool in TOOLS if tool.stem == "format_report")), run_name="tool")
    header = tool["header_of"](tiny_model(), 8000, 1, 3, 1.0)
    codes = np.random.default_rng(0).integers(0, 20, (1, 3, 101))
    sizes = tool["sizes"](codes, header)
    assert sizes["codes"] == -(-101 * 15 // 8)
    assert sizes["none"] - sizes["codes"] < 150
    assert sizes[".dac"] == 606
    assert sizes["version 1"] == 93 + 6 + 60 + sizes["codes"]


def test_the_format_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "tiny.safetensors", tiny_model(), training={})
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 12_000), 8000)
    tool = next(tool for tool in TOOLS if tool.stem == "bench_format")
    options = ["--model", str(tmp_path / "tiny.safetensors"), "--seconds", "40", "--rounds", "1"]
    run(tool, monkeypatch, str(tmp_path / "a.wav"), *options)
    printed = capsys.readouterr().out
    assert printed.count("none       ") == 1
    assert "decode 10 s of 0.0 h: " in printed
    assert printed.count("x real time") == 12
    assert "1 codebooks of --vbr 1: " in printed


def test_mutated_files_raise_nothing_but_codec_errors() -> None:
    tool = runpy.run_path(str(next(tool for tool in TOOLS if tool.stem == "fuzz")), run_name="tool")
    files, random = tool["corpus"](), np.random.default_rng(0)
    assert len(files) == 16
    names = {function.__qualname__ for function in tool["functions_of"](entropy)}
    assert names >= {"encode", "_Codebook.push", "_Occurred.grown"}
    assert "varint" not in names
    for data in files:
        tool["read"](data)
    for _ in range(60):
        tool["read"](tool["mutated"](files, random))
