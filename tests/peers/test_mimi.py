"""Mimi beside moshi and transformers: models of the released sizes with random weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import codec
from codec.models.mimi import Mimi
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.checkpoints import transformers_mimi_config, transformers_mimi_tensors, write_folder
from tests.helpers.ties import assert_same_codes

loaders = pytest.importorskip("moshi.models.loaders")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers
HOP = 1920


def noise(batch: int, time: int, seed: int = 0) -> Tensor:
    """Noise whose spectrum and level change."""
    generator = torch.Generator().manual_seed(seed)
    audio = torch.randn(batch, 1, time, generator=generator)
    level = torch.randn(batch, 1, time // HOP + 2, generator=generator).exp()
    level = torch.nn.functional.interpolate(level, scale_factor=HOP, mode="linear")[..., :time]
    return 0.1 * audio * level


@torch.no_grad()
def randomize(net: Any, seed: int) -> None:
    """Random weights that keep the size of signals, and codebooks whose entries are all near some latents."""
    torch.manual_seed(seed)
    for name, parameter in net.named_parameters():
        if parameter.ndim == 3 and "convtr" in name:
            parameter.normal_(0, (parameter.shape[0] * 2) ** -0.5 if parameter.shape[1] > 1 else 1)
        elif parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        elif "scale" in name:
            parameter.uniform_(0.1, 0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(0, 0.1)
    latents = net._encode_to_unquantized_latent(noise(4, 40 * HOP, seed=99))
    mean = latents.mean(dim=(0, 2))
    for rvq in (net.quantizer.rvq_first, net.quantizer.rvq_rest):
        weight = rvq.input_proj.weight[:, :, 0]
        weight -= (weight @ mean)[:, None] * mean / mean.square().sum()  # the mean would choose one entry for all
        residual = rvq.input_proj(latents).transpose(1, 2).flatten(0, 1)
        for layer in rvq.vq.layers:
            codebook = layer._codebook
            entries = torch.nn.functional.normalize(torch.randn_like(codebook.embedding_sum))
            entries *= 0.3 * residual.norm(dim=1).mean()
            codebook.cluster_usage.uniform_(0.5, 3)
            codebook.embedding_sum.copy_(entries * codebook.cluster_usage[:, None])
            codebook._initialized.fill_(1)
            residual = residual - codebook.decode(codebook.encode(residual))


def moshi_and_ours(folder: Path, seed: int, **transformer: int) -> tuple[Any, Mimi]:
    """moshi's model with random weights, and ours from its file."""
    config = loaders._mimi_config | {"transformer": loaders._transformer_kwargs | transformer}
    net = loaders.get_mimi(None, config, num_codebooks=32)
    randomize(net, seed)
    save_file(net.state_dict(), folder / "tokenizer.safetensors")
    ours = codec.load(folder / "tokenizer.safetensors", device="cpu")
    assert isinstance(ours, Mimi)
    return net, ours


@pytest.fixture(scope="module", params=[0, 1])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Mimi]]:
    """moshi's model and ours."""
    with torch.no_grad():
        yield moshi_and_ours(tmp_path_factory.mktemp("moshi"), request.param)


@pytest.fixture(scope="module", params=[2, 3])
def folder_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Mimi]]:
    """transformers' model and ours, which moshi's test compares with moshi's."""
    folder = tmp_path_factory.mktemp("transformers")
    _, ours = moshi_and_ours(folder, request.param)
    path = write_folder(folder / "mimi", transformers_mimi_tensors(ours), transformers_mimi_config(ours.config))
    net, loading = transformers.MimiModel.from_pretrained(path, output_loading_info=True)
    assert not any(loading.values())  # no tensor is missing, unexpected or of another shape
    loaded = codec.load(path, device="cpu")
    assert isinstance(loaded, Mimi)
    with torch.no_grad():
        yield net.eval(), loaded


def close(audio: Tensor, expected: Tensor, peak: Tensor) -> None:
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-5 * float(peak.abs().max()))


# moshi


def test_codes_and_audio_are_those_of_moshi(pair: tuple[Any, Mimi]) -> None:
    net, ours = pair
    audio = noise(6, 40 * HOP)
    codes = net.encode(audio)
    assert all(len(codebook.unique()) >= 100 for codebook in codes.transpose(0, 1).flatten(1))
    assert torch.equal(ours.encode(audio), codes)
    expected = net.decode(codes)
    close(ours.decode(codes), expected, expected)


@pytest.mark.parametrize("time", [1, 959, 1920, 1921, 40_321])
def test_lengths_are_those_of_moshi(pair: tuple[Any, Mimi], time: int) -> None:
    net, ours = pair
    audio = noise(1, time, seed=time)
    codes = net.encode(audio)
    assert torch.equal(ours.encode(audio), codes)
    expected = net.decode(codes)
    close(ours.decode(codes, length=time), expected[..., :time], expected)


def test_thirty_seconds(pair: tuple[Any, Mimi]) -> None:
    net, ours = pair
    time = 30 * 24_000 - 17
    audio = noise(1, time)
    codes = net.encode(audio)
    assert all(len(codebook.unique()) >= 100 for codebook in codes[0])
    latents = net._encode_to_unquantized_latent(audio)
    assert_same_codes(ours.encode(audio), codes, latents, net.quantizer.encode)
    expected = net.decode(codes)
    close(ours.decode(codes, length=time), expected[..., :time], expected)


def test_every_number_of_codebooks(pair: tuple[Any, Mimi]) -> None:
    net, ours = pair
    audio = noise(1, 3 * HOP)
    for number in range(1, 33):
        net.set_num_codebooks(number)
        codes = net.encode(audio)
        assert torch.equal(ours.encode(audio, num_codebooks=number), codes)
        expected = net.decode(codes)
        close(ours.decode(codes), expected, expected)
    net.set_num_codebooks(32)


def test_streams_of_moshi_take_whole_frames_only(pair: tuple[Any, Mimi]) -> None:
    net, ours = pair
    audio = noise(1, 3 * HOP)
    with net.streaming(1), pytest.raises(RuntimeError, match="positive multiple of the frame size"):
        net.encode(audio[..., :1000])
    encoder = StreamEncoder(ours)
    parts = [encoder.push(part) for part in torch.split(audio, 1000, dim=2)] + [encoder.flush()]
    assert torch.equal(torch.cat(parts, dim=2), net.encode(audio))


def test_streams_of_moshi_forget_too_early(tmp_path: Path) -> None:
    """A chunk of two steps overwrites the oldest step that its first step may still attend to.

    So once the context is full, after 10 s in the released model, codes of a stream are not those of the whole signal.
    """
    context, audio = 20, noise(1, 30 * HOP)
    net, ours = moshi_and_ours(tmp_path, 3, context=context, num_layers=2)
    for side in (ours.encoder, ours.decoder):
        side.transformer.context = context  # which moshi's file does not say
    with torch.no_grad():
        codes = net.encode(audio)
        with net.streaming(1):
            theirs = torch.cat([net.encode(part) for part in torch.split(audio, HOP, dim=2)], dim=2)
    assert torch.equal(theirs[..., : context // 2], codes[..., : context // 2])
    assert not torch.equal(theirs, codes)
    encoder = StreamEncoder(ours)
    assert torch.equal(torch.cat([encoder.push(part) for part in torch.split(audio, HOP, dim=2)], dim=2), codes)
    decoder = StreamDecoder(ours)
    decoded = torch.cat([decoder.push(part) for part in torch.split(codes, 1, dim=2)], dim=2)
    expected = net.decode(codes).detach()
    close(decoded, expected, expected)


# transformers


def test_codes_and_audio_are_those_of_transformers(folder_pair: tuple[Any, Mimi]) -> None:
    net, ours = folder_pair
    audio = noise(2, 20 * HOP)
    codes = net.encode(audio).audio_codes
    assert torch.equal(ours.encode(audio), codes)
    expected = net.decode(codes).audio_values
    close(ours.decode(codes), expected, expected)
    for number in (1, 2, 8, 31):
        fewer = net.encode(audio, num_quantizers=number).audio_codes
        assert torch.equal(ours.encode(audio, num_codebooks=number), fewer)
        expected = net.decode(fewer).audio_values
        close(ours.decode(fewer), expected, expected)


def test_thirty_seconds_of_transformers(folder_pair: tuple[Any, Mimi]) -> None:
    net, ours = folder_pair
    audio = noise(1, 375 * HOP)
    codes = net.encode(audio).audio_codes
    assert all(len(codebook.unique()) >= 100 for codebook in codes[0])
    latents = net.encoder(audio).latents
    assert_same_codes(ours.encode(audio), codes, latents, lambda x: net.quantizer.encode(x, 32).transpose(0, 1))
    expected = net.decode(codes).audio_values
    close(ours.decode(codes), expected, expected)


def test_transformers_encodes_a_partial_last_frame_otherwise(folder_pair: tuple[Any, Mimi]) -> None:
    """It pads the input of every layer, the original the audio: its last frame differs, and batches from items."""
    net, ours = folder_pair
    time = 4 * HOP + 959
    audio = noise(1, time)
    padded = torch.nn.functional.pad(audio, (0, 2 * HOP - 959))
    alone, batch = net.encode(audio).audio_codes, net.encode(padded).audio_codes
    assert torch.equal(alone[..., :4], batch[..., :4])
    assert not torch.equal(alone, batch[..., :5])
    assert torch.equal(ours.encode(audio), batch[..., :5])
    assert torch.equal(ours.encode(padded, lengths=[time])[..., :5], batch[..., :5])
