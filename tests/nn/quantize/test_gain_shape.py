"""nn/gain_shape.py: envelopes against numpy, modes against a slow matching pursuit, and invariants of the quantizer."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from codec.models.causal import MDCT
from codec.nn.quantize import gain_shape
from codec.nn.quantize.gain_shape import (
    CLICK_ERROR,
    GAIN_WEIGHT,
    RANGE,
    STEP,
    TONE,
    TONE_ERROR,
    Envelope,
    GainShapeVQ,
    Modes,
    interpolation,
    pursue,
)
from codec.nn.quantize.residual import ResidualVQ

HOP, RATE, BANDS, DIM, NUM_CODEBOOKS, SIZE, MODES = 40, 8000, 5, 6, 5, 80, 16
FAR = 700.0  # Hz, where mel turns from linear to logarithmic


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# the envelope


def places(hertz: NDArray[np.float64], bands: int, rate: int) -> NDArray[np.float64]:
    """Positions of frequencies relative to the band centers, 0 to bands - 1."""
    mel = 2595 * np.log10(1 + hertz / FAR)
    whole = 2595 * np.log10(1 + rate / 2 / FAR)
    place: NDArray[np.float64] = np.clip(mel / whole * bands - 0.5, 0, bands - 1)
    return place


@pytest.mark.parametrize(("bands", "rate"), [(1, 8000), (5, 8000), (20, 24000), (37, 44100)])
def test_interpolation_uses_the_two_nearest_bands(bands: int, rate: int) -> None:
    hertz = np.linspace(0, rate / 2, 301)
    weights = interpolation(torch.from_numpy(hertz), bands, rate)
    assert weights.shape == (bands, 301)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(301))
    assert weights.min() >= 0
    values = np.random.default_rng(0).normal(size=bands)
    expected = np.interp(places(hertz, bands, rate), np.arange(bands), values)
    np.testing.assert_allclose(values @ weights.double().numpy(), expected, atol=1e-5)


def envelope_of(hop: int = HOP, exponent: float = 0.25) -> Envelope:
    return Envelope(bands=BANDS, hop=hop, sample_rate=RATE, exponent=exponent)


def weights_of(hop: int) -> NDArray[np.float64]:
    """[bands, hop]: weight of each bin in each band."""
    middles = (np.arange(hop) + 0.5) * RATE / (2 * hop)
    weights: NDArray[np.float64] = np.maximum(0, 1 - np.abs(places(middles, BANDS, RATE) - np.arange(BANDS)[:, None]))
    return weights


@pytest.mark.parametrize("decibels", [0, -40, -80, -100])
def test_the_envelope_equals_numpy(decibels: int) -> None:
    cosine, sine = (
        10 ** (decibels / 20) * noise(7, HOP, seed=seed) * torch.linspace(1, 0.001, HOP) ** 2 for seed in (0, 1)
    )
    power = (cosine.double().numpy() ** 2 + sine.double().numpy() ** 2) / 2
    weights = weights_of(HOP)
    bands = power @ (weights / weights.sum(axis=1, keepdims=True)).T + 1e-11  # [7, bands]
    bands += RANGE * bands.max(axis=1, keepdims=True)
    gain = np.sqrt(power.mean(axis=1, keepdims=True) + 1e-11)
    expected = np.concatenate([np.log(np.sqrt(bands) / gain), GAIN_WEIGHT * np.log(gain)], axis=1)
    envelope = envelope_of()
    measured = envelope.measure(cosine, sine)
    np.testing.assert_allclose(measured.numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(envelope.log_gain(measured).numpy(), np.log(gain), rtol=1e-4, atol=1e-4)


def test_the_envelope_of_silence_is_finite() -> None:
    measured = envelope_of().measure(torch.zeros(2, HOP), torch.zeros(2, HOP))
    assert measured.isfinite().all()
    assert envelope_of().log_gain(measured).exp().max() < gain_shape.SILENCE


def test_the_gain_of_a_steady_tone_is_steady() -> None:
    """The gain does not depend on phase; a gain of the MDCT bins alone would."""
    for hertz in (333.0, 1000.0, 2710.0):
        audio = 0.5 * torch.sin(2 * math.pi * hertz / RATE * torch.arange(60 * HOP))[None]
        spectrum, _ = MDCT(HOP).analyze(audio, torch.zeros(1, HOP))
        cosine, sine = spectrum[0, 2:].chunk(2, dim=-1)
        envelope = envelope_of()
        gains = envelope.log_gain(envelope.measure(cosine, sine)).exp()[:, 0]
        assert gains.std() < 0.02 * gains.mean()
        assert gains.mean().item() == pytest.approx(0.5 / math.sqrt(2), rel=0.02)


@pytest.mark.parametrize("exponent", [0.0, 0.25, 1.0])
def test_divisor_and_level_by_hand(exponent: float) -> None:
    envelope, description = envelope_of(exponent=exponent), noise(3, 4, BANDS + 1)
    shape, gain = description[..., :BANDS].double().numpy(), np.exp(description[..., BANDS:].numpy() / GAIN_WEIGHT)
    middles = places((np.arange(HOP) + 0.5) * RATE / (2 * HOP), BANDS, RATE)
    curve = np.apply_along_axis(lambda row: np.interp(middles, np.arange(BANDS), row), -1, shape)
    np.testing.assert_allclose(envelope.level(description).numpy(), gain * np.exp(curve), rtol=1e-4)
    np.testing.assert_allclose(envelope.divisor(description).numpy(), gain * np.exp(curve) ** exponent, rtol=1e-4)
    half = places(np.arange(HOP // 2 + 1) * RATE / HOP, BANDS, RATE)
    curve = np.apply_along_axis(lambda row: np.interp(half, np.arange(BANDS), row), -1, shape)
    np.testing.assert_allclose(envelope.half_level(description).numpy(), gain * np.exp(curve), rtol=1e-4)


def test_the_level_of_a_flat_spectrum_is_its_magnitude() -> None:
    flat = torch.full((1, HOP), 0.03)
    envelope = envelope_of()
    for size in (envelope.level, envelope.divisor):
        torch.testing.assert_close(size(envelope.measure(flat, flat)), flat, rtol=1e-3, atol=0)


# modes

LARGE = Modes(hop=480, sample_rate=24000, num_codebooks=11, codebook_size=1024, steps=63)
"""As of the default model."""


def sine_bins(hertz: float, *, amplitude: float = 0.5, rate: int = 24000, hop: int = 480) -> Tensor:
    """MDCT bins [frames, hop] of a steady sine."""
    audio = amplitude * torch.sin(2 * math.pi * hertz / rate * torch.arange(40 * hop, dtype=torch.float64)).float()
    spectrum, _ = MDCT(hop).analyze(audio[None], torch.zeros(1, hop))
    return spectrum[0, 2:, :hop]


def left_of(modes: Modes, bins: Tensor) -> tuple[Tensor, Tensor]:
    """(modes, share of the energy in the residual) of frames of bins, with equal weights."""
    mode, codes = modes.find(bins, torch.ones_like(bins))
    left = bins - modes.decode(mode.clamp(min=0), codes)
    return mode, left.square().sum(dim=1) / bins.square().sum(dim=1)


@pytest.mark.parametrize("amplitude", [0.9, 0.1, 1e-3])
@pytest.mark.parametrize("hertz", [60.0, 440.0, 1000.0, 3137.0, 9000.0])
def test_a_sine_is_a_tone(hertz: float, amplitude: float) -> None:
    mode, left = left_of(LARGE, sine_bins(hertz, amplitude=amplitude))
    found = mode >= 0
    assert found.float().mean() > 0.9
    assert (mode < LARGE.tones).all()
    assert left[found].max() <= TONE_ERROR * 1.001


@pytest.mark.parametrize("place", [0, 1, 239, 478, 479])
@pytest.mark.parametrize("value", [20.0, -0.4, 3e-4])
def test_a_single_bin_is_a_tone(place: int, value: float) -> None:
    bins = torch.zeros(1, 480)
    bins[0, place] = value
    mode, left = left_of(LARGE, bins)
    assert 0 <= mode < LARGE.tones
    assert left < 0.01


@pytest.mark.parametrize("place", [0, 1, 200, 479])
@pytest.mark.parametrize("value", [1.0, -0.3, 2e-3])
def test_a_click_in_noise_is_a_click(place: int, value: float) -> None:
    """A sample of a frame two hops long, with little noise."""
    audio = 1e-3 * value * noise(1, 960)
    audio[0, place] += value / math.sin(math.pi * (place + 0.5) / 960)  # what the window leaves of it
    spectrum, _ = MDCT(480).analyze(audio[:, 480:], audio[:, :480])
    mode, left = left_of(LARGE, spectrum[0, :, :480])
    assert (mode >= LARGE.tones).all()
    assert left.max() < math.expm1(STEP / 2) ** 2 * 1.2  # half a step of the gain
    assert left.max() <= CLICK_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("level", [1.0, 1e-2, 1e-4])
def test_noise_and_chords_are_not_modes(level: float) -> None:
    chord = sum(sine_bins(hertz) for hertz in range(200, 9000, 370))
    assert isinstance(chord, Tensor)
    for bins in (level * noise(200, 480), level * chord):
        assert (LARGE.find(bins, torch.ones_like(bins))[0] == -1).all()


def test_inaudible_frames_are_not_modes() -> None:
    bins = torch.zeros(2, 480)
    bins[0, 7] = 0.9 * math.sqrt(480) * gain_shape.SILENCE
    assert LARGE.find(bins, torch.ones_like(bins))[0].tolist() == [-1, -1]


def test_errors_count_by_their_weight() -> None:
    """A tone with noise in bins of low weight is still a tone."""
    bins = 0.05 * noise(1, 480)
    bins[0, 100] = 1.0
    even = torch.ones_like(bins)
    assert LARGE.find(bins, even)[0].item() == -1
    deaf = torch.full_like(bins, 0.01)
    deaf[0, 100] = 1.0
    mode, codes = LARGE.find(bins, deaf)
    assert mode.item() >= 0
    assert (codes // 2 == 100)[0, :3].all()


def slow_pursuit(
    signal: NDArray[np.float64], gain: float, ladder: list[float], most: int
) -> tuple[list[int], NDArray[np.float64]]:
    """Codes and residual, one bin and one codebook at a time."""
    left, codes = signal.copy(), []
    for amplitude in ladder:
        if amplitude == 0:
            codes.append(0)
            continue
        place = max(range(most), key=lambda bin_: abs(left[bin_]))
        sign = -1 if left[place] < 0 else 1
        codes.append(2 * place + (sign < 0))
        left[place] -= sign * amplitude * gain
    return codes, left


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), most=st.integers(1, HOP), gain=st.floats(0.01, 30))
def test_pursuit_equals_a_slow_matching_pursuit(seed: int, most: int, gain: float) -> None:
    ladder = [*TONE, 0.0, 0.0]
    signal = gain * noise(3, HOP, seed=seed) * torch.linspace(1, 0.1, HOP)
    codes, left = pursue(signal, torch.full((3,), gain), torch.tensor(ladder), most)
    for row in range(3):
        expected_codes, expected_left = slow_pursuit(signal[row].double().numpy(), gain, ladder, most)
        assert codes[row].tolist() == expected_codes
        np.testing.assert_allclose(left[row].numpy(), expected_left, atol=1e-5 * gain)


@pytest.mark.slow
@given(seed=st.integers(0, 10_000))
def test_the_residual_of_pursuit_is_the_decoding_error(seed: int) -> None:
    mode = torch.randint(0, LARGE.tones, (4,), generator=torch.Generator().manual_seed(seed))
    bins = noise(4, 480, seed=seed)
    codes, left = pursue(bins, LARGE.gains[mode].exp(), LARGE.tone, LARGE.places)
    torch.testing.assert_close(LARGE.decode(mode, codes), bins - left, rtol=1e-4, atol=1e-4)
    for count in (1, 5):  # the first codebooks are a coarser description
        coarse, _ = pursue(bins, LARGE.gains[mode].exp(), LARGE.tone[:count], LARGE.places)
        assert coarse.equal(codes[:, :count])


@pytest.mark.parametrize(("hop", "size", "steps"), [(40, 80, 16), (40, 100, 16), (40, 30, 7), (80, 20, 1)])
def test_every_code_decodes(hop: int, size: int, steps: int) -> None:
    """Indices beyond the table decode too, because files may contain them."""
    modes = Modes(hop=hop, sample_rate=24000, num_codebooks=3, codebook_size=size, steps=steps)
    assert len(modes) == modes.tones + modes.clicks == len(modes.gains) == steps
    assert (modes.clicks > 0) == (size >= 2 * hop)
    for mode in range(steps):
        codes = torch.arange(size)[:, None].expand(size, 3)
        bins = modes.decode(torch.full((size,), mode), codes)
        assert bins.shape == (size, hop)
        assert bins.isfinite().all()
        atoms = modes.tone if mode < modes.tones else modes.click
        expected = float(modes.gains[mode].exp() * atoms.sum())
        torch.testing.assert_close(bins.norm(dim=1), torch.full((size,), expected), rtol=1e-4, atol=0)
        assert modes.decode(torch.full((size,), mode), torch.full((size, 3), -1)).eq(0).all()


def test_a_code_holds_index_and_sign() -> None:
    bins = LARGE.decode(torch.tensor([3, 3]), torch.tensor([[14], [15]]))
    assert bins.nonzero().tolist() == [[0, 7], [1, 7]]
    assert bins[0, 7].item() == pytest.approx(TONE[0] * math.sqrt(480) * math.exp(-3 * STEP), rel=1e-5)
    assert bins[1, 7] == -bins[0, 7]
    click = LARGE.decode(torch.tensor([LARGE.tones + 2]), torch.tensor([[14]]))
    samples = click @ LARGE.to_samples
    assert samples[0, 7].item() == pytest.approx(math.exp(-2 * STEP), rel=1e-4)
    assert samples[0].abs().sum().item() == pytest.approx(math.exp(-2 * STEP), rel=1e-2)


def test_the_fold_is_its_own_inverse() -> None:
    torch.testing.assert_close(LARGE.to_samples @ LARGE.to_samples, torch.eye(480), rtol=0, atol=1e-5)


# the quantizer


class Frames(NamedTuple):
    """Latents [batch, ..., frames], and the kind of each frame."""

    latents: Tensor
    kinds: list[str]


def quantizer(modes: int = MODES, *, beam_size: int = 1, seed: int = 0) -> GainShapeVQ:
    torch.manual_seed(seed)
    residual = ResidualVQ(DIM, NUM_CODEBOOKS - 1, SIZE, beam_size=beam_size)
    made = GainShapeVQ(residual, dim=DIM, hop=HOP, bands=BANDS, sample_rate=RATE, exponent=0.25, modes=modes)
    made.envelopes[:, :BANDS] = 0.4 * noise(made.silence, BANDS, seed=seed)
    return made.eval()


VQ = quantizer()


def frames(batch: int = NUM_CODEBOOKS, count: int = 24, *, seed: int = 0) -> Frames:
    """Noise of every level, tones, clicks and silence in turn; the same kinds in every item."""
    levels = 10 ** (-3.5 * torch.rand(batch, count, 1, generator=torch.Generator().manual_seed(seed)))
    bins = noise(batch, count, HOP, seed=seed) * levels
    kinds = ["noise"] * count
    for frame in range(0, count, 4):
        kind = kinds[frame] = ("tone", "click", "silence")[frame // 4 % 3]
        for item in range(batch):
            place = (7 * frame + 13 * item) % HOP
            single = torch.zeros(HOP)
            size = {"tone": 0.5 + 0.5 * item, "click": 0.3 + 0.1 * item, "silence": 0.0}[kind]
            single[place] = (-1) ** item * size
            bins[item, frame] = single @ VQ.modes.to_samples if kind == "click" else single
    envelope = VQ.envelope.measure(bins, bins.roll(1, dims=-1))
    residual = noise(batch, count, DIM, seed=seed + 1)
    latents = torch.cat([residual, envelope, torch.zeros(batch, count, 1), bins], dim=-1).transpose(1, 2)
    return Frames(latents, kinds)


LATENTS, KINDS = frames()
CODES = VQ.encode(LATENTS)
BY_KIND = {kind: torch.tensor([kind == other for other in KINDS]) for kind in ("noise", "tone", "click", "silence")}


def test_codebook_0_holds_the_kind_of_a_frame() -> None:
    assert CODES.shape == (NUM_CODEBOOKS, NUM_CODEBOOKS, 24)
    assert 0 <= CODES.min() <= CODES.max() < SIZE
    assert VQ.silence == SIZE - 1 - MODES
    first, clicks = CODES[:, 0], VQ.silence + 1 + VQ.modes.tones
    assert (first[:, BY_KIND["noise"]] < VQ.silence).all()
    assert len(set(first[:, BY_KIND["noise"]].flatten().tolist())) > 10
    assert (first[:, BY_KIND["silence"]] == VQ.silence).all()
    assert ((first[:, BY_KIND["tone"]] > VQ.silence) & (first[:, BY_KIND["tone"]] < clicks)).all()
    assert (first[:, BY_KIND["click"]] >= clicks).all()


def test_noise_gets_the_nearest_envelope_and_residual_codes() -> None:
    parts, decoded = VQ.split(LATENTS), VQ.split(VQ.decode(CODES))
    some = BY_KIND["noise"]
    for item in range(NUM_CODEBOOKS):
        for frame in some.nonzero()[:, 0].tolist():
            distances = (VQ.envelopes - parts.envelope[item, :, frame]).square().sum(dim=1)
            assert CODES[item, 0, frame] == distances.argmin()
            assert decoded.envelope[item, :, frame].equal(VQ.envelopes[distances.argmin()])
    expected = VQ.residual.encode(parts.residual)
    assert CODES[:, 1:, some].equal(expected[..., some])
    assert decoded.residual[..., some].equal(VQ.residual.decode(expected)[..., some])
    assert (decoded.learned[..., some] == 1).all()
    assert (decoded.bins[..., some] == 0).all()


def test_modes_decode_to_their_frames() -> None:
    parts, decoded = VQ.split(LATENTS), VQ.split(VQ.decode(CODES))
    for kind, most in (("tone", 0.02), ("click", math.expm1(STEP / 2) ** 2 * 1.01)):
        some = BY_KIND[kind]
        wrong = (decoded.bins - parts.bins)[..., some].square().sum(dim=1)
        assert (wrong <= most * parts.bins[..., some].square().sum(dim=1)).all()
        for part in (decoded.residual, decoded.envelope):
            assert (part[..., some] == 0).all()
        assert (decoded.learned[..., some] == -1).all()


def test_silence_is_exact() -> None:
    some = BY_KIND["silence"]
    assert (CODES[:, 1:, some] == 0).all()
    decoded = VQ.split(VQ.decode(CODES))
    assert (decoded.learned[..., some] == -1).all()
    for part in (decoded.residual, decoded.envelope, decoded.bins):
        assert (part[..., some] == 0).all()
    odd = CODES.clone()
    odd[:, 1:, some] = 17  # which no encoder writes
    assert VQ.decode(odd).equal(VQ.decode(CODES))


@pytest.mark.parametrize("decibels", [-90, -107, -109, -120])
def test_silence_begins_at_108_db_below_full_scale(decibels: int) -> None:
    bins = noise(1, 30, HOP)
    bins = bins / bins.square().mean(dim=-1, keepdim=True).sqrt() * 10 ** (decibels / 20)
    envelope = VQ.envelope.measure(bins, bins)
    latents = torch.cat([torch.zeros(1, 30, DIM), envelope, torch.zeros(1, 30, 1), bins], dim=-1).transpose(1, 2)
    assert (VQ.encode(latents)[:, 0] == VQ.silence).all() == (decibels < -108)


@pytest.mark.parametrize("num_codebooks", range(1, NUM_CODEBOOKS + 1))
def test_any_number_of_codebooks_decodes(num_codebooks: int) -> None:
    assert VQ.encode(LATENTS, num_codebooks).equal(CODES[:, :num_codebooks])
    some, every = VQ.split(VQ.decode(CODES[:, :num_codebooks])), VQ.split(VQ.decode(CODES))
    assert some.envelope.equal(every.envelope)
    assert (some.learned[..., BY_KIND["noise"]] == (num_codebooks - 1) / (NUM_CODEBOOKS - 1)).all()
    assert (some.learned[..., ~BY_KIND["noise"]] == -1).all()
    mode = CODES[:, 0] > VQ.silence
    atoms = VQ.modes.decode(CODES[:, 0][mode] - VQ.silence - 1, CODES[:, 1:num_codebooks].transpose(1, 2)[mode])
    assert some.bins.transpose(1, 2)[mode].equal(atoms)
    if num_codebooks == 1:
        assert (some.residual == 0).all()
        assert (some.bins == 0).all()


@pytest.mark.parametrize("num_codebooks", range(1, NUM_CODEBOOKS + 1))
@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_number_of_codebooks_that_is_a_tensor(num_codebooks: int, beam_size: int) -> None:
    vq, latents = quantizer(beam_size=beam_size), frames().latents
    codes = vq.encode(latents, num_codebooks)
    prefix = vq.encode_prefix(latents, torch.tensor(num_codebooks))
    assert torch.equal(prefix, F.pad(codes, (0, 0, 0, NUM_CODEBOOKS - num_codebooks), value=-1))
    torch.testing.assert_close(vq.decode_prefix(prefix), vq.decode(codes))


def test_items_alone_equal_rows_of_the_batch() -> None:
    for item in range(NUM_CODEBOOKS):
        assert VQ.encode(LATENTS[item : item + 1])[0].equal(CODES[item])
        torch.testing.assert_close(VQ.decode(CODES[item : item + 1])[0], VQ.decode(CODES)[item])


@pytest.mark.parametrize("modes", [0, 1, 2, MODES])
def test_the_training_pass_equals_decode_of_encode(modes: int) -> None:
    """For each number of codebooks per item, in frames of all kinds."""
    made = quantizer(modes)
    quantized = made(LATENTS)
    codes = made.encode(LATENTS)
    torch.testing.assert_close(quantized.latents, made.decode(codes))
    depths = torch.arange(1, NUM_CODEBOOKS + 1)
    quantized = made(LATENTS, depths)
    for item, num_codebooks in enumerate(depths.tolist()):
        alone = LATENTS[item : item + 1]
        torch.testing.assert_close(quantized.latents[item : item + 1], made.decode(made.encode(alone, num_codebooks)))
        learned = codes[item, 0] < made.silence
        assert quantized.codes[item, :num_codebooks, learned].equal(codes[item, :num_codebooks, learned])
        assert (quantized.codes[item, num_codebooks:] == -1).all()
        assert quantized.codes[item, 0].equal(codes[item, 0])
        assert (quantized.codes[item, 1:, ~learned] == -1).all()  # modes use no entry of the residual codebooks


def test_gradients_pass_only_in_frames_with_a_residual() -> None:
    latents = LATENTS.clone().requires_grad_()
    quantized = VQ(latents)
    quantized.latents.square().sum().backward()
    assert latents.grad is not None
    parts = VQ.split(latents.grad)
    given = 2 * VQ.split(VQ.decode(CODES)).residual  # straight through
    torch.testing.assert_close(parts.residual, torch.where(BY_KIND["noise"], given, 0.0))
    for part in parts[1:]:
        assert (part == 0).all()
    latents.grad = None
    VQ(latents).commitment.backward()
    assert latents.grad is not None
    moved = latents.grad.abs().sum(dim=1) > 0
    assert moved.equal(BY_KIND["noise"].expand_as(moved))


def test_zero_frames_and_one_frame() -> None:
    for latents in (LATENTS[..., :0], LATENTS[..., :1]):
        batch, dim, count = latents.shape
        codes = VQ.encode(latents)
        assert codes.shape == (batch, NUM_CODEBOOKS, count)
        assert VQ.decode(codes).shape == (batch, dim, count)
        assert VQ(latents).latents.shape == (batch, dim, count)
        assert VQ.decode(codes[:, :1]).shape == (batch, dim, count)


def test_vectors_add_up_to_the_latents() -> None:
    """The latents of residual and envelope, in frames that are not modes."""
    vectors = VQ.codebook_vectors()
    assert vectors.shape == (NUM_CODEBOOKS, SIZE, DIM + BANDS + 1)
    total = sum(vectors[codebook][CODES[:, codebook]] for codebook in range(NUM_CODEBOOKS))
    assert isinstance(total, Tensor)
    some = BY_KIND["noise"]
    torch.testing.assert_close(total.transpose(1, 2)[..., some], VQ.decode(CODES)[:, : DIM + BANDS + 1, some])
    assert (vectors[0, VQ.silence :] == 0).all()
    assert (vectors[0, : VQ.silence] != 0).any(dim=-1).all()


def test_modes_and_silence_do_not_update_entries() -> None:
    """EMA updates from all frames equal updates from the other frames alone."""
    whole, fewer = (quantizer(seed=3) for _ in range(2))
    for step in range(3):
        latents = frames(seed=10 * step).latents
        torch.manual_seed(step)
        whole.update_codebook([whole(latents[:2]), whole(latents[2:])])
        torch.manual_seed(step)
        fewer.update_codebook([fewer(latents[:2, :, BY_KIND["noise"]]), fewer(latents[2:, :, BY_KIND["noise"]])])
    before = quantizer(seed=3).state_dict()
    for name, ours in whole.state_dict().items():
        torch.testing.assert_close(ours, fewer.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
        assert ours.equal(before[name]) == (name == "envelopes")


def test_a_batch_of_modes_only_changes_nothing() -> None:
    made, before = quantizer(), quantizer().state_dict()
    made.update_codebook([made(LATENTS[..., ~BY_KIND["noise"]])])
    for name, ours in made.state_dict().items():
        assert ours.equal(before[name]), name


def test_initialization_skips_frames_of_modes() -> None:
    many = frames(count=120).latents
    some = torch.tensor([kind == "noise" for kind in frames(count=120).kinds])
    whole, fewer = (quantizer(seed=3) for _ in range(2))
    for made, latents in ((whole, many), (fewer, many[..., some])):
        torch.manual_seed(0)
        made.init_from_data(latents)
    for name, ours in whole.state_dict().items():
        torch.testing.assert_close(ours, fewer.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
    parts = whole.split(many[..., some])
    left = parts.residual - whole.residual.decode(whole.residual.encode(parts.residual))
    assert left.square().mean() < 0.1 * parts.residual.square().mean()


def test_initialization_from_modes_only() -> None:
    made = quantizer()
    made.init_from_data(LATENTS[..., BY_KIND["tone"]])
    assert all(value.isfinite().all() for value in made.state_dict().values())


def test_envelopes_are_initialized_by_k_means() -> None:
    """A quarter of the frames gets another gain, so that entries cover their shapes at other levels too."""
    made = quantizer()
    torch.manual_seed(0)
    described = noise(20 * made.silence, BANDS + 1)
    made.init_envelopes(described)
    distances = torch.cdist(described, made.envelopes).amin(dim=1)
    spread = (described - described.mean(dim=0)).norm(dim=1)
    assert distances.mean() < 0.8 * spread.mean()
    gains = made.envelopes[:, -1] / GAIN_WEIGHT
    assert gains.min() < -5 < described[:, -1].min() / GAIN_WEIGHT


def test_beam_search_takes_the_same_first_codes() -> None:
    searching = quantizer(beam_size=4)
    searching.load_state_dict(VQ.state_dict())
    codes = searching.encode(LATENTS)
    assert codes[:, 0].equal(CODES[:, 0])
    assert codes[:, :, ~BY_KIND["noise"]].equal(CODES[:, :, ~BY_KIND["noise"]])
    errors = [
        (VQ.decode(found)[:, :DIM] - LATENTS[:, :DIM])[..., BY_KIND["noise"]].square().mean()
        for found in (codes, CODES)
    ]
    assert errors[0] < errors[1]


def test_autocast_does_not_change_codes() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert VQ.encode(LATENTS).equal(CODES)
        assert VQ(LATENTS).latents.dtype == torch.float32
        assert VQ(LATENTS).codes[:, 0].equal(CODES[:, 0])
