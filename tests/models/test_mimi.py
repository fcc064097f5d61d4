"""Mimi: its invariants of streaming, its receptive field, and checkpoints of moshi and of transformers."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import codec
from codec.errors import ConfigError, UnknownModel
from codec.models.mimi import Mimi, MimiConfig
from codec.nn.conv import CausalConv1d
from codec.nn.padded import elu
from codec.nn.quantize.split import SplitRVQ
from codec.nn.seanet import CausalConvTranspose1d, Pieces
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.checkpoints import (
    moshi_tensors,
    scaled,
    transformers_mimi_config,
    transformers_mimi_tensors,
    write_folder,
)

HOP = 60
SMALL = MimiConfig(
    sample_rate=24000,
    hop=HOP,
    num_codebooks=4,
    codebook_size=64,
    codebook_dim=8,
    filters=4,
    rates=(2, 3, 5),
    width=128,
    layers=2,
    heads=2,
    hidden=32,
    context=5,
)


def model(config: MimiConfig = SMALL) -> Mimi:
    built = scaled(Mimi(config))
    assert isinstance(built, Mimi)
    for number, stage in enumerate((*built.quantizer.semantic.rvq.stages, *built.quantizer.acoustic.rvq.stages)):
        stage.codebook.copy_(0.3 * torch.randn(64, 8, generator=torch.Generator().manual_seed(number)))
        stage.cluster_size.uniform_(0.5, 3)
    return built


def noise(*shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


MODEL = model()


def test_the_receptive_field_is_that_of_the_gradient() -> None:
    field = MODEL.receptive_field()
    frames = max(field.encoder.past, field.decoder.past) + 3
    audio = noise(1, 1, frames * HOP).requires_grad_()
    torch.autograd.backward(MODEL.analyze(audio)[..., -1].sum())
    assert audio.grad is not None
    assert int(audio.grad[0, 0].nonzero()[0]) // HOP == frames - 1 - field.encoder.past
    latents = noise(1, 128, frames).requires_grad_()
    torch.autograd.backward(MODEL.synthesize(latents)[..., -HOP:].sum())
    assert latents.grad is not None
    assert int(latents.grad[0].abs().sum(dim=0).nonzero()[0]) == frames - 1 - field.decoder.past


@pytest.mark.parametrize("ends", [[0, 1], [0, 60, 120], [0, 59, 61, 3999], [0, 4000, 4800]], ids=str)
def test_streams_equal_the_whole_signal(ends: list[int]) -> None:
    time = ends[-1]
    audio = noise(2, 1, time)
    codes = MODEL.encode(audio)
    encoder = StreamEncoder(MODEL, batch=2)
    parts = [encoder.push(audio[..., begin:end]) for begin, end in pairwise(ends)]
    assert torch.equal(torch.cat([*parts, encoder.flush()], dim=2), codes)
    decoder = StreamDecoder(MODEL, batch=2, length=time)
    blocks = [decoder.push(part) for part in torch.split(codes, 7, dim=2)]
    torch.testing.assert_close(
        torch.cat([*blocks, decoder.flush()], dim=2), MODEL.decode(codes, length=time), rtol=0, atol=1e-5
    )


def test_what_is_computed_for_training_is_what_is_computed_without() -> None:
    audio = noise(2, 1, 70 * HOP)  # more frames than one step of a whole signal
    latents = MODEL.analyze(audio)
    with torch.no_grad():
        torch.testing.assert_close(MODEL.analyze(audio), latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(MODEL.synthesize(latents), MODEL.synthesize(latents.detach()), rtol=0, atol=1e-5)
    torch.testing.assert_close(MODEL.synthesize(latents), MODEL.synthesize(latents.detach()))


def test_codes_are_diverse_and_prefixes_are_the_first_codebooks() -> None:
    audio = noise(1, 1, 200 * HOP)
    codes = MODEL.encode(audio)
    assert all(len(codebook.unique()) > 20 for codebook in codes[0])
    for number in range(1, 5):
        assert torch.equal(MODEL.encode(audio, num_codebooks=number), codes[:, :number])


def test_the_semantic_codebook_and_the_others_quantize_the_same_latents() -> None:
    quantizer = MODEL.quantizer
    assert isinstance(quantizer, SplitRVQ)
    latents = noise(1, 128, 9)
    with torch.no_grad():
        first = quantizer.semantic.rvq.decode(quantizer.semantic.rvq.encode(quantizer.semantic.in_proj(latents)))
        others = quantizer.acoustic.rvq.decode(quantizer.acoustic.rvq.encode(quantizer.acoustic.in_proj(latents)))
        expected = quantizer.semantic.out_proj(first) + quantizer.acoustic.out_proj(others)
        torch.testing.assert_close(quantizer.decode(quantizer.encode(latents)), expected)
        codes = quantizer.encode(latents)
        vectors = quantizer.codebook_vectors()
        chosen = sum(vectors[number][codes[0, number]] for number in range(4))
        assert isinstance(chosen, Tensor)
        torch.testing.assert_close(chosen.T[None], expected)


def test_training_moves_every_part() -> None:
    net = model().train()
    before = net.quantizer.acoustic.rvq.stages[0].codebook.clone()
    output = net(noise(2, 1, 20 * HOP), torch.tensor([4, 1]))
    assert (output.quantized.codes[1, 1:] == -1).all()
    torch.autograd.backward(output.audio.square().mean() + output.quantized.commitment)
    assert not [
        name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    net.quantizer.update_codebook([output.quantized])
    assert not torch.equal(net.quantizer.acoustic.rvq.stages[0].codebook, before)


def test_one_codebook_for_all_items_leaves_the_others_out() -> None:
    latents = noise(2, 128, 5)
    quantized = MODEL.quantizer(latents, torch.tensor([1, 1]))
    torch.testing.assert_close(quantized.latents, MODEL.quantizer.decode(quantized.codes[:, :1]), rtol=0, atol=1e-6)


# layers


@pytest.mark.parametrize(("kernel", "stride"), [(8, 4), (10, 5), (1, 1), (3, 1)])
@pytest.mark.parametrize("frames", [1, 4, 300])
def test_products_equal_convolutions(kernel: int, stride: int, frames: int) -> None:
    conv = CausalConv1d(6, 5, kernel=kernel, stride=stride)
    x = noise(2, 6, frames * stride)
    expected = conv(x)  # with a gradient, by the library
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("frames", [1, 4, 300])
def test_transposed_convolutions_are_those_of_torch_without_the_end(groups: int, frames: int) -> None:
    layer = CausalConvTranspose1d(6, 6, kernel=8, stride=4, groups=groups, elu=False)
    x = noise(2, 6, frames)
    expected = torch.nn.functional.conv_transpose1d(x, layer.weight, layer.bias, stride=4, groups=groups)[..., :-4]
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)


def test_pieces_equal_the_whole() -> None:
    layers = [CausalConv1d(1, 3, kernel=7), CausalConv1d(3, 2, kernel=4, stride=2)]
    x = noise(1, 1, 100)
    with torch.no_grad():
        torch.testing.assert_close(Pieces(layers, size=14)(x), Pieces(layers, size=1000)(x), rtol=0, atol=1e-6)


def test_elu_is_that_of_torch() -> None:
    x = torch.linspace(-20, 20, 4001)
    with torch.no_grad():
        torch.testing.assert_close(elu(x), torch.nn.functional.elu(x), rtol=0, atol=6e-8)


# checkpoints


@pytest.mark.parametrize("old_names", [True, False])
def test_a_file_of_moshi_gives_the_same_model(tmp_path: Path, old_names: bool) -> None:
    net = model(MimiConfig(**(SMALL.model_dump() | {"context": 250})))  # the file does not say it
    save_file(moshi_tensors(net, old_names=old_names), tmp_path / "tokenizer.safetensors")
    loaded = codec.load(tmp_path / "tokenizer.safetensors", device="cpu")
    assert loaded.config == net.config
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name])


def test_a_folder_of_transformers_gives_the_same_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mimi", transformers_mimi_tensors(MODEL), transformers_mimi_config(SMALL))
    loaded = codec.load(folder, device="cpu")
    assert (loaded.name, loaded.config) == ("mimi", SMALL)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, MODEL.state_dict()[name])


def test_incomplete_and_other_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    tensors = moshi_tensors(MODEL)
    name = "encoder_transformer.transformer.layers.1.norm2.weight"
    lost = {key: tensor for key, tensor in tensors.items() if "layers.1.norm2" not in key}
    for content, words in (
        (lost, f"missing: {name.removesuffix('.weight')}"),
        (tensors | {"decoder.model.99.weight": torch.zeros(2)}, "not part of such a model: decoder.model.99.weight"),
        (tensors | {name: torch.zeros(2)}, "encoder.transformer.blocks.1.mlp_norm.weight"),
        ({key: value for key, value in tensors.items() if "linear1" not in key}, "without a usable configuration"),
    ):
        save_file(content, tmp_path / "bad.safetensors")
        with pytest.raises(UnknownModel, match=words):
            codec.load(tmp_path / "bad.safetensors", device="cpu")
    config = transformers_mimi_config(SMALL) | {"num_semantic_quantizers": 2}
    folder = write_folder(tmp_path / "mimi", transformers_mimi_tensors(MODEL), config)
    with pytest.raises(UnknownModel, match="num_semantic_quantizers = 2, but only 1 is supported"):
        codec.load(folder, device="cpu")


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="set a multiple of them"):
        MimiConfig.from_data({"hop": 1000})
    with pytest.raises(ConfigError, match="3 heads of an even size"):
        MimiConfig.from_data({"heads": 3})
