"""SNAC beside its own package: models of the released sizes with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import codec
from codec.models.snac import SNAC

peer = pytest.importorskip("snac")
layers = pytest.importorskip("snac.layers")

LARGE: dict[str, Any] = {
    "encoder_dim": 64,
    "encoder_rates": [2, 3, 8, 8],
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 3, 2],
    "attn_window_size": 32,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [8, 4, 2, 1],
    "noise": True,
    "depthwise": True,
}
SIZES: dict[str, dict[str, Any]] = {
    "24khz": {
        "sampling_rate": 24000,
        "encoder_dim": 48,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 1024,
        "decoder_rates": [8, 8, 4, 2],
        "attn_window_size": None,
        "codebook_size": 4096,
        "codebook_dim": 8,
        "vq_strides": [4, 2, 1],
        "noise": True,
        "depthwise": True,
    },
    "32khz": {"sampling_rate": 32000} | LARGE,
    "44khz": {"sampling_rate": 44100} | LARGE,
}


def noise(batch: int, time: int, seed: int = 0) -> Tensor:
    """Noise whose level changes, so that frames differ."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(batch, 1, time // 3000 + 2, generator=generator).exp()
    level = torch.nn.functional.interpolate(level, scale_factor=3000, mode="linear")[..., :time]
    return 0.1 * torch.randn(batch, 1, time, generator=generator) * level


@torch.no_grad()
def random_peer(config: dict[str, Any], seed: int) -> Any:
    """A model of the package whose weights keep the size of signals, and whose latents lie around 0."""
    torch.manual_seed(seed)
    net = peer.SNAC(**config)
    for name, parameter in net.named_parameters():
        if name.endswith("alpha"):
            parameter.uniform_(0.3, 1)
        elif name.endswith("original0"):
            parameter.uniform_(0.7, 1.3)
        elif name.endswith("original1") or "codebook" in name:
            parameter.normal_()
        elif name.endswith("bias"):
            parameter.normal_(0, 0.1)
    for module in net.modules():
        if isinstance(module, layers.NoiseBlock):
            module.linear.parametrizations.weight.original0.mul_(0.1)
        if isinstance(module, layers.ResidualUnit):
            module.block[3].parametrizations.weight.original0.mul_(0.3)
    net.decoder.model[-2].parametrizations.weight.original0.mul_(0.1)  # below the bend of tanh
    residual = net.encoder(net.preprocess(noise(4, 120_000)))
    for stage in net.quantizer.quantizers:  # because a mean would choose one entry for all
        pooled = torch.nn.functional.avg_pool1d(residual, stage.stride, stage.stride)
        stage.in_proj.bias.sub_(stage.in_proj(pooled).mean(dim=(0, 2)))
        stage.out_proj.parametrizations.weight.original0.mul_(0.1)
        residual = residual - stage(residual)[0]
    return net.eval()


def package_and_ours(name: str, seed: int, folder: Path) -> tuple[Any, SNAC]:
    """The package's model and ours, from its folder."""
    net = random_peer(SIZES[name], seed)
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(SIZES[name]))
    ours = codec.load(folder, device="cpu")
    assert isinstance(ours, SNAC)
    return net, ours


@pytest.fixture(scope="module", params=[(name, seed) for name in SIZES for seed in (0, 1)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, SNAC]:
    name, seed = request.param
    return package_and_ours(name, seed, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module", params=SIZES)
def one_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, SNAC]:
    return package_and_ours(request.param, 2, tmp_path_factory.mktemp(request.param))


def columns(codes: list[Tensor], frames: int) -> Tensor:
    """The package's codes as ours [batch, columns, frames]."""
    coarsest = codes[0].shape[1]
    parts = [part.view(len(part), coarsest, -1).transpose(1, 2) for part in codes]
    return torch.cat(parts, dim=1)[..., :frames]


@torch.no_grad()
def without_noise(net: Any, codes: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(layers.torch, "randn", lambda shape, **_: torch.zeros(shape))
        audio: Tensor = net.decode(codes)
        return audio


def close(audio: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("windows", [1, 3])
def test_codes_and_audio_are_those_of_the_package(
    pair: tuple[Any, SNAC], windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, ours = pair
    time = windows * ours.config.hop * ours.config.window_frames
    audio = noise(2, time)
    theirs = net.encode(audio)
    frames = time // ours.config.hop
    codes = ours.encode(audio)
    assert torch.equal(codes, columns(theirs, frames))
    close(ours.decode(codes), without_noise(net, theirs, monkeypatch))


@torch.no_grad()
def test_thirty_seconds(one_pair: tuple[Any, SNAC], monkeypatch: pytest.MonkeyPatch) -> None:
    net, ours = one_pair
    windows = round(30 * ours.sample_rate / (ours.config.hop * ours.config.window_frames))
    time = windows * ours.config.hop * ours.config.window_frames
    audio = noise(1, time)
    theirs = net.encode(audio)
    codes = ours.encode(audio)
    assert torch.equal(codes, columns(theirs, codes.shape[2]))
    assert all(len(codebook.unique()) >= 100 for codebook in theirs)
    close(ours.decode(codes), without_noise(net, theirs, monkeypatch))


@torch.no_grad()
def test_codes_are_diverse(pair: tuple[Any, SNAC]) -> None:
    net, ours = pair
    theirs = net.encode(noise(4, 40 * ours.config.hop))
    assert all(len(codebook.unique()) >= 100 for codebook in theirs)
    assert torch.equal(ours.encode(noise(4, 40 * ours.config.hop)), columns(theirs, 40))


@torch.no_grad()
@pytest.mark.parametrize("time", [1, 2047, 2049, 30_001])
def test_lengths(pair: tuple[Any, SNAC], time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, ours = pair
    audio = noise(1, time, seed=time)
    theirs = net.encode(audio)
    frames = ours.frame_spec.frames(time)
    codes = ours.encode(audio)
    assert torch.equal(codes, columns(theirs, frames))
    if theirs[0].shape[1] == frames:  # else the package also has codes of the silence that fills its window
        close(ours.decode(codes, length=time), without_noise(net, theirs, monkeypatch)[..., :time])


@torch.no_grad()
def test_every_prefix(pair: tuple[Any, SNAC], monkeypatch: pytest.MonkeyPatch) -> None:
    net, ours = pair
    audio = noise(1, ours.config.hop * ours.config.window_frames)
    theirs = net.encode(audio)
    for stages, choice in enumerate(ours.codebook_choices, start=1):
        codes = ours.encode(audio, num_codebooks=choice)
        assert torch.equal(codes, columns(theirs[:stages], codes.shape[2]))
        with monkeypatch.context() as patch:
            patch.setattr(net.quantizer, "n_codebooks", stages)
            close(ours.decode(codes), without_noise(net, theirs[:stages], monkeypatch))


@torch.no_grad()
def test_decoding_twice_differs_in_the_package_unless_it_is_seeded(pair: tuple[Any, SNAC]) -> None:
    net, ours = pair
    audio = noise(1, ours.config.hop * ours.config.window_frames)
    theirs, codes = net.encode(audio), ours.encode(audio)
    assert not torch.equal(net.decode(theirs), net.decode(theirs))
    assert torch.equal(ours.decode(codes), ours.decode(codes))
    torch.manual_seed(5)
    expected = net.decode(theirs)
    seeded = SNAC(ours.config.model_copy(update={"noise_seed": 5})).eval()
    seeded.load_state_dict(ours.state_dict())
    close(seeded.decode(codes), expected)
    assert torch.equal(seeded.decode(codes), seeded.decode(codes))
