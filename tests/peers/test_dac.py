"""DAC beside descript-audio-codec and transformers: the same codes, the same audio."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import codec
from codec.models.dac import DAC, DecoderBlock
from tests.helpers.ties import assert_same_codes

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("dac.model.dac")
    audiotools = pytest.importorskip("audiotools")
    transformers = pytest.importorskip("transformers")

RELEASED: dict[str, dict[str, Any]] = {
    "16khz": {
        "encoder_rates": [2, 4, 5, 8],
        "decoder_rates": [8, 5, 4, 2],
        "n_codebooks": 12,
        "sample_rate": 16000,
    },
    "24khz": {
        "encoder_rates": [2, 4, 5, 8],
        "decoder_rates": [8, 5, 4, 2],
        "n_codebooks": 32,
        "sample_rate": 24000,
    },
    "44khz": {
        "encoder_rates": [2, 4, 8, 8],
        "decoder_rates": [8, 8, 4, 2],
        "n_codebooks": 9,
        "sample_rate": 44100,
    },
    "44khz_16kbps": {
        "encoder_rates": [2, 4, 8, 8],
        "decoder_rates": [8, 8, 4, 2],
        "n_codebooks": 18,
        "latent_dim": 128,
        "sample_rate": 44100,
    },
}
SIZES = {"encoder_dim": 64, "decoder_dim": 1536, "latent_dim": 1024, "codebook_size": 1024, "codebook_dim": 8}


def noise(batch: int, time: int, seed: int = 0) -> Tensor:
    """Noise whose level changes, so that frames differ."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(batch, 1, time, generator=generator) * torch.linspace(0.02, 1, time)


class Pair:
    """A released configuration with random weights: the original, and ours loaded from its checkpoint."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.kwargs = SIZES | RELEASED[name]
        torch.manual_seed(seed)
        self.original = peer.DAC(**self.kwargs).eval()
        with torch.no_grad():
            for key, parameter in self.original.named_parameters():
                if key.endswith("alpha"):
                    parameter.uniform_(0.3, 2)
        content = {"state_dict": self.original.state_dict(), "metadata": {"kwargs": self.kwargs}}
        torch.save(content, folder / f"{name}.pth")
        ours = codec.load(folder / f"{name}.pth")
        assert isinstance(ours, DAC)
        self.ours = ours
        self.hop = ours.config.hop

    @torch.no_grad()
    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> Tensor:
        padded = self.original.preprocess(audio, self.kwargs["sample_rate"])
        codes: Tensor = self.original.encode(padded, num_codebooks)[1]
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        audio: Tensor = self.original.decode(self.original.quantizer.from_codes(codes)[0])
        return audio


@pytest.fixture(scope="module", params=[(name, seed) for name in RELEASED for seed in (0, 1)], ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name, seed = request.param
    return Pair(name, seed, tmp_path_factory.mktemp("dac"))


@pytest.fixture(scope="module", params=RELEASED)
def one_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, 2, tmp_path_factory.mktemp("dac"))


def test_codes_are_identical_at_every_length(pair: Pair) -> None:
    for time in (1, pair.hop - 1, pair.hop, pair.hop + 1, 3 * pair.hop + 77):
        audio = noise(2, time, seed=time)
        assert torch.equal(pair.ours.encode(audio), pair.encode(audio))


def test_thirty_seconds(one_pair: Pair) -> None:
    audio = noise(1, 30 * one_pair.kwargs["sample_rate"] - 17)
    codes = one_pair.encode(audio)
    net = one_pair.original
    with torch.no_grad():
        latents = net.encoder(net.preprocess(audio, one_pair.kwargs["sample_rate"]))
        assert_same_codes(one_pair.ours.encode(audio), codes, latents, lambda x: net.quantizer(x)[1])
    assert min(len(codebook.unique()) for codebook in codes[0]) >= 100
    agree(one_pair, codes)


def agree(pair: Pair, codes: Tensor) -> None:
    """Audio is equal to 1e-5. The original ends 8 samples early at an odd stride; its last frames see that end."""
    expected, audio = pair.decode(codes), pair.ours.decode(codes)
    lost = 8 if 5 in pair.kwargs["decoder_rates"] else 0
    assert expected.shape[2] == audio.shape[2] - lost
    inside = slice(0, audio.shape[2] - 20 * pair.hop if lost else None)
    assert (audio[..., inside] - expected[..., inside]).abs().max() <= 1e-5 * expected.abs().max()


def test_codes_are_identical_and_diverse(pair: Pair) -> None:
    audio = noise(1, 300 * pair.hop)
    codes = pair.encode(audio)
    assert torch.equal(pair.ours.encode(audio), codes)
    assert min(len(codebook.unique()) for codebook in codes[0]) >= 100


def test_codes_are_identical_at_every_bit_rate(pair: Pair) -> None:
    audio = noise(1, 20 * pair.hop)
    for number in range(1, pair.ours.num_codebooks + 1):
        assert torch.equal(pair.ours.encode(audio, num_codebooks=number), pair.encode(audio, number))


def test_audio_agrees(pair: Pair) -> None:
    agree(pair, pair.encode(noise(2, 60 * pair.hop)))


def test_audio_agrees_to_the_end_without_the_added_sample(pair: Pair) -> None:
    codes = pair.encode(noise(1, 20 * pair.hop))
    blocks = [module for module in pair.ours.decoder.modules() if isinstance(module, DecoderBlock)]
    for block in blocks:
        block.conv.output_padding = (0,)
    audio = pair.ours.synthesize(pair.ours.quantizer.decode(codes)).detach()  # products always have the added sample
    for block in blocks:
        block.conv.output_padding = (block.stride % 2,)
    expected = pair.decode(codes)
    assert audio.shape == expected.shape
    assert (audio - expected).abs().max() <= 1e-5 * expected.abs().max()


# compress


def small(name: str, folder: Path) -> tuple[Any, DAC]:
    """The original of a released configuration with few channels, and ours."""
    kwargs = SIZES | RELEASED[name] | {"encoder_dim": 8, "decoder_dim": 64, "latent_dim": 32, "n_codebooks": 3}
    torch.manual_seed(0)
    original = peer.DAC(**kwargs).eval()
    torch.save({"state_dict": original.state_dict(), "metadata": {"kwargs": kwargs}}, folder / "small.pth")
    ours = codec.load(folder / "small.pth")
    assert isinstance(ours, DAC)
    return original, ours


@pytest.mark.parametrize(
    ("name", "frames", "windowed"), [("16khz", 500, 1020), ("24khz", 750, 1062), ("44khz", 862, 1152)]
)
def test_compress_depends_on_its_window(name: str, frames: int, windowed: int, tmp_path: Path) -> None:
    """A fault: 10 s in windows of 1 s, the default, make 1.3 to 2 times as many codes, other ones, and no stream."""
    original, ours = small(name, tmp_path)
    audio = 0.2 * noise(2, 10 * ours.sample_rate)  # below 1, to which `compress` also brings the peak
    found = {}
    for seconds in (1.0, 1.7, 5.0, 10.0):
        signal = audiotools.AudioSignal(audio.transpose(0, 1), ours.sample_rate)  # of two channels
        found[seconds] = original.compress(signal, win_duration=seconds, normalize_db=None).codes
        assert torch.equal(ours.encode_windows(audio, seconds=seconds), found[seconds])
    assert found[1.0].shape[2] == windowed
    assert torch.equal(found[10.0], ours.encode(audio))
    assert found[10.0].shape[2] == frames
    assert not any(torch.equal(found[seconds][..., :20], found[10.0][..., :20]) for seconds in (1.0, 1.7, 5.0))
    fewer = ours.encode_windows(audio, seconds=1.0, num_codebooks=2)
    assert torch.equal(fewer, found[1.0][:, :2])


def test_compress_changes_the_level(tmp_path: Path) -> None:
    """Its codes are those of audio at -16 LUFS, unless an option switches that off."""
    original, ours = small("16khz", tmp_path)
    audio = 0.1 * noise(1, 16_000)
    changed = original.compress(audiotools.AudioSignal(audio, 16_000)).codes
    assert not torch.equal(changed, ours.encode(audio))
    level = audiotools.AudioSignal(audio, 16_000).normalize(-16).ensure_max_of_audio().audio_data
    assert torch.equal(changed, ours.encode(level))


def test_a_folder_of_transformers_gives_the_same_codes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.DacConfig(
        encoder_hidden_size=16, decoder_hidden_size=64, downsampling_ratios=[2, 4, 5, 8], n_codebooks=12
    )
    model = transformers.DacModel(config).eval()
    model.save_pretrained(tmp_path / "dac")
    ours = codec.load(tmp_path / "dac")
    audio = noise(2, 320 * 50)
    with torch.no_grad():
        expected = model.encode(audio).audio_codes
    assert torch.equal(ours.encode(audio), expected)
