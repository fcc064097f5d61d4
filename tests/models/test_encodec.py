"""EnCodec: padding at both ends, streams with state, and checkpoints of the original and of transformers."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

import codec
from codec.checkpoint import load_model, save_model
from codec.compression import compress, decompress
from codec.errors import ConfigError, UnknownModel
from codec.frames import FrameSpec
from codec.io import bitstream
from codec.io.audio import read_audio
from codec.models.base import UNBOUNDED, Encoded, split_scale
from codec.models.encodec import EnCodec, EnCodecConfig, EnCodecSegments, EnCodecSegmentsConfig
from codec.nn.padded import LANES, LSTM, WARM_UP, PaddedConv1d, Padding, Style, TrimmedConvTranspose1d, elu, pad_ends
from codec.nn.streaming import Delayed
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.checkpoints import scaled, theirs, weight_normed, write_folder

SMALL: dict[str, Any] = {"filters": 4, "dim": 8, "codebook_size": 64, "num_codebooks": 3}
CAUSAL = EnCodecConfig(sample_rate=8000, hop=30, ratios=(5, 3, 2), **SMALL)
AHEAD = EnCodecConfig(
    sample_rate=8000, hop=40, ratios=(5, 4, 2), causal=False, shortcut=False, residual_units=2, **SMALL
)
CONSTANT = EnCodecConfig(sample_rate=8000, hop=12, ratios=(4, 3), causal=False, padding="constant", **SMALL)


def model(config: EnCodecConfig) -> EnCodec:
    built = scaled(EnCodec(config))
    assert isinstance(built, EnCodec)
    with torch.no_grad():
        built.init_from_audio(noise(4, 1, 200 * config.hop))
    return built


def noise(*shape: int) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


MODELS = {"causal": model(CAUSAL), "ahead": model(AHEAD), "constant": model(CONSTANT)}
EVERY = pytest.mark.parametrize("net", MODELS.values(), ids=MODELS)
CHUNKS = [3, 1, 1, 40, 2, 7, 500]


def in_steps(layer: Delayed, x: Tensor, sizes: list[int]) -> Tensor:
    state, parts, first = layer.initial_state(x), [], 0
    for size in sizes:
        y, state = layer.step(x[:, first : first + size], state)
        parts.append(y)
        first += size
    return torch.cat([*parts, layer.step(x[:, first:], state, last=True)[0]], dim=1)


@pytest.mark.parametrize("time", [1, 2, 3, 5, 8, 11, 20, 41])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(7, 1, 1), (3, 1, 2), (16, 8, 1), (6, 3, 1), (1, 1, 1)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padding", ["reflect", "constant"])
def test_a_convolution_is_that_of_torch_in_any_chunks(
    time: int, kernel: int, stride: int, dilation: int, causal: bool, padding: Padding
) -> None:
    conv = PaddedConv1d(2, 3, kernel, Style(causal, padding), stride=stride, dilation=dilation)
    x = noise(2, time, 2)
    total = (kernel - 1) * dilation + 1 - stride
    right = 0 if causal else total // 2
    more = -time % stride
    padded = pad_ends(x, total - right, right + more, padding).transpose(1, 2)
    expected = F.conv1d(padded, conv.weight, conv.bias, stride=stride, dilation=dilation).transpose(1, 2)
    assert expected.shape[1] == -(-time // stride)
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(in_steps(conv, x, CHUNKS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_a_transposed_convolution_is_that_of_torch_in_any_chunks(causal: bool) -> None:
    conv = TrimmedConvTranspose1d(2, 3, Style(causal, "reflect"), stride=5)
    x = noise(2, 9, 2)
    whole = F.conv_transpose1d(x.transpose(1, 2), conv.weight, conv.bias, stride=5).transpose(1, 2)
    right = 5 if causal else 2
    expected = whole[:, 5 - right : whole.shape[1] - right]
    assert expected.shape[1] == 5 * 9
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(in_steps(conv, x, [0, 1, 3]), expected, rtol=0, atol=1e-5)
        assert in_steps(conv, x[:, :0], [0]).shape == (2, 0, 3)


def test_reflection_extends_what_is_too_short_with_zeros() -> None:
    x = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1)
    assert pad_ends(x, 3, 1, "reflect").flatten().tolist() == [4, 3, 2, 1, 2, 3, 4, 3]
    assert pad_ends(x, 5, 0, "reflect").flatten().tolist() == [0, 0, 4, 3, 2, 1, 2, 3, 4]
    assert pad_ends(x, 5, 3, "reflect").flatten().tolist() == [0, 0, 4, 3, 2, 1, 2, 3, 4, 0, 0, 0]


@pytest.mark.parametrize("forget", [-2.0, 1.0, 9.0])
@pytest.mark.parametrize("time", [LANES * WARM_UP, LANES * WARM_UP + 5])
def test_lanes_of_an_lstm_equal_its_steps(forget: float, time: int) -> None:
    """With a large bias of the forget gate, lanes do not begin with the right state, and are computed again."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = LSTM(4, 2)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "bias_ih" in name:
                parameter.view(4, 4)[1] = forget
        x = noise(1, time, 4)
        state = (noise(2, 1, 4), noise(2, 1, 4))
        expected, after = layer.lstm(x, state)
        y, found = layer.step(x, state)
    torch.testing.assert_close(y, expected + x, rtol=0, atol=2e-5)
    torch.testing.assert_close(found, after, rtol=0, atol=2e-5)


def test_the_fast_activation_is_elu() -> None:
    x = torch.cat([torch.linspace(-100, 100, 4001), torch.tensor([0.0, -1e-7, 1e-7, -1e-3])])[None, :, None]
    with torch.no_grad():
        torch.testing.assert_close(elu(x), F.elu(x), rtol=0, atol=1e-7)


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("time", [1, 7, 29, 30, 31, 100, 250, 1000])
def test_streams_equal_the_whole_signal(net: EnCodec, time: int) -> None:
    audio = noise(2, 1, time)
    codes = net.encode(audio)
    assert codes.shape[2] == net.frame_spec.frames(time)
    decoded = net.decode(codes, length=time)
    assert decoded.shape[2] == time
    for ends in ([0, 1, time], [0, time // 3, time // 2, time], [*range(0, time, max(29, time // 9)), time]):
        encoder, decoder = StreamEncoder(net, batch=2), StreamDecoder(net, batch=2, length=time)
        parts, blocks = [], []
        for begin, end in pairwise(ends):
            parts.append(encoder.push(audio[..., begin:end]))
            blocks.append(decoder.push(parts[-1]))
            assert decoder.time >= end - net.delay
        parts.append(encoder.flush())
        blocks += [decoder.push(parts[-1]), decoder.flush()]
        assert torch.equal(torch.cat(parts, dim=2), codes)
        torch.testing.assert_close(torch.cat(blocks, dim=2), decoded, rtol=0, atol=1e-5)


def test_delays() -> None:
    causal, ahead = EnCodec(EnCodecConfig(**SMALL)), MODELS["ahead"]
    assert causal.receptive_field() == ((UNBOUNDED, 0), (UNBOUNDED, 0))
    assert causal.lookahead == 0
    assert causal.delay == 7 * 320  # reflection in the last convolution; later frames come at once
    assert ahead.lookahead == sum(context.future for context in ahead.receptive_field()) * 40
    constant = EnCodec(EnCodecConfig(padding="constant", **SMALL))
    assert constant.delay == 320


@EVERY
def test_the_future_of_a_frame_is_that_of_the_gradient(net: EnCodec) -> None:
    hop, middle, frames = net.frame_spec.hop, 20, 40
    field = net.receptive_field()
    audio = noise(1, 1, frames * hop).requires_grad_()
    torch.autograd.backward(net.analyze(audio)[..., middle].sum())
    assert audio.grad is not None
    assert int(audio.grad[0, 0].nonzero().max()) // hop - middle == field.encoder.future
    latents = noise(1, 8, frames).requires_grad_()
    torch.autograd.backward(net.synthesize(latents)[..., middle * hop : (middle + 1) * hop].sum())
    assert latents.grad is not None
    assert int(latents.grad[0].abs().sum(dim=0).nonzero().max()) - middle == field.decoder.future


@EVERY
def test_rows_of_a_padded_batch_are_coded_as_alone(net: EnCodec) -> None:
    audio, lengths = noise(3, 1, 500), [500, 333, 1]
    codes = net.encode(audio, lengths=lengths)
    decoded = net.decode(codes, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = net.encode(audio[row : row + 1, :, :length])
        assert torch.equal(codes[row : row + 1, :, : alone.shape[2]], alone)
        torch.testing.assert_close(
            decoded[row : row + 1, :, :length], net.decode(alone, length=length), rtol=0, atol=1e-5
        )
        assert not decoded[row, :, length:].any()


@EVERY
def test_tiles_equal_the_whole(net: EnCodec) -> None:
    audio = noise(1, 1, 12_345)
    with torch.no_grad():
        latents = net.analyze(audio)
        decoded = net.synthesize(latents)
    torch.testing.assert_close(net.analyze(audio), latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(net.synthesize(latents), decoded, rtol=0, atol=1e-5)


@EVERY
def test_the_gradient_reaches_every_part(net: EnCodec) -> None:
    net = model(net.config).train()
    output = net(noise(2, 1, 590))
    assert output.audio.shape == (2, 1, 590)
    torch.autograd.backward(output.audio.square().mean() + output.quantized.commitment)
    assert not [
        name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]


# segments

SEGMENTS = EnCodecSegmentsConfig(sample_rate=8000, hop=12, ratios=(4, 3), segment=120, segment_stride=114, **SMALL)


def segments_model() -> EnCodecSegments:
    built = scaled(EnCodecSegments(SEGMENTS))
    assert isinstance(built, EnCodecSegments)
    built.init_from_audio(noise(4, 2, 2000))
    return built


STEREO = segments_model()
SEGMENT_LENGTHS = [1, 12, 114, 115, 119, 120, 121, 229, 240, 350, 1000]  # overlaps of 6 samples


@pytest.mark.slow
@pytest.mark.parametrize("time", SEGMENT_LENGTHS)
def test_segments_are_coded_alone_and_added_with_triangles(time: int) -> None:
    audio = noise(1, 2, time)
    encoded = STEREO.encode(audio)
    assert isinstance(encoded, Encoded)
    codes, scales, total, weight = [], [], torch.zeros(1, 2, time), torch.zeros(time)
    first_size = -(-min(time, 120) // 12) * 12
    triangle = 0.5 - (torch.linspace(0, 1, first_size + 2)[1:-1] - 0.5).abs()
    for begin in range(0, time, 114):
        segment = audio[..., begin : begin + 120]
        scale = segment.mean(dim=1).square().mean().sqrt() + 1e-8
        own = STEREO.quantizer.encode(STEREO.encoder((segment / scale).transpose(1, 2)).transpose(1, 2))
        decoded = STEREO.decoder(STEREO.quantizer.decode(own).transpose(1, 2)).transpose(1, 2) * scale
        end = min(time, begin + decoded.shape[2])
        total[..., begin:end] += (triangle[: decoded.shape[2]] * decoded)[..., : end - begin].detach()
        weight[begin:end] += triangle[: end - begin]
        codes.append(own)
        scales.append(scale.expand(1, own.shape[2]))
    assert torch.equal(encoded.codes, torch.cat(codes, dim=2))
    assert encoded.codes.shape[2] == STEREO.frame_spec.frames(time)
    torch.testing.assert_close(encoded.scale, torch.cat(scales, dim=1))
    torch.testing.assert_close(STEREO.decode(encoded, length=time), total / weight, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("time", SEGMENT_LENGTHS)
def test_streams_of_segments_equal_the_whole_signal(time: int) -> None:
    audio = noise(2, 2, time)
    whole = STEREO.encode(audio)
    assert isinstance(whole, Encoded)
    for size in (7, 100, 333):
        encoder, decoder = StreamEncoder(STEREO, batch=2), StreamDecoder(STEREO, batch=2)
        parts, blocks = [], []
        for number, part in enumerate(torch.split(audio, size, dim=2)):
            parts.append(encoder.push(part))
            blocks.append(decoder.push(parts[-1]))
            assert decoder.time >= min(time, (number + 1) * size) - STEREO.delay - SEGMENTS.hop
        parts.append(encoder.flush())
        blocks += [decoder.push(parts[-1]), decoder.flush()]
        assert torch.equal(torch.cat([split_scale(part)[0] for part in parts], dim=2), whole.codes)
        torch.testing.assert_close(torch.cat(blocks, dim=2), STEREO.decode(whole), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_rows_of_unequal_segments_are_coded_as_alone() -> None:
    audio, lengths = noise(3, 2, 400), [400, 236, 1]
    encoded = STEREO.encode(audio, lengths=lengths)
    decoded = STEREO.decode(encoded, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = STEREO.encode(audio[row : row + 1, :, :length])
        assert isinstance(alone, Encoded)
        assert torch.equal(split_scale(encoded)[0][row : row + 1, :, : alone.codes.shape[2]], alone.codes)
        expected = STEREO.decode(alone, length=length)
        torch.testing.assert_close(decoded[row : row + 1, :, :length], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_gradient_reaches_every_part_of_a_model_of_segments() -> None:
    net = segments_model().train()
    output = net(noise(2, 2, 300))
    assert output.audio.shape == (2, 2, 300)
    torch.autograd.backward(output.audio.square().mean() + output.quantized.commitment)
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not without


@pytest.mark.parametrize(("segment", "stride"), [(48_000, 47_520), (120, 114), (100, 100), (100, 50)])
def test_segments_follow_from_frames(segment: int, stride: int) -> None:
    spec = FrameSpec(48_000, 20, 0, 4, 16, segment=segment, segment_stride=stride)
    times = range(1, 3 * segment, 7 if segment < 1000 else 1009)
    for time in times:
        parts = [-(-min(segment, time - begin) // 20) for begin in range(0, time, stride)]
        assert spec.frames(time) == sum(parts)
        assert spec.segments(spec.frames(time)) == parts
        assert spec.frames(spec.time(spec.frames(time))) == spec.frames(time)
        assert spec.frames(spec.time(spec.frames(time)) + 1) > spec.frames(time)
    assert spec.frames_of(np.array([0, *times])).tolist() == [0, *map(spec.frames, times)]
    with pytest.raises(ConfigError, match="segment_stride is 10"):
        FrameSpec(48_000, 20, 0, 4, 16, segment=100, segment_stride=10)


@pytest.mark.parametrize("time", [108, 208, 210, 215])
def test_files_keep_the_scale_of_a_short_last_segment(time: int, tmp_path: Path) -> None:
    """With 48 kHz and 47 521 to 47 680 samples, segments of 149 and 1 frames look like one of 150 frames."""
    config = SEGMENTS.model_copy(update={"segment_stride": 102})
    net = EnCodecSegments(config)
    net.load_state_dict(STEREO.state_dict())
    save_model(tmp_path / "stereo.safetensors", net.eval(), training={})
    saved = load_model(tmp_path / "stereo.safetensors")
    audio = noise(1, 2, time)
    audio[..., -6:] *= 0.001
    soundfile.write(tmp_path / "a.wav", audio[0].T.numpy(), 8000, subtype="FLOAT")
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=saved)
    encoded = saved.encode(audio)
    with bitstream.open_reader(tmp_path / "a.codec") as reader:
        scales = [scale for _, scale in reader.packets_with_scale() if scale is not None]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(scales, axis=1)), split_scale(encoded)[1])
    decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=saved, subtype="FLOAT")
    restored, _ = read_audio(tmp_path / "b.wav")
    torch.testing.assert_close(torch.from_numpy(restored)[None], saved.decode(encoded, length=time))


# checkpoints


def original(path: Path, *, normed: bool = True) -> Path:
    tensors = theirs(MODELS_24K, "encodec")
    if normed:
        tensors = weight_normed(tensors, g="weight_g", v="weight_v")
    for number in range(3):
        tensors[f"quantizer.vq.layers.{number}._codebook.inited"] = torch.ones(1)
        tensors[f"quantizer.vq.layers.{number}._codebook.embed_avg"] = torch.ones(64, 8)
    torch.save(tensors, path)
    return path


MODELS_24K = model(EnCodecConfig(**SMALL))
HF: dict[str, Any] = {
    "model_type": "encodec",
    "target_bandwidths": [2.2],
    "sampling_rate": 8000,
    "audio_channels": 1,
    "normalize": False,
    "chunk_length_s": None,
    "hidden_size": 8,
    "num_filters": 4,
    "num_residual_layers": 2,
    "upsampling_ratios": [5, 4, 2],
    "norm_type": "weight_norm",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": False,
    "pad_mode": "reflect",
    "compress": 2,
    "num_lstm_layers": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": 64,
    "use_conv_shortcut": False,
}


@pytest.mark.slow
def test_a_file_of_the_original_gives_the_same_model(tmp_path: Path) -> None:
    net = codec.load(original(tmp_path / "encodec.th"))
    assert net.name == "encodec"
    assert net.config == MODELS_24K.config
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, MODELS_24K.state_dict()[name])
    folded = codec.load(original(tmp_path / "folded.th", normed=False))
    audio = noise(1, 1, 3000)
    assert torch.equal(folded.encode(audio), MODELS_24K.encode(audio))
    codec.checkpoint.save_model(tmp_path / "ours.safetensors", net, training={})
    ours = codec.load(tmp_path / "ours.safetensors")
    assert ours.weights_hash == net.weights_hash
    assert torch.equal(ours.encode(audio), net.encode(audio))


def test_a_folder_of_transformers_gives_the_same_model(tmp_path: Path) -> None:
    names = {"g": "parametrizations.weight.original0", "v": "parametrizations.weight.original1"}
    tensors = weight_normed(theirs(MODELS["ahead"], "transformers EncodecModel"), **names)
    net = codec.load(write_folder(tmp_path / "encodec_32khz", tensors, HF))
    assert net.name == "encodec_32khz"
    assert net.config == AHEAD
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, MODELS["ahead"].state_dict()[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pad_mode": "circular"}, "padding"),
        ({"norm_type": "layer_norm"}, "norm_type"),
        ({"trim_right_ratio": 0.5}, "trim_right_ratio"),
        ({"normalize": True}, "normalize"),
        ({"audio_channels": 2}, "audio_channels"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    tensors = theirs(MODELS["ahead"], "transformers EncodecModel")
    with pytest.raises(UnknownModel, match=f"without a usable configuration: .*{words}"):
        codec.load(write_folder(tmp_path / "folder", tensors, HF | change))


def test_checkpoints_of_models_of_segments(tmp_path: Path) -> None:
    released = scaled(EnCodecSegments(EnCodecSegmentsConfig(**SMALL)))
    torch.save(theirs(released, "encodec"), tmp_path / "encodec_48khz.th")
    net = codec.load(tmp_path / "encodec_48khz.th")
    assert net.config == released.config
    audio = noise(1, 2, 1000)
    assert torch.equal(split_scale(net.encode(audio))[0], split_scale(released.encode(audio))[0])
    config = HF | {
        "sampling_rate": 8000,
        "audio_channels": 2,
        "normalize": True,
        "chunk_length_s": 0.015,
        "overlap": 0.05,
        "norm_type": "time_group_norm",
        "num_residual_layers": 1,
        "upsampling_ratios": [4, 3],
        "use_conv_shortcut": True,
    }
    net = codec.load(write_folder(tmp_path / "folder", theirs(STEREO, "transformers EncodecModel"), config))
    assert net.config == SEGMENTS
    assert net.frame_spec == STEREO.frame_spec


def test_incomplete_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    tensors = theirs(MODELS_24K, "encodec")
    lost = {name: tensor for name, tensor in tensors.items() if name != "decoder.model.1.lstm.weight_hh_l1"}
    for content, words in (
        (lost, "missing: decoder.model.1.lstm.weight_hh_l1"),
        (tensors | {"decoder.model.99.weight": torch.zeros(2)}, "not part of such a model: decoder.model.99.weight"),
        ({name: tensor for name, tensor in tensors.items() if ".3.conv" not in name}, "without a usable configuration"),
    ):
        torch.save(content, tmp_path / "bad.th")
        with pytest.raises(UnknownModel, match=words):
            codec.load(tmp_path / "bad.th")


def test_ratios_that_do_not_make_the_hop_are_refused() -> None:
    with pytest.raises(ConfigError, match="set hop = 320"):
        EnCodecConfig.from_data({"hop": 300})
