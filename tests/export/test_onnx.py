"""codec export: the graphs in ONNX Runtime, compared with torch; the example that decodes without torch."""

import copy
import hashlib
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.compression import header_of
from codec.errors import CodecError, StorageError, UsageError
from codec.io.bitstream import Writer
from codec.models.base import StepCodec
from tests.helpers.trial_family import trial_model

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
from codec.export import onnx as export
from codec.export import page
from tests.export.conftest import codec_command

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
pytestmark = pytest.mark.slow


def audio_like(model: StepCodec) -> torch.Tensor:
    """A tone (which has a mode), noise that fades to silence, and a click: [3, 1, 40 frames]."""
    time = torch.arange(40 * model.frame_spec.hop)
    rows = torch.zeros(3, len(time))
    rows[0] = 0.5 * torch.sin(2 * torch.pi * 650 / model.sample_rate * time)
    rows[1] = 0.2 * torch.randn(len(time), generator=torch.Generator().manual_seed(0)) * 2.0 ** (-time / 200)
    rows[2, 1000] = 1.0
    return rows[:, None]


@pytest.mark.parametrize("frames", [1, 7, 40])
@pytest.mark.parametrize(("rows", "num_codebooks"), [([0], 3), ([0, 1, 2], 3), ([0, 1, 2], 2), ([0, 1, 2], 1)])
def test_chunks_and_batches(exported: Path, model: StepCodec, rows: list[int], num_codebooks: int, frames: int) -> None:
    audio = audio_like(model)[rows]
    codes = model.encode(audio, num_codebooks=num_codebooks)
    decoded, _ = model.decode_step(codes, model.decoder_state(len(rows)))
    encode = export.Step(export.session(str(exported / "encoder.onnx")), len(rows))
    decode = export.Step(export.session(str(exported / "decoder.onnx")), len(rows))
    samples, hop = audio.numpy(), model.frame_spec.hop
    whole = np.pad(codes.numpy(), ((0, 0), (0, 3 - num_codebooks), (0, 0)), constant_values=-1)
    firsts, count = range(0, 40, frames), np.array(num_codebooks)
    found = [encode(samples[..., first * hop : (first + frames) * hop], num_codebooks=count) for first in firsts]
    assert np.array_equal(np.concatenate(found, axis=2), whole[..., :40])
    sound = [decode(whole[..., first : min(first + frames, 40)]) for first in firsts]
    assert np.abs(np.concatenate(sound, axis=2) - decoded[..., : 40 * hop].numpy()).max() < 1e-5


def test_metadata_and_axes(exported: Path, model: StepCodec) -> None:
    import onnx

    proto = onnx.load(exported / "encoder.onnx")
    onnx.checker.check_model(proto)
    assert [one.version for one in proto.opset_import if not one.domain] == [export.OPSET]
    described = json.loads(next(one.value for one in proto.metadata_props if one.key == "codec"))
    assert described["weights_hash"] == model.weights_hash
    assert (described["sample_rate"], described["hop"], described["num_codebooks"]) == (8000, 160, 3)
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)  # names of source files
    audio, count, *states = proto.graph.input
    assert (count.name, list(count.type.tensor_type.shape.dim)) == ("num_codebooks", [])
    axes = [[axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in (audio, *states)]
    assert axes[0] == ["batch", 1, "160*frames"]
    assert [(one.name, shape) for one, shape in zip(states, axes[1:], strict=True)] == [
        (one["name"], one["shape"]) for one in described["states"]
    ]


def test_verify_finds_other_weights(exported: Path, model: StepCodec) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.encoder.parameters()).neg_()
    with pytest.raises(CodecError, match="other codes than torch"):
        export.verify(other, exported)


def test_refusals(exported: Path, model: StepCodec, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"encoder\.onnx exists: pass --force"):
        export.export_onnx(model, exported)
    with pytest.raises(UsageError, match="does not give a frame of codes for each frame of audio"):
        export.export_onnx(trial_model(), tmp_path / "none")
    with pytest.raises(UsageError, match=r"opset 17 cannot be exported: .* know opsets 18 to \d+$"):
        export.export_onnx(model, tmp_path / "none", opset=17)
    assert not (tmp_path / "none").exists()


def test_a_family_that_torch_cannot_export(model: StepCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise torch.onnx.OnnxExporterError("step 1/3")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(UsageError, match="cannot export the steps of a model of the family causal"):
        export.export_onnx(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("interruption", [SystemExit(143), KeyboardInterrupt()])
def test_an_interruption_is_none_of_torch(
    model: StepCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    """torch catches what a signal raises within an export, and raises its own error from it."""

    def interrupted(*args: object, **options: object) -> None:
        try:
            raise interruption
        except BaseException as cause:
            raise torch.onnx.OnnxExporterError("step 1/3") from cause

    monkeypatch.setattr(torch.onnx, "export", interrupted)
    with pytest.raises(type(interruption)) as caught:
        export.export_onnx(model, tmp_path / "none")
    assert caught.value is interruption
    assert not (tmp_path / "none").exists()


@pytest.mark.nightly  # takes minutes
def test_sizes_of_the_shipped_model(tmp_path: Path) -> None:
    """They are those of the pages, and a web page loads at most 14 MB."""
    said = codec_command("export", "general-24k", "--onnx", tmp_path)
    contents = [(tmp_path / name).read_bytes() for name in export.FILES]
    sizes = [len(content) / 1e6 for content in contents]
    packed = sum(len(page.packed(content)) for content in contents) / 1e6
    assert packed < 14
    pages = {name: (EXAMPLES.parent / name).read_text("utf-8") for name in ("export.md", "live.md", "models.md")}
    parts = "the encoder has {:.1f} MB, the decoder {:.1f} MB and `shared.bin` {:.1f} MB: {:.1f} MB in all"
    assert parts.format(*sizes, sum(sizes)) in pages["export.md"]
    assert f"so they compress to {packed:.1f} MB" in pages["export.md"]
    assert f"{packed:.1f} MB for `general-24k` instead of {sum(sizes):.1f}" in pages["live.md"]
    assert f"{packed:.1f} MB packed for a [page]" in pages["models.md"]
    (codes,) = re.findall(r"; (\d+) codes are those of torch", said)
    assert f"no code of {int(codes):,} differs".replace(",", " ") in pages["export.md"]


def test_fp16_weights_are_exact() -> None:
    from onnx import TensorProto, helper, numpy_helper

    exact, other = np.arange(2000, dtype=np.float32), np.arange(2000, dtype=np.float32) + 1e-3
    graph = helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(exact, "exact"), numpy_helper.from_array(other, "other")]
    )
    export._halve(graph)
    assert [one.data_type for one in graph.initializer] == [TensorProto.FLOAT16, TensorProto.FLOAT]
    assert [(node.op_type, *node.input, *node.output) for node in graph.node] == [("Cast", "exact_half", "exact")]


def test_weights_of_both_graphs_are_stored_once(tmp_path: Path) -> None:
    """A runtime finds them in the third file; small tensors, and those of one graph, stay in it."""
    from onnx import TensorProto, helper, numpy_helper

    both, small = np.arange(2000, dtype=np.float16), np.arange(9, dtype=np.float32)

    def graph(factor: float) -> bytes:
        own = np.full((2000,), factor, np.float32)
        weights = [numpy_helper.from_array(one, name) for one, name in ((own, "own"), (both, "both"), (small, "small"))]
        nodes = [helper.make_node("Cast", ["both"], ["cast"], to=1), helper.make_node("Mul", ["cast", "own"], ["y"])]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2000])
        proto = helper.make_model(
            helper.make_graph(nodes, "g", [], [output], weights),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=9,
        )
        entry = proto.metadata_props.add()
        entry.key, entry.value = "codec", '{"format": 1}'
        content: bytes = proto.SerializeToString()
        return content

    contents = export.shared(graph(2.0), graph(3.0))
    assert contents[2] == both.tobytes()
    for name, content in zip(export.FILES, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    for name, factor in zip(export.GRAPHS, (2.0, 3.0), strict=True):
        session = export.session(str(tmp_path / name))
        np.testing.assert_array_equal(session.run(None, {})[0], factor * both.astype(np.float32))
        about = json.loads(session.get_modelmeta().custom_metadata_map["codec"])
        assert about["shared"] == {"file": export.SHARED, "sha256": hashlib.sha256(both.tobytes()).hexdigest()}


def test_decode_example(exported: Path, model: StepCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example reads two channels at another rate and decodes them as torch does; it refuses other weights."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    decode = runpy.run_path(str(EXAMPLES / "onnx_decode.py"))["decode"]
    codes = model.encode(audio_like(model)[:2], num_codebooks=2)
    other = copy.deepcopy(model)
    other.name, other.weights_hash = "tiny-1", "1" * 64
    for name, made_by in (("a", model), ("b", other)):
        with (tmp_path / f"{name}.codec").open("wb") as file:
            writer = Writer(file, header_of(made_by, 16_000, channels=2, num_codebooks=2), coder=0)
            writer.write(codes.numpy())
            writer.close(time=12_000)
    audio, rate = decode(exported, tmp_path / "a.codec")
    assert (audio.shape, rate) == ((2, 6000), 8000)
    assert np.abs(audio - model.decode(codes, length=6000)[:, 0].numpy()).max() < 1e-5
    with pytest.raises(SystemExit, match=r"was made by tiny-1 .*export the model that made the file"):
        decode(exported, tmp_path / "b.codec")
    monkeypatch.setattr("sys.argv", ["onnx_decode.py", str(exported), str(tmp_path / "none.codec"), "out.wav"])
    with pytest.raises(SystemExit, match=r"none\.codec cannot be read \(No such file or directory\)$"):
        runpy.run_path(str(EXAMPLES / "onnx_decode.py"), run_name="__main__")
    content = (exported / "decoder.onnx").read_bytes()
    (tmp_path / "shared.bin").write_bytes((exported / "shared.bin").read_bytes() + b"0")
    for damaged in (b"", content[: len(content) // 2], content):
        (tmp_path / "decoder.onnx").write_bytes(damaged)
        with pytest.raises(SystemExit, match=r"decoder\.onnx is damaged or not of codec export"):
            decode(tmp_path, tmp_path / "a.codec")
