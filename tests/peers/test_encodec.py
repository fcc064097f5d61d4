"""EnCodec beside encodec and transformers: models of the released sizes with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import codec
from codec.models.base import Encoded
from codec.models.encodec import EnCodec
from tests.helpers.ties import assert_same_codes

encodec = pytest.importorskip("encodec", exc_type=ImportError)
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

LENGTHS = [1, 2, 5, 319, 320, 321, 1000, 2239, 2241, 24_001]
LONGEST = 30 * 24_000 - 17
KBPS = {1.5: 2, 3.0: 4, 6.0: 8, 12.0: 16, 24.0: 32}
STEREO_LENGTHS = [1, 480, 5000, 47_520, 47_521, 48_000, 95_100]
STEREO_LONGEST = 30 * 48_000 - 17
STEREO_KBPS = {3.0: 2, 6.0: 4, 12.0: 8, 24.0: 16}
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
def test_thirty_seconds(pair: tuple[Any, EnCodec]) -> None:
    net, ours = pair
    net.set_target_bandwidth(24.0)
    audio = noise(1, LONGEST, seed=1)
    [(codes, _)] = net.encode(audio)
    assert all(len(codebook.unique()) >= 100 for codebook in codes.transpose(0, 1))
    assert_same_codes(ours.encode(audio), codes, net.encoder(audio), quantizer_of(net))
    assert_close(ours.decode(codes, length=LONGEST), net.decode([(codes, None)])[..., :LONGEST])


def quantizer_of(net: Any) -> Callable[[Tensor], Tensor]:
    """Latents to codes [batch, codebooks, frames] by encodec, with all codebooks."""
    return lambda latents: net.quantizer.encode(latents, net.frame_rate, 24.0).transpose(0, 1)


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
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", RELEASED)
def test_codes_and_audio_are_those_of_transformers(name: str, seed: int, tmp_path: Path) -> None:
    net = transformers.EncodecModel(transformers.EncodecConfig(**RELEASED[name])).eval()
    randomize(net, [layer.codebook.embed for layer in net.quantizer.layers], seed)
    net.save_pretrained(tmp_path / name)
    ours = codec.load(tmp_path / name, device="cpu")
    for time in [1, 2, 11, 321, 641, 2241, 3 * 32_000 + 1, 30 * ours.sample_rate - 17]:
        audio = noise(1, time, seed=time)
        encoded = net.encode(audio, bandwidth=2.2)
        codes = encoded.audio_codes[0]
        if time < 10 * ours.sample_rate:
            assert torch.equal(ours.encode(audio), codes), time
        else:

            def quantized(latents: Tensor, run: Any = net.quantizer.encode) -> Tensor:
                found: Tensor = run(latents, 2.2).transpose(0, 1)
                return found

            assert_same_codes(ours.encode(audio), codes, net.encoder(audio), quantized)
        assert_close(ours.decode(codes, length=time), net.decode(encoded.audio_codes, [None]).audio_values[..., :time])
    assert all(len(codebook.unique()) >= 100 for codebook in codes.transpose(0, 1))
    audio = noise(3, 20_000)
    codes = net.encode(audio, bandwidth=2.2).audio_codes[0]
    for number in range(1, ours.num_codebooks + 1):
        prefix = codes[:, :number]
        assert torch.equal(ours.encode(audio, num_codebooks=number), prefix)
        decoded = net.decode(prefix[None], [None]).audio_values[..., :20_000]
        assert_close(ours.decode(prefix, length=20_000), decoded)


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


def joined(segments: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Codes and scales of the segments of encodec, a scale for each frame."""
    codes = torch.cat([codes for codes, _ in segments], dim=2)
    return codes, torch.cat([scale.expand(len(codes), part.shape[2]) for part, scale in segments], dim=1)


@pytest.fixture(scope="module", params=[0, 1])
def stereo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The 48 kHz model of encodec and ours."""
    folder = tmp_path_factory.mktemp("stereo")
    net = encodec.EncodecModel.encodec_model_48khz(pretrained=False).eval()
    randomize(net, [layer._codebook.embed for layer in net.quantizer.vq.layers], request.param)
    torch.save(net.state_dict(), folder / "encodec_48khz.th")
    return net, codec.load(folder / "encodec_48khz.th", device="cpu")


@torch.no_grad()
def test_the_48_khz_model_is_that_of_encodec(stereo: tuple[Any, Any]) -> None:
    net, ours = stereo
    net.set_target_bandwidth(24.0)
    for time in STEREO_LENGTHS:
        audio = noise(1, time, seed=time, channels=2)
        segments = net.encode(audio)
        codes, scale = joined(segments)
        encoded = ours.encode(audio)
        assert isinstance(encoded, Encoded)
        assert torch.equal(encoded.codes, codes), time
        torch.testing.assert_close(encoded.scale, scale)
        assert_close(ours.decode(encoded, length=time), net.decode(segments)[..., :time])


@torch.no_grad()
def test_thirty_seconds_of_the_48_khz_model(stereo: tuple[Any, Any]) -> None:
    net, ours = stereo
    net.set_target_bandwidth(24.0)
    audio, time = noise(1, STEREO_LONGEST, channels=2), STEREO_LONGEST
    segments = net.encode(audio)
    codes, scale = joined(segments)
    assert all(len(codebook.unique()) >= 100 for codebook in codes.transpose(0, 1))
    parts = [audio[..., first : first + net.segment_length] for first in range(0, time, net.segment_stride)]
    latents = [net.encoder(part / scale) for part, (_, scale) in zip(parts, segments, strict=True)]
    encoded = ours.encode(audio)
    assert_same_codes(encoded.codes, codes, torch.cat(latents, dim=2), quantizer_of(net))
    torch.testing.assert_close(encoded.scale, scale)
    decoded = ours.decode(Encoded(codes, scale), length=time)
    assert_close(decoded, net.decode(segments)[..., :time])


@torch.no_grad()
def test_every_bit_rate_and_batches_of_the_48_khz_model(stereo: tuple[Any, Any]) -> None:
    net, ours = stereo
    audio = noise(3, 96_000, channels=2)
    for kbps, num_codebooks in STEREO_KBPS.items():
        net.set_target_bandwidth(kbps)
        segments = net.encode(audio)
        codes, scale = joined(segments)
        encoded = ours.encode(audio, num_codebooks=num_codebooks)
        assert codes.shape[1] == num_codebooks
        assert torch.equal(encoded.codes, codes)
        torch.testing.assert_close(encoded.scale, scale)
        assert_close(ours.decode(encoded, length=96_000), net.decode(segments)[..., :96_000])
    lengths = [96_000, 50_001, 7]
    encoded = ours.encode(audio, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, scale = joined(net.encode(audio[row : row + 1, :, :length]))
        frames = alone.shape[2]
        assert torch.equal(encoded.codes[row : row + 1, :, :frames], alone)
        torch.testing.assert_close(encoded.scale[row : row + 1, :frames], scale)


@torch.no_grad()
def test_encodec_cannot_decode_a_segment_shorter_than_the_overlap(stereo: tuple[Any, Any]) -> None:
    """A fault: of 47 700 samples, the last segment has one frame, fewer samples than the overlap."""
    net, ours = stereo
    audio = noise(1, 47_700, channels=2)
    with pytest.raises(RuntimeError, match="size"):
        net.decode(net.encode(audio))
    assert ours.decode(ours.encode(audio), length=47_700).shape == audio.shape


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
