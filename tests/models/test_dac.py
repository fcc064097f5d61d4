"""DAC: its receptive field, streams of blocks, and checkpoints of the original and of transformers."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.package.package_exporter import PackageExporter

import codec
from codec import foreign
from codec.errors import ConfigError, UnknownModel
from codec.models.convert import fold_weight_norm
from codec.models.dac import DAC, DACConfig
from codec.nn.quantize.factorized import FactorizedRVQ
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.checkpoints import scaled, theirs, weight_normed, write_folder

SMALL: dict[str, Any] = {"encoder_dim": 2, "decoder_dim": 16, "latent_dim": 8, "codebook_size": 64, "num_codebooks": 3}
ODD = DACConfig(sample_rate=8000, hop=30, encoder_rates=(2, 3, 5), decoder_rates=(5, 3, 2), codebook_dim=4, **SMALL)
KWARGS: dict[str, Any] = {  # as in the files of the original
    "encoder_dim": 2,
    "encoder_rates": [2, 3, 5],
    "latent_dim": 8,
    "decoder_dim": 16,
    "decoder_rates": [5, 3, 2],
    "n_codebooks": 3,
    "codebook_size": 64,
    "codebook_dim": 4,
    "quantizer_dropout": 0.5,
    "sample_rate": 8000,
}


def model(config: DACConfig = ODD) -> DAC:
    built = scaled(DAC(config))
    assert isinstance(built, DAC)
    return built


MODEL = model()


def noise(*shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(2, 4, 8, 8), (2, 4, 5, 8), (3, 3)], ids=str)
def test_the_receptive_field_is_that_of_the_gradient(rates: tuple[int, ...]) -> None:
    hop = int(torch.tensor(rates).prod())
    config = DACConfig(sample_rate=16000, hop=hop, encoder_rates=rates, decoder_rates=rates[::-1], **SMALL)
    net = model(config)
    field = net.receptive_field()
    middle, frames = 25, 51
    audio = noise(1, 1, frames * hop).requires_grad_()
    torch.autograd.backward(net.analyze(audio)[..., middle].sum())
    assert audio.grad is not None
    reached = audio.grad[0, 0].nonzero()[:, 0] // hop - middle
    assert (-int(reached.min()), int(reached.max())) == field.encoder
    latents = noise(1, 8, frames).requires_grad_()
    torch.autograd.backward(net.synthesize(latents)[..., middle * hop : (middle + 1) * hop].sum())
    assert latents.grad is not None
    reached = latents.grad[0].abs().sum(dim=0).nonzero()[:, 0] - middle
    assert (-int(reached.min()), int(reached.max())) == field.decoder


@pytest.mark.slow
@pytest.mark.parametrize("ends", [[0, 1], [0, 500, 600], [0, 599, 2400, 3999], [0, 4000]], ids=str)
def test_streams_of_blocks_equal_the_whole_signal(ends: list[int]) -> None:
    time = ends[-1]
    audio = noise(2, 1, time)
    codes = MODEL.encode(audio)
    encoder = StreamEncoder(MODEL, batch=2)
    parts = [encoder.push(audio[..., begin:end]) for begin, end in pairwise(ends)]
    assert torch.equal(torch.cat([*parts, encoder.flush()], dim=2), codes)
    decoder = StreamDecoder(MODEL, batch=2, length=time)
    blocks = [decoder.push(part) for part in torch.split(codes, 7, dim=2)]
    torch.testing.assert_close(
        torch.cat([*blocks, decoder.flush()], dim=2), MODEL.decode(codes, length=time), rtol=0, atol=1e-4
    )


def test_codes_are_diverse() -> None:
    codes = MODEL.encode(noise(1, 1, 30 * 500))
    assert all(len(codebook.unique()) > 30 for codebook in codes[0])


def test_lookup_is_by_direction_and_decoding_by_the_raw_entry() -> None:
    quantizer = MODEL.quantizer
    assert isinstance(quantizer, FactorizedRVQ)
    stage = quantizer.stages[0]
    inner = stage.codebook[5][None, :, None]  # [batch, codebook_dim, frames]
    assert stage.nearest(0.01 * inner).item() == 5
    assert stage.nearest(100 * inner).item() == 5
    torch.testing.assert_close(stage.entries(torch.tensor([[5]])), inner)


def test_the_gradient_reaches_every_part() -> None:
    net = model().train()
    output = net(noise(2, 1, 600))
    torch.autograd.backward(output.audio.square().mean() + output.quantized.commitment + output.quantized.codebook)
    assert not [
        name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]


# checkpoints


def original(path: Path, *, normed: bool = True) -> Path:
    tensors = theirs(MODEL, "descript-audio-codec")
    if normed:
        tensors = weight_normed(tensors, g="weight_g", v="weight_v")
    torch.save({"state_dict": tensors, "metadata": {"kwargs": KWARGS}}, path)
    return path


@pytest.mark.slow
def test_a_file_of_the_original_gives_the_same_model(tmp_path: Path) -> None:
    net = codec.load(original(tmp_path / "weights.pth"))
    assert net.name == "weights"
    assert net.config == ODD
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, MODEL.state_dict()[name])
    folded = codec.load(original(tmp_path / "folded.pth", normed=False))
    audio = noise(1, 1, 3000)
    assert torch.equal(folded.encode(audio), MODEL.encode(audio))


@pytest.mark.slow
def test_a_folder_of_transformers_gives_the_same_model(tmp_path: Path) -> None:
    config = {
        "model_type": "dac",
        "encoder_hidden_size": 2,
        "downsampling_ratios": [2, 3, 5],
        "decoder_hidden_size": 16,
        "upsampling_ratios": [5, 3, 2],
        "n_codebooks": 3,
        "codebook_size": 64,
        "codebook_dim": 4,
        "sampling_rate": 8000,
    }
    plain = model(DACConfig(**(ODD.model_dump() | {"latent_dim": None})))  # transformers cannot choose it
    tensors = theirs(plain, "transformers DacModel")
    names = {"g": "parametrizations.weight.original0", "v": "parametrizations.weight.original1"}
    net = codec.load(write_folder(tmp_path / "dac", weight_normed(tensors, **names), config))
    assert net.name == "dac"
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name])


def test_weight_norm_is_folded_as_torch_computes_it() -> None:
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(3, 2, 4))
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(2)
    tensors = dict(conv.state_dict())
    fold_weight_norm(tensors)
    assert tensors.keys() == {"weight", "bias"}
    torch.testing.assert_close(tensors["weight"], conv.weight.detach())


@pytest.mark.slow
def test_the_weights_hash_is_that_of_our_own_file(tmp_path: Path) -> None:
    net = codec.load(original(tmp_path / "weights.pth"))
    codec.checkpoint.save_model(tmp_path / "ours.safetensors", net, training={})
    assert codec.load(tmp_path / "ours.safetensors").weights_hash == net.weights_hash
    assert codec.pretrained.describe(tmp_path / "weights.pth").weights_hash == net.weights_hash


@pytest.mark.slow
def test_incomplete_and_other_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    tensors = theirs(MODEL, "descript-audio-codec")
    lost = {name: tensor for name, tensor in tensors.items() if name != "decoder.model.0.weight"}
    wrong = tensors | {"decoder.model.0.weight": torch.zeros(2, 2, 2)}
    more = tensors | {"decoder.model.99.weight": torch.zeros(2)}
    meta = {"metadata": {"kwargs": KWARGS}}
    for content, words in (
        ({"state_dict": lost, **meta}, "missing: decoder.model.0"),
        ({"state_dict": more, **meta}, "not part of such a model: decoder.model.99.weight"),
        ({"state_dict": wrong, **meta}, "decoder.conv_in.weight"),
        ({"state_dict": tensors}, "without its metadata: give the file"),
        ({"state_dict": {"a": torch.zeros(1)}}, "not a checkpoint of a known codec family"),
        ({"metadata": {}}, "holds no tensors"),
        ([1], "holds a list"),
        ({"state_dict": tensors | {"encoder.block.0.bias": torch.full((2,), torch.nan)}, **meta}, "not finite"),
    ):
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(UnknownModel, match=words) as raised:
            codec.load(tmp_path / "bad.pth")
        assert "\n" not in str(raised.value)


def test_code_in_a_pickle_is_not_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "path": Path("harmless")}, tmp_path / "object.pth")
    with pytest.raises(UnknownModel, match="not executed"):
        codec.load(tmp_path / "object.pth")


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, its files are not gone
def test_files_with_code_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with PackageExporter(tmp_path / "package.pth") as exporter:  # as `DAC.save` of the package
        exporter.save_pickle("DAC", "model.pkl", {"weight": torch.zeros(1)})
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(tmp_path / "script.pt"))
    for name in ("package.pth", "script.pt"):
        with pytest.raises(
            UnknownModel, match=f"{name} holds a model with its code, .*: give a file of its state_dict"
        ):
            codec.load(tmp_path / name)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = original(tmp_path / "weights.pth")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UnknownModel, match=r"not a complete checkpoint \([^.]*\): download it again$"):
        codec.load(path)


def test_own_files_are_not_foreign(tmp_path: Path) -> None:
    codec.checkpoint.save_model(tmp_path / "own.safetensors", MODEL, training={})
    assert not foreign.is_foreign(tmp_path / "own.safetensors")
    assert not foreign.is_foreign(tmp_path / "none.safetensors")


def test_rates_that_do_not_make_the_hop_are_refused() -> None:
    with pytest.raises(ConfigError, match="set hop = 512"):
        DACConfig.from_data({"hop": 320})
