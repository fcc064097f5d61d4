"""Streams against a model whose codes and audio can be computed by hand."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codec.errors import UsageError
from codec.io.audio import resample
from codec.models.base import CodecConfig, Context, Encoded, ReceptiveField, StepCodec
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.trial_family import trial_model
from tests.tiny import tiny_model

HOP = 4


class Steps(StepCodec):
    """Codebook 0 is the mean of the frame's samples in steps of 1/100, codebook 1 the mean of the frame before.

    The decoder repeats the mean of codebook 0 for a hop, one hop late.
    """

    def __init__(self) -> None:
        super().__init__(
            CodecConfig(family="steps", sample_rate=100, hop=HOP, num_codebooks=2, codebook_size=201), decoder_delay=HOP
        )
        self.anywhere = torch.nn.Parameter(torch.ones(1))  # a model's device is that of its parameters

    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Context(1, 0), Context(1, 0))

    def latents_step(self, audio: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def audio_step(self, latents: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def encoder_state(self, batch: int) -> Tensor:
        return torch.full((batch, 1), 100)

    def encode_step(self, audio: Tensor, state: Tensor, *, num_codebooks: int | None = None) -> tuple[Tensor, Tensor]:
        means = audio.reshape(len(audio), -1, HOP).mean(2)  # [batch, frames]
        codes = (means * 100 + 100).round().long()
        both = torch.stack([codes, torch.cat([state, codes[:, :-1]], dim=1)], dim=1)
        return both[:, : self.check_codebooks(num_codebooks)], codes[:, -1:]

    def decoder_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1, HOP)

    def decode_step(self, codes: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.check_codes(codes)
        audio = torch.cat([state, ((codes[:, :1] - 100) / 100).repeat_interleave(HOP, dim=2)], dim=2)
        return audio[:, :, :-HOP], audio[:, :, -HOP:]


MODEL = Steps()
TINY = tiny_model()


def signal(batch: int, time: int) -> Tensor:
    return torch.as_tensor(np.random.default_rng(time).uniform(-1, 1, (batch, 1, time)), dtype=torch.float32)


def expected_codes(audio: Tensor) -> Tensor:
    """Codes computed frame by frame: ceil(time / hop) frames and one more for the delay."""
    frames = -(-audio.shape[2] // HOP) + 1
    padded = torch.zeros(len(audio), frames * HOP)
    padded[:, : audio.shape[2]] = audio[:, 0]
    steps = [torch.round(padded[:, t * HOP : (t + 1) * HOP].mean(1) * 100 + 100) for t in range(frames)]
    return torch.stack([torch.stack(steps, 1), torch.stack([torch.full_like(steps[0], 100), *steps[:-1]], 1)], 1).long()


def cut(signal: Tensor, pieces: list[int]) -> list[Tensor]:
    ends = np.cumsum([0, *pieces, signal.shape[2]]).tolist()
    return [signal[:, :, begin:end] for begin, end in pairwise(ends)]


@pytest.mark.slow
@settings(deadline=None)
@given(batch=st.integers(1, 3), time=st.integers(1, 50), pieces=st.lists(st.integers(0, 15), max_size=8))
def test_streams_equal_the_computation_by_hand_for_any_chunks(batch: int, time: int, pieces: list[int]) -> None:
    audio = signal(batch, time)
    expected = expected_codes(audio)
    encoder = StreamEncoder(MODEL, batch=batch)
    got = [encoder.push(piece) for piece in cut(audio, pieces)]
    assert all(codes.dtype == torch.int64 and codes.shape[:2] == (batch, 2) for codes in got)
    codes = torch.cat([*got, encoder.flush()], dim=2)
    assert torch.equal(codes, expected)
    assert (encoder.time, encoder.frames) == (time, expected.shape[2])

    decoder = StreamDecoder(MODEL, batch=batch, length=time)
    back = torch.cat([*(decoder.push(piece) for piece in cut(codes, pieces)), decoder.flush()], dim=2)
    assert back.shape == (batch, 1, time)
    assert decoder.time == time
    torch.testing.assert_close(back[:, 0], ((expected[:, 0, :-1] - 100) / 100).repeat_interleave(HOP, 1)[:, :time])


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(batch=st.integers(1, 2), time=st.integers(1, 500), pieces=st.lists(st.integers(0, 250), max_size=5))
def test_a_stream_equals_the_model_on_the_whole_signal(batch: int, time: int, pieces: list[int]) -> None:
    model, audio = TINY, signal(batch, time)
    expected = model.encode(audio, num_codebooks=2)
    encoder = StreamEncoder(model, num_codebooks=2, batch=batch)
    codes = torch.cat([*(encoder.push(piece) for piece in cut(audio, pieces)), encoder.flush()], dim=2)
    assert torch.equal(codes, expected)
    decoder = StreamDecoder(model, batch=batch, length=time)
    back = torch.cat([decoder.push(piece) for piece in cut(codes, pieces)], dim=2)
    torch.testing.assert_close(back, model.decode(expected, length=time), rtol=0, atol=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(
    rate=st.sampled_from([4000, 8000, 11025, 48000]),
    time=st.integers(1, 4000),
    pieces=st.lists(st.integers(0, 900), max_size=5),
)
def test_a_stream_at_another_rate_equals_the_whole_signal(rate: int, time: int, pieces: list[int]) -> None:
    """Cut anywhere, codes and audio are those of the whole signal, resampled; nothing of its length is lost."""
    model, audio = TINY, signal(2, time)
    encoder = StreamEncoder(model, batch=2, input_rate=rate)
    codes = torch.cat([*(encoder.push(piece) for piece in cut(audio, pieces)), encoder.flush()], dim=2)
    assert torch.equal(codes, model.encode(audio, sample_rate=rate))
    assert (encoder.time, encoder.frames) == (time, codes.shape[2])

    decoder = StreamDecoder(model, batch=2, output_rate=rate, length=time)
    back = torch.cat([*(decoder.push(piece) for piece in cut(codes, pieces)), decoder.flush()], dim=2)
    assert back.shape == (2, 1, time)
    assert decoder.time == time
    whole = model.decode(codes, length=math.ceil(time * model.sample_rate / rate))
    expected = resample(whole[:, 0].numpy(), model.sample_rate, rate)[:, :time]
    np.testing.assert_allclose(back[:, 0].numpy(), expected, atol=1e-5)


def test_a_stereo_stream_at_another_rate() -> None:
    model, audio = trial_model(), 0.1 * torch.randn(1, 2, 5000, generator=torch.Generator().manual_seed(0))
    encoder, decoder = StreamEncoder(model, input_rate=44100), StreamDecoder(model, output_rate=44100)
    codes, scale = zip(*[encoder.push(piece) for piece in cut(audio, [700, 2000])], encoder.flush(), strict=True)
    whole = model.encode(audio, sample_rate=44100)
    assert isinstance(whole, Encoded)
    assert torch.equal(torch.cat(codes, 2), whole.codes)
    back = torch.cat([decoder.push(Encoded(*piece)) for piece in zip(codes, scale, strict=True)] + [decoder.flush()], 2)
    frames = whole.codes.shape[2]
    assert back.shape == (1, 2, math.ceil(frames * 40 * 44100 / 8000))


def test_a_tone_passes_a_live_stream_at_48_khz() -> None:
    """A tone of 1 kHz at 48 kHz has its frequency in the output: resampling goes in the right direction."""
    model = tiny_model()
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(9600) / 48000)[None, None]
    assert torch.equal(
        torch.cat([(encoder := StreamEncoder(model, input_rate=48000)).push(tone), encoder.flush()], 2)[:, :, 5:-5],
        model.encode(torch.sin(2 * math.pi * 1000 * torch.arange(1600) / 8000)[None, None])[:, :, 5:-5],
    )


@pytest.mark.parametrize("rate", [0, 44100.0, True, 1])
def test_invalid_rates(rate: int) -> None:
    with pytest.raises(UsageError, match="input_rate is"):
        StreamEncoder(tiny_model(), input_rate=rate)
    with pytest.raises(UsageError, match="output_rate is"):
        StreamDecoder(tiny_model(), output_rate=rate)


def test_a_bit_rate_chooses_the_codebooks() -> None:
    model = tiny_model()
    assert StreamEncoder(model, bitrate=model.frame_spec.bitrate(2)).num_codebooks == 2


def test_each_frame_comes_with_its_last_sample() -> None:
    encoder, audio = StreamEncoder(MODEL), signal(1, 12)
    counts = [encoder.push(audio[:, :, t : t + 1]).shape[2] for t in range(12)]
    assert counts == [0, 0, 0, 1] * 3


def test_without_a_length_the_last_frame_is_complete() -> None:
    decoder = StreamDecoder(MODEL)
    assert decoder.push(expected_codes(signal(1, 9))).shape == (1, 1, 12)
    assert decoder.flush().shape == (1, 1, 0)


def test_interleaved_streams_equal_separate_streams() -> None:
    one, two = signal(1, 30), signal(1, 31)
    first, second = StreamEncoder(MODEL), StreamEncoder(MODEL)
    codes: tuple[list[Tensor], list[Tensor]] = ([], [])
    for t in range(0, 30, 5):
        codes[0].append(first.push(one[:, :, t : t + 5]))
        codes[1].append(second.push(two[:, :, t : t + 5]))
    codes[1].append(second.push(two[:, :, 30:]))
    assert torch.equal(torch.cat([*codes[0], first.flush()], 2), expected_codes(one))
    assert torch.equal(torch.cat([*codes[1], second.flush()], 2), expected_codes(two))


def test_nothing_pushed_gives_no_frames() -> None:
    assert StreamEncoder(MODEL).flush().shape == (1, 2, 0)
    assert StreamDecoder(MODEL, length=0).flush().shape == (1, 1, 0)


def test_numpy_arrays_of_any_float_type() -> None:
    audio = signal(2, 9)
    encoder = StreamEncoder(MODEL, batch=2)
    codes = torch.cat([encoder.push(audio.numpy().astype(np.float64)), encoder.flush()], 2)
    assert torch.equal(codes, expected_codes(audio))
    assert StreamDecoder(MODEL, batch=2).push(codes.numpy()).shape == (2, 1, 12)


def test_fewer_codebooks() -> None:
    encoder = StreamEncoder(MODEL, num_codebooks=1)
    audio = signal(1, 9)
    codes = torch.cat([encoder.push(audio), encoder.flush()], 2)
    assert torch.equal(codes, expected_codes(audio)[:, :1])
    assert StreamDecoder(MODEL).push(codes).shape == (1, 1, 12)


@pytest.mark.parametrize("num_codebooks", [0, 3, -1])
def test_codebooks_the_model_lacks(num_codebooks: int) -> None:
    with pytest.raises(UsageError, match=f"codebooks, not {num_codebooks}"):
        StreamEncoder(MODEL, num_codebooks=num_codebooks)


@pytest.mark.parametrize(
    "audio", [torch.zeros(1, 9), torch.zeros(1, 2, 9), torch.zeros(2, 1, 9), torch.zeros(1, 1, 9, dtype=torch.int16)]
)
def test_audio_of_wrong_shape_or_type(audio: Tensor) -> None:
    with pytest.raises(UsageError, match="audio is"):
        StreamEncoder(MODEL).push(audio)


@pytest.mark.parametrize("sample", [math.nan, math.inf, -2e6])
def test_samples_that_are_not_finite(sample: float) -> None:
    stream = StreamEncoder(MODEL)
    with pytest.raises(UsageError, match="NaN, infinite or beyond"):
        stream.push(torch.full((1, 1, 9), sample))
    assert stream.time == 0


@pytest.mark.parametrize("shape", [(), (1, 9), (1, 3, 9), (1, 3, 0), (1, 0, 9), (2, 2, 9)])
def test_codes_of_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"codes are|codebooks, not"):
        StreamDecoder(MODEL).push(torch.zeros(shape, dtype=torch.int64))


def test_flushed_streams_are_closed() -> None:
    encoder, decoder = StreamEncoder(MODEL), StreamDecoder(MODEL)
    encoder.flush()
    decoder.flush()
    calls: list[Callable[[], Tensor]] = [
        encoder.flush,
        decoder.flush,
        lambda: encoder.push(signal(1, 9)),
        lambda: decoder.push(expected_codes(signal(1, 9))),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="flushed"):
            call()


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": -1}, {"length": -1}])
def test_invalid_sizes(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be at least"):
        StreamDecoder(MODEL, **wrong)
    if "batch" in wrong:
        with pytest.raises(UsageError, match="must be at least"):
            StreamEncoder(MODEL, **wrong)


def test_missing_frames_are_reported() -> None:
    decoder = StreamDecoder(MODEL, length=13)
    decoder.push(expected_codes(signal(1, 12)))
    with pytest.raises(UsageError, match="the last 1 samples at 100 Hz are missing"):
        decoder.flush()
