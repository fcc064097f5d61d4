"""EnCodec beside encodec and transformers: models of the released sizes with random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import codec
from codec.models.base import Encoded
from codec.models.encodec import EnCodec

encodec = pytest.importorskip("encodec", exc_type=ImportError)
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

LENGTHS = [1, 2, 5, 319, 320, 321, 1000, 2239, 2241, 24_001]
KBPS = {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}
RELEASED: dict[str, dict[str, Any]] = {  # of facebook/encodec_32khz; and AudioGen's, with audiocraft's padding
    "musicgen": {
        "sampling_rate": 32000,
        "num_filters": 64,
        "upsampling_ratios": [8, 5, 4, 4],
        "target_bandwidths": [2.2],
        "codebook_size": 2048,
        "use_causal_conv": False,
        "use_conv_shortcut": False,
    },
    "audiogen": {
        "sampling_rate": 16000,
        "num_filters": 64,
        "upsampling_ratios": [8, 5, 4, 2],
        "target_bandwidths": [2.2],
        "codebook_size": 2048,
        "use_causal_conv": False,
        "use_conv_shortcut": False,
        "pad_mode": "constant",
    },
}


def noise(batch: int, time: int, seed: int = 0, channels: int = 1) -> Tensor:
    """Noise whose level and color change, so that many codes are used."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(batch, channels, time, generator=generator)
    level = 0.1 * (0.5 * torch.randn(batch, 1, time // 500 + 2, generator=generator)).exp()
    level = torch.nn.functional.interpolate(level, scale_factor=500, mode="linear")[..., :time]
    return (audio + 0.9 * (level > 0.1) * torch.nn.functional.pad(audio, (1, 0))[..., :-1]) * level


@torch.no_grad()
def randomize(net: Any, codebooks: list[Tensor], seed: int) -> None:
    """Weights that keep the size of signals, and entries of each codebook of the size of the residuals."""
    torch.manual_seed(seed)
    for name, parameter in net.named_parameters():
        if name.endswith(("weight_g", "original0")) or ("norm" in name and name.endswith("weight")):
            continue
        if "lstm.weight" in name:
            parameter.normal_(0, parameter.shape[1] ** -0.5)
        elif parameter.ndim == 3:
            fan_in = parameter.shape[0] * 2 if "convtr" in name else parameter[0].numel()
            parameter.normal_(0, fan_in**-0.5)
        elif parameter.ndim == 1:
            parameter.normal_(0, 0.1)
    for name, parameter in net.named_parameters():
        if name.endswith(("weight_g", "original0")):
            v = dict(net.named_parameters())[name.replace("weight_g", "weight_v").replace("original0", "original1")]
            parameter.copy_(1.4 * v.flatten(1).norm(dim=1).view_as(parameter))
    latents = net.encoder(noise(8, 16_000, seed=99, channels=audio_channels(net))).transpose(1, 2).flatten(0, 1)
    bias = [parameter for name, parameter in net.encoder.named_parameters() if name.endswith("conv.bias")][-1]
    bias.sub_(latents.mean(dim=0))
    latents = latents - latents.mean(dim=0)
    for number, codebook in enumerate(codebooks):  # random sums of latents, so that they have the same directions
        entries = torch.randn(len(codebook), len(latents)) @ latents
        codebook.copy_(entries * (0.4 * 0.95**number * len(latents) ** -0.5))


def audio_channels(net: Any) -> int:
    return int(getattr(net, "channels", None) or net.config.audio_channels)


def original(seed: int, folder: Path) -> tuple[Any, EnCodec]:
    net = encodec.EncodecModel.encodec_model_24khz(pretrained=False).eval()
    randomize(net, [layer._codebook.embed for layer in net.quantizer.vq.layers], seed)
    torch.save(net.state_dict(), folder / "encodec_24khz.th")
    ours = codec.load(folder / "encodec_24khz.th", device="cpu")
    assert isinstance(ours, EnCodec)
    return net, ours


@pytest.fixture(scope="module", params=[0, 1])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, EnCodec]:
    return original(request.param, tmp_path_factory.mktemp("encodec"))


def assert_close(audio: Tensor, expected: Tensor) -> None:
    assert audio.shape == expected.shape
    assert float((audio - expected).abs().max() / expected.abs().max()) < 1e-5


@torch.no_grad()
def test_codes_and_audio_are_those_of_encodec(pair: tuple[Any, EnCodec]) -> None:
    net, ours = pair
    net.set_target_bandwidth(24.0)
    for time in LENGTHS:
        audio = noise(1, time, seed=time)
        [(codes, _)] = net.encode(audio)
        assert torch.equal(ours.encode(audio), codes), time
        assert_close(ours.decode(codes, length=time), net.decode([(codes, None)])[..., :time])


@torch.no_grad()
def test_every_bit_rate_is_a_prefix(pair: tuple[Any, EnCodec]) -> None:
    net, ours = pair
    audio = noise(1, 2 * 24_000 + 7)
    for kbps, num_codebooks in KBPS.items():
        net.set_target_bandwidth(kbps)
        [(codes, _)] = net.encode(audio)
        assert codes.shape[1] == num_codebooks
        assert torch.equal(ours.encode(audio, bitrate=kbps), codes)
        assert_close(ours.decode(codes), net.decode([(codes, None)]))
    assert all(len(codebook.unique()) >= 100 for codebook in codes.transpose(0, 1))


@torch.no_grad()
def test_a_batch_of_unequal_lengths_equals_single_items(pair: tuple[Any, EnCodec]) -> None:
    net, ours = pair
    net.set_target_bandwidth(6.0)
    audio, lengths = noise(3, 5000), [5000, 4321, 640]
    codes = ours.encode(audio, lengths=lengths, num_codebooks=8)
    for row, length in enumerate(lengths):
        [(alone, _)] = net.encode(audio[row : row + 1, :, :length])
        assert torch.equal(codes[row : row + 1, :, : alone.shape[2]], alone)


@torch.no_grad()
@pytest.mark.parametrize("name", RELEASED)
def test_codes_and_audio_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    net = transformers.EncodecModel(transformers.EncodecConfig(**RELEASED[name])).eval()
    randomize(net, [layer.codebook.embed for layer in net.quantizer.layers], seed=0)
    net.save_pretrained(tmp_path / name)
    ours = codec.load(tmp_path / name, device="cpu")
    for time in [1, 2, 11, 321, 641, 2241, 3 * 32_000 + 1]:
        audio = noise(1, time, seed=time)
        encoded = net.encode(audio, bandwidth=2.2)
        codes = encoded.audio_codes[0]
        assert torch.equal(ours.encode(audio), codes), time
        assert_close(ours.decode(codes, length=time), net.decode(encoded.audio_codes, [None]).audio_values[..., :time])
    assert all(len(codebook.unique()) >= 100 for codebook in codes.transpose(0, 1))


@torch.no_grad()
def test_transformers_pads_a_batch_into_other_codes(tmp_path: Path) -> None:
    """A fault: in a padded batch, transformers gives a short item other codes than alone, in its last frames."""
    config = {**RELEASED["musicgen"], "num_filters": 8}
    net = transformers.EncodecModel(transformers.EncodecConfig(**config)).eval()
    randomize(net, [layer.codebook.embed for layer in net.quantizer.layers], seed=0)
    net.save_pretrained(tmp_path / "small")
    ours = codec.load(tmp_path / "small", device="cpu")
    audio, length = noise(2, 64_000), 32_000
    mask = torch.arange(64_000).expand(2, 1, -1) < torch.tensor([64_000, length])[:, None, None]
    together = net.encode(audio, padding_mask=mask).audio_codes[0][1, :, :50]
    alone = net.encode(audio[1:, :, :length]).audio_codes[0][0]
    assert not torch.equal(together, alone)
    assert torch.equal(ours.encode(audio, lengths=[64_000, length])[1, :, :50], alone)


STEREO_LENGTHS = [1, 480, 5000, 47_520, 47_521, 48_000, 95_100]


@torch.no_grad()
def test_the_48_khz_model_is_that_of_encodec(tmp_path: Path) -> None:
    net = encodec.EncodecModel.encodec_model_48khz(pretrained=False).eval()
    randomize(net, [layer._codebook.embed for layer in net.quantizer.vq.layers], seed=0)
    torch.save(net.state_dict(), tmp_path / "encodec_48khz.th")
    ours = codec.load(tmp_path / "encodec_48khz.th", device="cpu")
    net.set_target_bandwidth(24.0)
    used: list[set[int]] = [set() for _ in range(16)]
    for time in STEREO_LENGTHS:
        audio = noise(1, time, seed=time, channels=2)
        segments = net.encode(audio)
        encoded = ours.encode(audio)
        assert isinstance(encoded, Encoded)
        assert torch.equal(encoded.codes, torch.cat([codes for codes, _ in segments], dim=2)), time
        scales = torch.cat([scale.expand(1, codes.shape[2]) for codes, scale in segments], dim=1)
        torch.testing.assert_close(encoded.scale, scales)
        assert_close(ours.decode(encoded, length=time), net.decode(segments)[..., :time])
        for codes_used, codebook in zip(used, encoded.codes[0].tolist(), strict=True):
            codes_used.update(codebook)
    assert min(map(len, used)) >= 100
    fault = noise(1, 47_700, channels=2)  # the last segment has one frame, fewer samples than the overlap
    with pytest.raises(RuntimeError, match="size"):
        net.decode(net.encode(fault))
    assert ours.decode(ours.encode(fault), length=47_700).shape == fault.shape


@torch.no_grad()
def test_transformers_cannot_encode_what_ends_shortly_after_a_segment(tmp_path: Path) -> None:
    """A fault: it stacks segments of unequal sizes, unless only the last one is shorter."""
    config = transformers.EncodecConfig(
        sampling_rate=48_000, audio_channels=2, normalize=True, chunk_length_s=1.0, overlap=0.01, num_filters=4,
        norm_type="time_group_norm", use_causal_conv=False, target_bandwidths=[3.0, 6.0, 12.0, 24.0],
    )  # fmt: skip
    net = transformers.EncodecModel(config).eval()
    randomize(net, [layer.codebook.embed for layer in net.quantizer.layers], seed=0)
    net.save_pretrained(tmp_path / "small")
    ours = codec.load(tmp_path / "small", device="cpu")
    audio = noise(1, 95_100, channels=2)
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        net.encode(audio, bandwidth=24.0)
    audio = noise(1, 95_500, channels=2)
    encoded = net.encode(audio, bandwidth=24.0)
    codes = torch.cat([*encoded.audio_codes], dim=2)[..., : ours.frame_spec.frames(95_500)]
    found = ours.encode(audio)
    assert isinstance(found, Encoded)
    assert torch.equal(found.codes, codes)
