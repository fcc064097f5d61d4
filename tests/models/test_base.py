"""What every codec offers a caller: ordinary tensors, gradients, unequal lengths, rates, sizes, one precision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codec.errors import ConfigError, UsageError
from codec.models.base import without_peak_warnings
from codec.models.causal import CausalCodec
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers import processes
from tests.tiny import CONFIG, tiny_model

HOP, RATE = CONFIG.hop, CONFIG.sample_rate


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively_model() -> CausalCodec:
    """A model in which every weight matters, because fresh networks add zeros."""
    model = tiny_model()
    for number, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    model.limit = math.inf  # it is loud
    return model


MODEL = lively_model()
AUDIO = 0.3 * noise(2, 1, 20 * HOP)
CODES = MODEL.encode(AUDIO)


def leaves(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [leaf for inner in state for leaf in leaves(inner)]


# ordinary tensors


def stream_codes() -> Tensor:
    encoder = StreamEncoder(MODEL, batch=2)
    return torch.cat([encoder.push(AUDIO[..., :777]), encoder.push(AUDIO[..., 777:]), encoder.flush()], dim=2)


@pytest.mark.parametrize("ambient", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_no_result_is_an_inference_tensor(ambient: Any) -> None:
    with ambient():
        codes, coder = MODEL.encode_step(AUDIO, MODEL.encoder_state(2))
        audio, decoder = MODEL.decode_step(codes, MODEL.decoder_state(2))
        made = [
            *leaves((codes, coder, audio, decoder)),
            MODEL.encode(AUDIO),
            *MODEL.encode([AUDIO[0], AUDIO[1]]),
            MODEL.codes(AUDIO).codes,
            MODEL.decode(codes),
            MODEL.decode(codes, lengths=[5, 7]),
            MODEL.decode(codes, grad=True),
            StreamEncoder(MODEL, batch=2).push(AUDIO),
            StreamDecoder(MODEL, batch=2).push(codes),
            StreamEncoder(MODEL, batch=2, input_rate=16000).push(AUDIO),
            (stream := StreamDecoder(MODEL, batch=2, output_rate=16000)).push(codes),
            stream.flush(),
        ]
    assert not any(tensor.is_inference() for tensor in made)


@pytest.mark.parametrize(
    "codes", [MODEL.encode(AUDIO), stream_codes(), MODEL.encode_step(AUDIO, MODEL.encoder_state(2))[0]]
)
def test_codes_can_be_embedded_and_trained_on(codes: Tensor) -> None:
    table = nn.Embedding(CONFIG.codebook_size, 4)
    torch.autograd.backward(table(codes).square().sum())
    assert table.weight.grad is not None
    assert table.weight.grad.any()
    codes[..., 0] = 3  # in place
    codes.clamp_(max=5)
    assert int(codes.max()) <= 5


def test_decoded_audio_can_enter_a_loss_and_be_written_to() -> None:
    decoder = StreamDecoder(MODEL, batch=2)
    for audio in (MODEL.decode(CODES), decoder.push(CODES), MODEL.decode_step(CODES, MODEL.decoder_state(2))[0]):
        weight = torch.ones(1, requires_grad=True)
        torch.autograd.backward((audio * weight).square().mean())
        assert weight.grad is not None
        assert weight.grad > 0
        audio.mul_(0.5)
        assert not audio.requires_grad


def test_states_can_be_trained_through() -> None:
    """A state of `encode_step` can enter a forward pass with gradients."""
    _, state = MODEL.encode_step(AUDIO, MODEL.encoder_state(2))
    latents, _ = MODEL.latents_step(AUDIO, state)
    torch.autograd.backward(latents.square().mean())
    MODEL.zero_grad()


def test_the_distance_table_is_valid_in_all_modes() -> None:
    model = lively_model()
    with torch.inference_mode():
        assert torch.equal(model.encode(AUDIO), CODES)
    assert torch.equal(model.encode(AUDIO), CODES)
    torch.autograd.backward(model(AUDIO).audio.square().mean())
    assert torch.equal(model.encode(AUDIO), CODES)


def test_a_stream_keeps_no_graph() -> None:
    encoder = StreamEncoder(MODEL, batch=2)
    encoder.push(AUDIO.clone().requires_grad_()[..., :777])
    assert not encoder._rest.requires_grad


# gradients


@pytest.mark.slow
def test_decode_with_gradients() -> None:
    model = lively_model()
    audio = model.decode(CODES, grad=True)
    torch.testing.assert_close(audio, MODEL.decode(CODES), rtol=1e-5, atol=1e-5)
    torch.autograd.backward(audio.square().mean())
    silent = [name for name, weight in model.decoder.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []
    assert all(weight.grad is None for weight in model.encoder.parameters())
    assert not model.decode(CODES).requires_grad


@pytest.mark.parametrize("length", [None, 0, 1, 777])
def test_gradients_reach_latents(length: int | None) -> None:
    latents = MODEL.quantizer.decode(CODES).detach().requires_grad_()
    audio = MODEL.decode_latents(latents, length=length)
    torch.testing.assert_close(audio, MODEL.decode(CODES, length=length), rtol=1e-5, atol=1e-5)
    if length != 0:
        torch.autograd.backward(audio.square().mean())
        assert latents.grad is not None
        assert latents.grad[:, : CONFIG.dim].any()
    MODEL.zero_grad()


def test_invalid_latents_are_refused() -> None:
    with pytest.raises(UsageError, match=r"latents are torch.int64 \[2, 3, 21\]; give \[batch, dim, frames\]"):
        MODEL.decode_latents(CODES)
    with pytest.raises(UsageError, match="21 frames hold 0 to 1600 samples, not 1601"):
        MODEL.decode_latents(MODEL.quantizer.decode(CODES), length=1601)


# unequal lengths

TIMES = [1, HOP, 3 * HOP + 5, 7 * HOP - 1]
RECORDINGS = [0.3 * noise(time, seed=time) for time in TIMES]


@pytest.mark.parametrize("kind", ["tensors", "arrays", "doubles", "rows"])
def test_recordings_in_a_list_get_the_codes_they_get_alone(kind: str) -> None:
    kinds: dict[str, list[Any]] = {
        "tensors": RECORDINGS,
        "arrays": [item.numpy() for item in RECORDINGS],
        "doubles": [item.double().numpy() for item in RECORDINGS],
        "rows": [item[None] for item in RECORDINGS],
    }
    codes, frames = MODEL.encode(kinds[kind])
    assert frames.tolist() == [math.ceil(time / HOP) + 1 for time in TIMES]
    audio = MODEL.decode(codes, lengths=TIMES)
    assert audio.shape == (len(TIMES), 1, max(TIMES))
    for row, recording in enumerate(RECORDINGS):
        alone = MODEL.encode(recording[None, None])
        assert torch.equal(codes[row : row + 1, :, : frames[row]], alone)
        own = MODEL.decode(alone, length=TIMES[row])
        torch.testing.assert_close(audio[row : row + 1, :, : TIMES[row]], own, rtol=1e-5, atol=1e-5)
        assert not audio[row, :, TIMES[row] :].any()


@pytest.mark.parametrize(
    "kind", [list, tuple, np.array, torch.tensor, lambda times: torch.tensor(times, dtype=torch.int32)]
)
def test_lengths_as_list_array_or_tensor(kind: Any) -> None:
    padded = nn.utils.rnn.pad_sequence(RECORDINGS, batch_first=True, padding_value=math.nan)[:, None]
    codes, frames = MODEL.encode(RECORDINGS)
    assert torch.equal(MODEL.encode(padded, lengths=kind(TIMES)), codes)
    padded_codes = codes.clone()
    for row, own in enumerate(frames.tolist()):
        padded_codes[row, :, own:] = -1  # any value is ignored there
    expected = MODEL.decode(codes, lengths=TIMES)
    torch.testing.assert_close(MODEL.decode(padded_codes, lengths=kind(TIMES)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 2, 3], r"lengths are \[3\]; give one per item, \[2\]"),
        (5, r"lengths are \[\]; give one per item"),
        ([1.0, 2.0], "lengths are torch.float32; give whole numbers"),
        ([1, 1601], "lengths run from 1 to 1601; the audio has 0 to 1600 samples"),
        ([-1, 1], "lengths run from -1 to 1"),
        ("ab", "lengths are str; give a list, array or tensor"),
        ([[1], [2, 3]], "lengths are list; give a list, array or tensor"),
    ],
)
def test_invalid_lengths_are_refused(lengths: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MODEL.encode(AUDIO, lengths=lengths)
    with pytest.raises(UsageError, match=message.replace("the audio has", "21 frames hold")):
        MODEL.decode(CODES, lengths=lengths)


def test_length_together_with_lengths_is_refused() -> None:
    with pytest.raises(UsageError, match="length and lengths are both given"):
        MODEL.decode(CODES, length=5, lengths=[5, 5])
    with pytest.raises(UsageError, match="a list of recordings has its own lengths"):
        MODEL.encode(RECORDINGS, lengths=TIMES)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "the list of recordings is empty"),
        ([[0.0, 1.0]], "recording 0 is a list: give an array or tensor"),
        ([torch.zeros(5), torch.zeros(5, dtype=torch.int16)], "recording 1 is torch.int16: give floating point"),
        ([torch.zeros(2, 5)], r"recording 0 has shape \[2, 5\]; give \[time\] or \[1, time\].*an item of its own"),
        ([torch.zeros(0)], "at least one sample"),
        ([torch.full((5,), math.nan)], "NaN, infinite or beyond"),
    ],
)
def test_invalid_recordings_are_refused(items: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MODEL.encode(items)


# views


def test_a_view_has_the_duration_of_its_audio() -> None:
    view = MODEL.codes(AUDIO[..., :1234], num_codebooks=2)
    assert torch.equal(view.codes, MODEL.encode(AUDIO[..., :1234], num_codebooks=2))
    assert (view.frames, view.length, view.num_codebooks) == (17, 1234, 2)
    assert view.seconds == 1234 / RATE
    assert torch.equal(MODEL.decode(view), MODEL.decode(view.codes, length=1234))
    assert MODEL.decode(view, length=5).shape == (2, 1, 5)
    several = MODEL.codes([item.numpy() for item in RECORDINGS])
    assert [each.length for each in several] == TIMES
    for each, recording in zip(several, RECORDINGS, strict=True):
        assert torch.equal(each.codes, MODEL.encode(recording[None, None]))


def test_a_view_of_resampled_audio_has_the_length_at_the_models_rate() -> None:
    assert MODEL.codes(torch.zeros(1, 1, 11), sample_rate=RATE * 2).length == 6
    assert [view.length for view in MODEL.codes([np.zeros(11), np.zeros(4)], sample_rate=RATE * 2)] == [6, 2]


# sizes


def test_sizes_have_units() -> None:
    assert (MODEL.sample_rate, MODEL.frame_rate, MODEL.num_codebooks, MODEL.codebook_size) == (8000, 100.0, 3, 20)
    assert MODEL.channels == 1


def test_delay_equals_the_measured_delay_of_a_stream() -> None:
    """The time from pushing a sample to getting it back, one sample at a time."""
    encoder, decoder = StreamEncoder(MODEL), StreamDecoder(MODEL)
    waits, out = [], 0
    for time in range(5 * HOP):
        out += decoder.push(encoder.push(AUDIO[:1, :, time : time + 1])).shape[2]
        waits.append(time + 1 - out)  # the first sample that is not out yet came so long ago
    assert max(waits) + 1 == MODEL.delay


@pytest.mark.parametrize(
    ("asked", "num_codebooks"), [({"bitrate": 1.0}, 2), ({"bitrate": 1.49}, 2), ({"bitrate": 9.0}, 3), ({}, 3)]
)
def test_a_bit_rate_chooses_codebooks(asked: dict[str, Any], num_codebooks: int) -> None:
    assert torch.equal(MODEL.encode(AUDIO, **asked), CODES[:, :num_codebooks])  # 5 bits, 100 frames/s: 0.5 kbit/s each
    assert MODEL.codes(AUDIO, **asked).bitrate == 0.5 * num_codebooks


def test_invalid_bit_rates_are_refused() -> None:
    with pytest.raises(ConfigError, match="below this model's lowest rate"):
        MODEL.encode(AUDIO, bitrate=0.1)
    with pytest.raises(UsageError, match="ask for one of the two"):
        MODEL.encode(AUDIO, bitrate=1, num_codebooks=1)


# one precision


@pytest.mark.parametrize("change", ["half", "bfloat16", "double"])
def test_other_dtypes_are_refused(change: str) -> None:
    model = tiny_model()
    with pytest.raises(UsageError, match=r"^this model computes in float32, not torch.\w+: .*$"):
        getattr(model, change)()
    assert model.to("cpu", torch.float32) is model
    assert model.float() is model
    for how in ({"dtype": torch.float16}, {"tensor": torch.zeros(1, dtype=torch.bfloat16)}):
        with pytest.raises(UsageError, match="computes in float32"):
            model.to(**how)
    with pytest.raises(UsageError, match="computes in float32"):
        model.to(torch.float16)
    for convert in (lambda: model.type(torch.float16), nn.Sequential(nn.Identity(), model).half):
        with pytest.raises(UsageError, match="computes in float32"):
            convert()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    latents = MODEL.quantizer.decode(CODES)
    plain = MODEL.decode(CODES), MODEL.decode_latents(latents), MODEL.decode(CODES, grad=True)
    with torch.autocast("cpu", dtype):
        assert torch.equal(MODEL.encode(AUDIO), CODES)
        assert torch.equal(stream_codes(), CODES)
        fenced = MODEL.decode(CODES), MODEL.decode_latents(latents), MODEL.decode(CODES, grad=True)
        trained = MODEL(AUDIO)
    assert all(torch.equal(one, other) for one, other in zip(plain, fenced, strict=True))
    assert not torch.equal(trained.latents, MODEL(AUDIO).latents)  # training uses autocast


def test_lower_precision_of_products_changes_nothing() -> None:
    """`set_float32_matmul_precision`, common in training scripts, selects bfloat16 on CPUs that have it."""
    audio, before = MODEL.decode(CODES), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(MODEL.encode(AUDIO), CODES)
        assert torch.equal(MODEL.decode(CODES), audio)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_default_type_changes_nothing() -> None:
    audio = MODEL.decode(CODES)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(MODEL.encode(AUDIO), CODES)
        assert torch.equal(MODEL.decode(CODES), audio)
        assert torch.equal(stream_codes(), CODES)
    finally:
        torch.set_default_dtype(torch.float32)


def test_samples_that_look_like_integers_are_named() -> None:
    with pytest.warns(UserWarning, match=r"^audio peaks at \d+ times full scale, as if it held integers: divide "):
        MODEL.encode((AUDIO / AUDIO.abs().max() * 20000).round())


def test_samples_that_decoding_clips_are_named() -> None:
    model, loudest = tiny_model(), AUDIO[:1, :1] / AUDIO[:1, :1].abs().max()
    with pytest.warns(UserWarning, match=r"^audio peaks at \+9\.5 dBFS, and decoded audio is clipped at \+0\.4 dBFS: "):
        codes = model.encode(loudest * 3)
    with without_peak_warnings():
        assert torch.equal(model.encode(loudest * 3), codes)
    model.encode(loudest)


# sample rates


def tone(hertz: float, rate: int, seconds: float = 1.0) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds), dtype=torch.float64) / rate).float()


def test_audio_of_another_sample_rate_is_resampled() -> None:
    for seconds in (0.001, 0.3):
        at_rate = 0.3 * tone(440, RATE, seconds)
        for rate in (16000, 44100):
            other = 0.3 * tone(440, rate, seconds)
            codes = MODEL.encode(other[None, None], sample_rate=rate)
            assert codes.shape[2] == MODEL.frame_spec.frames(math.ceil(len(other) * RATE / rate))
            expected = MODEL.encode(at_rate[None, None])
            share = (codes[0, 0, 2:-3] == expected[0, 0, 2 : codes.shape[2] - 3]).float().mean()
            assert seconds < 0.1 or share > 0.8
    assert torch.equal(MODEL.encode(AUDIO, sample_rate=RATE), CODES)


def test_unequal_lengths_at_another_sample_rate() -> None:
    items = [tone(300, 16000, 0.1), tone(500, 16000, 0.25)[:3001]]
    codes, frames = MODEL.encode(items, sample_rate=16000)
    assert frames.tolist() == [MODEL.frame_spec.frames(800), MODEL.frame_spec.frames(1501)]
    for row, item in enumerate(items):
        assert torch.equal(codes[row : row + 1, :, : frames[row]], MODEL.encode(item[None, None], sample_rate=16000))
    padded = nn.utils.rnn.pad_sequence(items, batch_first=True)[:, None]
    assert torch.equal(MODEL.encode(padded, lengths=[1600, 3001], sample_rate=16000), codes)


@pytest.mark.parametrize("rate", [0, -1, 44100.0, "44100"])
def test_invalid_sample_rates_are_refused(rate: Any) -> None:
    with pytest.raises(UsageError, match="give Hz as an int, for example 48000"):
        MODEL.encode(AUDIO, sample_rate=rate)


@pytest.mark.slow
def test_torchaudio_is_not_imported_without_need() -> None:
    code = (
        "import sys, torch, codec; from tests.tiny import tiny_model\n"
        "model, audio = tiny_model(), torch.zeros(1, 1, 99)\n"
        "model.decode(model.encode(audio, sample_rate=8000)); codec.StreamEncoder(model).push(audio)\n"
        "sys.exit('torchaudio' in sys.modules)"
    )
    assert processes.run(code).returncode == 0
