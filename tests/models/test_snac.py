"""SNAC: its receptive field, streams of blocks, its columns of codes, and checkpoints of the package."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import codec
from codec.errors import ConfigError, UnknownModel, UsageError
from codec.models.snac import SNAC, SNACConfig
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.checkpoints import scaled, theirs, weight_normed

SMALL: dict[str, Any] = {"encoder_rates": (2, 3), "decoder_rates": (3, 2), "codebook_size": 64, "codebook_dim": 4}
PLAIN = SNACConfig(sample_rate=8000, hop=24, encoder_dim=4, decoder_dim=16, **SMALL)
WINDOWED = SNACConfig(
    sample_rate=8000, hop=24, encoder_dim=16, decoder_dim=64, strides=(4, 2, 2, 1), num_codebooks=9, window=16, **SMALL
)


def model(config: SNACConfig = PLAIN) -> SNAC:
    built = scaled(SNAC(config))
    assert isinstance(built, SNAC)
    return built


MODELS = {"plain": model(), "windowed": model(WINDOWED)}


def noise(*shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_the_receptive_field_is_that_of_the_gradient() -> None:
    net, hop, middle, frames = MODELS["plain"], 24, 25, 51
    field = net.receptive_field()
    audio = noise(1, 1, frames * hop).requires_grad_()
    torch.autograd.backward(net.analyze(audio)[..., middle].sum())
    assert audio.grad is not None
    reached = audio.grad[0, 0].nonzero()[:, 0] // hop - middle
    assert (-int(reached.min()), int(reached.max())) == field.encoder
    latents = noise(1, 4 * 16, frames).requires_grad_()
    torch.autograd.backward(net.synthesize(latents)[..., middle * hop : (middle + 1) * hop].sum())
    assert latents.grad is not None
    reached = latents.grad[0].abs().sum(dim=0).nonzero()[:, 0] - middle
    assert (-int(reached.min()), int(reached.max())) == field.decoder


def test_nothing_outside_of_the_receptive_field_matters_with_windows() -> None:
    net, hop, frames = MODELS["windowed"], 24, 64
    field = net.receptive_field()
    audio = noise(1, 1, frames * hop)
    codes = net.encode(audio)
    for frame in range(28, 32):  # every place in a window
        changed = audio.clone()
        changed[..., : (frame - field.encoder.past) * hop] = 1
        changed[..., (frame + 1 + field.encoder.future) * hop :] = -1
        assert torch.equal(net.encode(changed)[..., frame], codes[..., frame])


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("ends", [[0, 1], [0, 100, 120], [0, 599, 2400, 3999], [0, 4000]], ids=str)
def test_streams_of_blocks_equal_the_whole_signal(kind: str, ends: list[int]) -> None:
    net, time = MODELS[kind], ends[-1]
    audio = noise(2, 1, time)
    codes = net.encode(audio)
    encoder = StreamEncoder(net, batch=2)
    parts = [encoder.push(audio[..., begin:end]) for begin, end in pairwise(ends)]
    assert torch.equal(torch.cat([*parts, encoder.flush()], dim=2), codes)
    decoder = StreamDecoder(net, batch=2, length=time)
    blocks = [decoder.push(part) for part in torch.split(codes, 7, dim=2)]
    torch.testing.assert_close(
        torch.cat([*blocks, decoder.flush()], dim=2), net.decode(codes, length=time), rtol=0, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_a_stream_is_no_later_than_its_delay(kind: str) -> None:
    net = MODELS[kind]
    audio = noise(1, 1, 3000)
    encoder, decoder = StreamEncoder(net), StreamDecoder(net)
    for first in range(0, 3000, 60):
        decoder.push(encoder.push(audio[..., first : first + 60]))
        assert decoder.time >= first + 60 - net.delay


def test_columns_are_the_codes_of_the_steps_in_order() -> None:
    net = MODELS["plain"]
    assert net.codebook_choices == (1, 3, 7)
    audio = noise(1, 1, 24 * 60)
    codes = net.encode(audio)
    assert all(len(column.unique()) > 10 for column in codes[0])
    latents = net.analyze(audio).detach()
    steps = net.quantizer.unfold(latents)  # [batch, dim, frames * 4]
    assert torch.equal(net.quantizer.fold(steps), latents)
    coarse, middle, _ = net.quantizer.stages
    with torch.no_grad():
        first = coarse.nearest(coarse.in_proj(steps.view(1, 16, -1, 4).mean(dim=3)))
        residual = steps - coarse.decode(first).repeat_interleave(4, dim=2)
        second = middle.nearest(middle.in_proj(residual.view(1, 16, -1, 2).mean(dim=3)))
    assert torch.equal(codes[0, 0], first[0])
    assert torch.equal(codes[0, 1], second[0, 0::2])
    assert torch.equal(codes[0, 2], second[0, 1::2])
    for choice in net.codebook_choices:
        assert torch.equal(net.encode(audio, num_codebooks=choice), codes[:, :choice])
    with pytest.raises(UsageError, match="1, 3, 7 codebooks, not 2"):
        net.encode(audio, num_codebooks=2)


def test_noise_is_off_or_seeded() -> None:
    codes = MODELS["plain"].encode(noise(1, 1, 500))
    plain = MODELS["plain"].decode(codes)
    seeded = [model(PLAIN.model_copy(update={"noise_seed": seed})).decode(codes) for seed in (1, 1, 2)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    assert not torch.equal(seeded[0], plain)


def test_training_moves_every_part() -> None:
    net = model(WINDOWED.model_copy(update={"noise_seed": 0})).train()
    output = net(noise(2, 1, 600), torch.tensor([9, 3]))
    assert (output.quantized.codes[1, 3:] == -1).all()
    torch.autograd.backward(output.audio.square().mean() + output.quantized.commitment + output.quantized.codebook)
    assert not [
        name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]


# checkpoints


def write(folder: Path, net: SNAC, **changes: Any) -> Path:
    """A folder as the package writes it."""
    folder.mkdir(exist_ok=True)
    names = {"g": "parametrizations.weight.original0", "v": "parametrizations.weight.original1"}
    torch.save(weight_normed(theirs(net, "snac"), **names), folder / "pytorch_model.bin")
    config = {
        "sampling_rate": 8000,
        "encoder_dim": net.config.encoder_dim,
        "encoder_rates": [2, 3],
        "decoder_dim": net.config.decoder_dim,
        "decoder_rates": [3, 2],
        "attn_window_size": net.config.window or None,
        "codebook_size": 64,
        "codebook_dim": 4,
        "vq_strides": list(net.config.strides),
        "noise": True,
        "depthwise": True,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_of_the_package_gives_the_same_model(tmp_path: Path, kind: str) -> None:
    net = codec.load(write(tmp_path / kind, MODELS[kind]), device="cpu")
    assert (net.name, net.config) == (kind, MODELS[kind].config)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, MODELS[kind].state_dict()[name])


def test_wrong_folders_are_refused_by_name(tmp_path: Path) -> None:
    for changes, words in (
        ({"vq_strides": [3, 2, 1]}, "do not all divide the first"),
        ({"vq_strides": [4, 2]}, "not part of such a model: quantizer.quantizers.2"),
        ({"encoder_dim": 8}, "does not fit its own configuration|decoder.conv_in"),
    ):
        with pytest.raises(UnknownModel, match=words):
            codec.load(write(tmp_path / "bad", MODELS["plain"], **changes), device="cpu")


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="set hop = 2048"):
        SNACConfig.from_data({"hop": 512})
    with pytest.raises(ConfigError, match="set num_codebooks = 7"):
        SNACConfig.from_data({"num_codebooks": 3})
    with pytest.raises(ConfigError, match="multiples of 64 channels"):
        SNACConfig.from_data({"window": 32, "decoder_dim": 1040})


def test_noise_layers_are_trained() -> None:
    net = model(SNACConfig(sample_rate=8000, hop=24, encoder_dim=4, decoder_dim=16, **SMALL)).train()
    torch.autograd.backward(net(noise(1, 1, 24 * 8)).audio.square().sum())
    gradients = {name: parameter.grad for name, parameter in net.named_parameters() if "noise" in name}
    assert gradients
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
