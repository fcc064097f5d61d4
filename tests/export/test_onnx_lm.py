"""codec export of language models: the graphs in ONNX Runtime, compared with torch; the example that generates."""

import json
import re
import runpy
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.checkpoint import load_lm, load_model, save_lm
from codec.errors import CodecError, StorageError, UsageError
from codec.lm.base import CodecLM
from codec.lm.conditioning import Conditioning
from codec.lm.sampling import generate_frames
from tests.export.conftest import codec_command
from tests.helpers.language_models import random_tokens, some_conditioning, tiny_lm
from tests.tiny import CONFIG

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
from codec.export import onnx as export
from codec.export import onnx_lm

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
MODELS: dict[str, dict[str, Any]] = {
    "heads": {"pattern": {"kind": "flatten", "groups": [0, 1, 1]}, "context": 16, "guidance": 1.5},
    "depth": {"pattern": {"delays": [0, 1, 1]}, "depth": {"width": 12, "layers": 1, "heads": 2}, "text": True},
    "pixelcnn": {"family": "pixelcnn", "layers": 6, "context": 20, "temperature": 0.8},
}


# pixelcnn takes 15 s, and its graphs are of the kinds of the depth transformer's
PARAMS = [pytest.param(name, marks=pytest.mark.nightly if name == "pixelcnn" else []) for name in MODELS]


@pytest.fixture(scope="module", params=PARAMS)
def folder(request: pytest.FixtureRequest, exported: Path, made_once: Callable[..., Path]) -> Path:
    """A folder with lm.safetensors, and its export by the command; not to be written to."""

    def make(folder: Path) -> None:
        codec = load_model(exported / "tiny.safetensors")
        sizes = {"codebook_size": codec.codebook_sizes[0], "dim": CONFIG.dim}
        source = {"codec": "tiny", "weights_hash": codec.weights_hash} | sizes
        shutil.copy(exported / "tiny.safetensors", folder)  # an LM finds its codec beside it
        save_lm(folder / "lm.safetensors", tiny_lm(source=source, **MODELS[request.param]), training={})
        said = codec_command("export", folder / "lm.safetensors", "--onnx", folder)
        assert re.search(
            r"lm_step\.onnx.*; \d{4} codes are those of torch.*, logits within \de-0[5-9]$", said, re.MULTILINE
        )

    return made_once(request.param, make)


@pytest.fixture
def lm(folder: Path) -> CodecLM:
    return load_lm(folder / "lm.safetensors")


def graphs_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in onnx_lm.NAMES if (folder / name).exists()}


def logits_of_steps(graphs: onnx_lm.Graphs, tokens: Tensor, before: Tensor) -> Tensor:
    """Logits [batch, codebooks, steps, codebook_size + 1] of steps that are made to choose `tokens`."""
    steps = []
    for step_tokens in tokens.unbind(dim=2):
        hidden = graphs.forward_step(before)
        if graphs.codebook:
            stream = graphs.codebook_step()
            shifted = torch.cat([step_tokens[:, :1], step_tokens], dim=1)
            logits = [onnx_lm.logits_of(stream, hidden, one.numpy(), n) for n, one in enumerate(shifted.T[:-1])]
            hidden = torch.cat(logits, dim=1)
        steps.append(hidden)
        before = step_tokens
    return torch.stack(steps, dim=2)


@pytest.mark.parametrize("batch", [1, 3])
def test_steps_are_teacher_forcing(folder: Path, lm: CodecLM, batch: int) -> None:
    """The logits of all steps equal torch's of the whole sequence at once, beyond the context too."""
    tokens, conditioning = random_tokens(lm, batch, 40), some_conditioning(lm, batch)
    with torch.no_grad():
        expected = lm(tokens, conditioning)
    before = torch.full_like(tokens[:, :, 0], lm.special_token)
    found = logits_of_steps(onnx_lm.Graphs(graphs_in(folder), conditioning), tokens, before)
    assert torch.equal(found.isinf(), expected.isinf())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_row_may_start_alone(folder: Path, lm: CodecLM) -> None:
    """A row whose state is set to zeros continues as a new recording, whatever the other rows do."""
    tokens, conditioning = random_tokens(lm, 2, 12), some_conditioning(lm, 2)
    before = torch.full_like(tokens[:, :, 0], lm.special_token)
    graphs = onnx_lm.Graphs(graphs_in(folder), conditioning)
    logits_of_steps(graphs, tokens[:, :, :5], before)
    for state in graphs.stream.state.values():
        state[1] = 0
    before[0] = tokens[0, :, 4]
    rows = torch.stack([tokens[0, :, 5:], tokens[1, :, :-5]])
    found = logits_of_steps(graphs, rows, before)
    alone = Conditioning(*(part[1:] for part in conditioning))
    with torch.no_grad():
        whole, own = lm(tokens, conditioning)[0, :, 5:], lm(tokens[1:, :, :-5], alone)[0]
    torch.testing.assert_close(found, torch.stack([whole, own]), atol=1e-4, rtol=0)


def test_metadata_and_axes(folder: Path, lm: CodecLM) -> None:
    import onnx

    for name in graphs_in(folder):
        proto = onnx.load(folder / name)
        onnx.checker.check_model(proto)
        assert [one.version for one in proto.opset_import if not one.domain] == [export.OPSET]
        described = json.loads(next(one.value for one in proto.metadata_props if one.key == "codec"))
        assert (described["weights_hash"], described["model"]) == (lm.weights_hash, "lm")
        assert described["codec"] == {"model": "tiny", "weights_hash": lm.source.weights_hash}
        shapes = {
            one.name: [axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim]
            for one in proto.graph.input
        }
        states = {one["name"]: one["shape"] for one in described["states"]}
        assert {name: shape for name, shape in shapes.items() if name.startswith("state")} == states
        assert all(shape[0] == "batch" for name, shape in shapes.items() if name != "codebook")


def test_verify_finds_other_weights(folder: Path, lm: CodecLM) -> None:
    other = onnx_lm.exportable(lm)
    with torch.no_grad():
        next(one for name, one in other.named_parameters() if "lm_heads" in name).mul_(1.01)
    with pytest.raises(CodecError, match=r"logits differ by .* nothing was written"):
        onnx_lm.verify(other, graphs_in(folder))


def test_refusals(folder: Path, lm: CodecLM, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"lm_step\.onnx exists: pass --force"):
        onnx_lm.export_lm(lm, folder)
    with pytest.raises(UsageError, match=r"opset 17 cannot be exported: .* know opsets 18 to \d+$"):
        onnx_lm.export_lm(lm, tmp_path / "none", opset=17)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("seed", "frames"), [(0, 90), (1, None)])
def test_example(folder: Path, lm: CodecLM, seed: int, frames: int | None) -> None:
    """Without torch, the example generates the codes of our sampling: a length, or up to the end."""
    conditions = {"label": "yes", "speaker": "ben"} | ({"text": "ja"} if lm.takes_text else {})
    pieces = generate_frames(
        lm, seeds=[seed], conditioning=lm.conditioning([conditions]), frames=frames, stop=frames is None
    )
    expected = torch.cat(list(pieces), dim=2)[0]
    expected = expected[:, : int((expected[0] >= 0).sum())]
    generate = runpy.run_path(str(ROOT / "docs/examples/onnx_generate.py"))["generate"]
    assert np.array_equal(generate(folder, seed, frames, **conditions), expected.numpy())
    with pytest.raises(SystemExit, match=r"the model knows no {'label': 'maybe'}: it knows "):
        generate(folder, seed, frames, label="maybe")


def test_example_writes_audio(folder: Path, lm: CodecLM, exported: Path, tmp_path: Path) -> None:
    """With the exported codec; other codecs are refused."""
    if not folder.name.startswith("heads"):
        pytest.skip("one model is enough")
    main = runpy.run_path(str(ROOT / "docs/examples/onnx_generate.py"))["main"]
    main(folder, exported, tmp_path / "yes.wav", "label=yes", "seed=2", "seconds=0.5")
    pieces = generate_frames(lm, seeds=[2], conditioning=lm.conditioning([{"label": "yes"}]), frames=26, stop=False)
    expected = load_model(exported / "tiny.safetensors").decode(torch.cat(list(pieces), dim=2), length=4000)[0, 0]
    with wave.open(str(tmp_path / "yes.wav")) as file:
        samples = np.frombuffer(file.readframes(10_000), "<i2") / 32767
    assert np.abs(samples - expected.clamp(-1, 1).numpy()).max() < 1e-4
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    decoder = (tmp_path / "decoder.onnx").read_bytes()
    assert decoder.count(lm.source.weights_hash.encode()) == 1
    (tmp_path / "decoder.onnx").write_bytes(decoder.replace(lm.source.weights_hash.encode(), b"0" * 64))
    with pytest.raises(
        SystemExit, match=r"generates codes of tiny \(weights \w{12}\), and .* is of tiny \(weights 0{12}\): export"
    ):
        main(folder, tmp_path, tmp_path / "no.wav")


@pytest.mark.nightly  # takes 10 s; the models above have the same graphs
def test_the_shipped_language_model(tmp_path: Path) -> None:
    """Its logits and the codes of seeds are those of torch, for 200 frames."""
    said = codec_command("export", "digits-8k-lm", "--onnx", tmp_path)
    assert re.search(r"lm_step\.onnx; 6624 codes are those of torch, logits within \de-05$", said, re.MULTILINE)
    assert (tmp_path / "lm_step.onnx").stat().st_size < 1e7
