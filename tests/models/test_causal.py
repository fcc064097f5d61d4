"""The causal family: invariants of streaming and length, its transform, its closed-form start, its quantizers."""

import math
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from codec.errors import CodecError, ConfigError, UnknownModel, UsageError
from codec.models import build
from codec.models.causal import (
    MDCT,
    CausalCodec,
    CausalConfig,
    compand,
    expand,
    overlap_add,
    quantizer,
    sine_window,
)
from codec.nn.noise import smooth_noise
from codec.nn.streaming import State
from tests.tiny import CONFIG, tiny_model

HOP, RATE, NUM_CODEBOOKS = CONFIG.hop, CONFIG.sample_rate, CONFIG.num_codebooks


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lively_model(config: CausalConfig = CONFIG) -> CausalCodec:
    """A tiny model in which every weight matters, because fresh networks add zeros, which would hide errors."""
    model = tiny_model()
    if config != CONFIG:
        torch.manual_seed(0)
        model = CausalCodec(config).eval()
    for number, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    model.limit = math.inf  # it is loud
    return model


MODEL = lively_model()
LEVELS = 10 ** (-2 * torch.rand(2, 1, 60, 1, generator=torch.Generator().manual_seed(5)))
AUDIO = (noise(2, 1, 60, HOP, seed=1) * LEVELS).view(2, 1, 60 * HOP)
CODES = MODEL.encode(AUDIO)


class Case(NamedTuple):
    """A model with codes and audio of 60 hops."""

    model: CausalCodec
    audio: Tensor
    codes: Tensor


def mixed() -> Tensor:
    """[2, 1, 60 hops] of noise at 0 to -100 dBFS, sines, clicks in silence and silence; the rows are hops apart."""
    time = torch.arange(60 * HOP) / RATE
    levels = 10 ** (-5 * torch.rand(60, generator=torch.Generator().manual_seed(6)))
    audio = noise(60 * HOP, seed=4) * levels.repeat_interleave(HOP)
    audio[8 * HOP : 16 * HOP + 33] = (0.5 * torch.sin(2 * math.pi * 440 * time))[8 * HOP : 16 * HOP + 33]
    audio[20 * HOP : 30 * HOP + 7] = 0
    for place, size in ((22 * HOP + 5, 0.7), (25 * HOP - 1, -0.1), (27 * HOP, 0.4)):
        audio[place] = size
    audio[35 * HOP : 44 * HOP] = (0.01 * torch.sin(2 * math.pi * 1000 * time + 1))[35 * HOP : 44 * HOP]
    audio[44 * HOP : 50 * HOP] = 0
    return torch.stack([audio, audio.roll(-11 * HOP - 13)])[:, None]


MODAL = lively_model(
    CausalConfig.from_data(
        CONFIG.model_dump() | {"codebook_size": 160, "modes": 40, "spectrum_gain": True, "learned_noise": True}
    )
)
MIXED = mixed()
CASES = {"noise": Case(MODEL, AUDIO, CODES), "modes": Case(MODAL, MIXED, MODAL.encode(MIXED))}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
chunk_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=5)
"""In hops."""


def cut(signal: Tensor, sizes: list[int]) -> list[Tensor]:
    return [signal[..., begin:end] for begin, end in pairwise([0, *accumulate(sizes)])]


def leaves(state: State) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [leaf for inner in state for leaf in leaves(inner)]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# streaming


def test_the_model_under_test_uses_every_codebook() -> None:
    """Every codebook and most codes are used, and the networks do not drown the signal."""
    for codebook in CODES.transpose(0, 1):
        assert len(set(codebook.flatten().tolist())) > 5
    assert 0.05 < MODEL.decode(CODES).std() < 5


def test_the_test_signal_has_frames_of_all_kinds() -> None:
    shape = MODAL.shape
    assert shape
    first, modes = CASES["modes"].codes[:, 0], shape.silence + 1
    for row in first:
        assert len(set(row[row < shape.silence].tolist())) > 5
        assert (row == shape.silence).sum() > 4
        assert ((row >= modes) & (row < modes + shape.modes.tones)).sum() > 8
        assert (row >= modes + shape.modes.tones).sum() > 2
    assert (MODAL.decode(CASES["modes"].codes)[0, 0, 46 * HOP : 49 * HOP] == 0).all()


@pytest.mark.slow
@all_cases
@settings(max_examples=12)
@given(hops=st.one_of(chunk_sizes, st.just([1] * 60)))
def test_codes_do_not_depend_on_chunks(case: Case, hops: list[int]) -> None:
    model, state, made = case.model, case.model.encoder_state(2), []
    for chunk in cut(case.audio, [size * HOP for size in hops]):
        codes, state = model.encode_step(chunk, state)
        assert codes.shape == (2, NUM_CODEBOOKS, chunk.shape[-1] // HOP)
        made.append(codes)
    assert torch.equal(torch.cat(made, dim=-1), case.codes[..., : sum(hops)])


@pytest.mark.slow
@all_cases
@settings(max_examples=12)
@given(frames=st.one_of(chunk_sizes, st.just([1] * 60)))
def test_audio_does_not_depend_on_chunks(case: Case, frames: list[int]) -> None:
    model, state, made = case.model, case.model.decoder_state(2), []
    for chunk in cut(case.codes, frames):
        audio, state = model.decode_step(chunk, state)
        assert audio.shape == (2, 1, chunk.shape[-1] * HOP)
        made.append(audio)
    assert_same(torch.cat(made, dim=-1)[..., HOP:], model.decode(case.codes[..., : sum(frames)]))


@pytest.mark.slow
@all_cases
@settings(max_examples=12)
@given(hops=st.one_of(chunk_sizes, st.just([1] * 60)))
def test_interleaved_streams_equal_separate_streams(case: Case, hops: list[int]) -> None:
    """Two streams with an encoder and a decoder each, in turns."""
    model = case.model
    coders = [model.encoder_state(1), model.encoder_state(1)]
    decoders = [model.decoder_state(1), model.decoder_state(1)]
    made: list[list[Tensor]] = [[], []]
    for chunk in cut(case.audio, [size * HOP for size in hops]):
        for row in (0, 1):
            codes, coders[row] = model.encode_step(chunk[row : row + 1], coders[row])
            audio, decoders[row] = model.decode_step(codes, decoders[row])
            made[row].append(audio)
    for row in (0, 1):
        alone = model.decode(case.codes[row : row + 1, :, : sum(hops)])
        assert_same(torch.cat(made[row], dim=-1)[..., HOP:], alone)


@pytest.mark.slow
@all_cases
@settings(max_examples=12)
@given(past=st.integers(0, 59))
def test_the_future_never_changes_the_past(case: Case, past: int) -> None:
    model, audio, codes = case.model, case.audio.clone(), case.codes.clone()
    audio[..., past * HOP :] = noise(2, 1, (60 - past) * HOP, seed=2)
    codes[..., past:] = (codes[..., past:] + 7) % model.config.codebook_size
    changed = model.encode(audio)
    assert torch.equal(changed[..., :past], case.codes[..., :past])
    assert not torch.equal(changed[..., past:], case.codes[..., past:])
    known = max(0, past - 1) * HOP  # the decoder is late by a hop
    assert_same(model.decode(codes)[..., :known], model.decode(case.codes)[..., :known])


@all_cases
def test_rows_of_a_batch_equal_items_alone(case: Case) -> None:
    many = torch.cat([case.audio, 0.1 * case.audio, torch.zeros_like(case.audio[:1])])
    codes = case.model.encode(many)
    decoded = case.model.decode(codes, length=many.shape[-1])
    for row in range(5):
        alone = case.model.encode(many[row : row + 1])
        assert torch.equal(alone[0], codes[row])
        assert_same(case.model.decode(alone, length=many.shape[-1])[0], decoded[row])
    assert (decoded[4] == 0).all()


@pytest.mark.slow
@all_cases
@pytest.mark.parametrize("decibels", [0, -20, -40, -60, -80, -100])
def test_codes_of_every_level_do_not_depend_on_chunks(case: Case, decibels: int) -> None:
    audio = 10 ** (decibels / 20) * case.audio
    whole, state, made = case.model.encode(audio), case.model.encoder_state(2), []
    for chunk in cut(audio, [HOP, 3 * HOP] * 15):
        codes, state = case.model.encode_step(chunk, state)
        made.append(codes)
    assert torch.equal(torch.cat(made, dim=-1), whole[..., :60])


@all_cases
def test_state_is_a_value(case: Case) -> None:
    model, audio, codes = case
    _, encoder = model.encode_step(audio[..., : 5 * HOP], model.encoder_state(2))
    _, decoder = model.decode_step(codes[..., :5], model.decoder_state(2))
    kept = [leaf.clone() for leaf in leaves((encoder, decoder))]
    once = (model.encode_step(audio[..., 5 * HOP :], encoder), model.decode_step(codes[..., 5:], decoder))
    twice = (model.encode_step(audio[..., 5 * HOP :], encoder), model.decode_step(codes[..., 5:], decoder))
    assert all(torch.equal(one, other) for one, other in zip(leaves(once), leaves(twice), strict=True))
    assert all(torch.equal(one, other) for one, other in zip(leaves((encoder, decoder)), kept, strict=True))


def test_the_state_stays_small() -> None:
    sizes = []
    for hops in (5, 50):
        _, encoder = MODEL.encode_step(AUDIO[..., : hops * HOP], MODEL.encoder_state(2))
        _, decoder = MODEL.decode_step(CODES[..., :hops], MODEL.decoder_state(2))
        sizes.append([leaf.numel() for leaf in leaves((encoder, decoder))])
    assert sizes[0] == sizes[1]


def test_decoded_audio_is_limited() -> None:
    model, raw = lively_model(), MODEL.decode(CODES)
    del model.limit  # the class's own
    assert raw.abs().max() > 1.1
    for grad in (False, True):
        audio = model.decode(CODES, grad=grad).detach()
        assert_same(audio, raw.clamp(-1.05, 1.05))
        assert 20 * math.log10(float(audio.abs().max())) < 0.5


# lengths and batches


@pytest.mark.slow
@pytest.mark.parametrize("codebook_count", [None, 1])
def test_every_length_is_exact(codebook_count: int | None) -> None:
    ends = (2 * HOP, 3 * HOP)
    for time in [*range(1, HOP + 2), *(end + more for end in ends for more in (-1, 0, 1)), 12_345, 54_321]:
        codes = MODEL.encode(F.pad(AUDIO[:1], (0, 60_000))[..., :time], num_codebooks=codebook_count)
        assert codes.shape == (1, codebook_count or NUM_CODEBOOKS, math.ceil(time / HOP) + 1)
        assert MODEL.decode(codes, length=time).shape == (1, 1, time)
        assert MODEL.decode(codes).shape[-1] == math.ceil(time / HOP) * HOP


def test_the_end_is_coded_as_if_followed_by_silence() -> None:
    audio = AUDIO[..., : 3 * HOP + 17]
    assert torch.equal(MODEL.encode(audio), MODEL.encode(F.pad(audio, (0, 10 * HOP)))[..., :5])


def test_a_padded_batch_equals_its_items() -> None:
    lengths = torch.tensor([1, HOP, 3 * HOP + 5, 7 * HOP - 1, 9 * HOP])
    audio = 0.3 * noise(5, 1, 9 * HOP, seed=3)
    padded = audio.clone()
    for item, length in enumerate(lengths.tolist()):
        padded[item, :, length:] = torch.nan  # whatever stands there
    codes = MODEL.encode(padded, lengths=lengths)
    assert codes.shape[-1] == 10
    for item, length in enumerate(lengths.tolist()):
        alone = MODEL.encode(audio[item : item + 1, :, :length])
        frames = alone.shape[-1]
        assert torch.equal(codes[item : item + 1, :, :frames], alone)
        decoded = MODEL.decode(codes)[item, :, :length]
        assert_same(decoded, MODEL.decode(alone, length=length)[0])


# the MDCT


def test_the_mdct_equals_its_double_sum() -> None:
    """Princen, Johnson and Bradley 1987, with the sine window and orthonormal scale."""
    hop, audio = 6, noise(1, 18).double().numpy()
    spectrum, _ = MDCT(hop).analyze(torch.tensor(audio[:, hop:]).float(), torch.tensor(audio[:, :hop]).float())
    assert spectrum.shape == (1, 2, 2 * hop)
    for frame in range(2):
        for k in range(hop):
            cosine = sine = 0.0
            for n in range(2 * hop):
                windowed = audio[0, frame * hop + n] * math.sin(math.pi * (n + 0.5) / (2 * hop))
                cosine += windowed * math.cos(math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5)) * math.sqrt(2 / hop)
                sine += windowed * math.sin(math.pi / hop * (n + 0.5 + hop / 2) * (k + 0.5)) * math.sqrt(2 / hop)
            assert spectrum[0, frame, k].item() == pytest.approx(cosine, abs=1e-5)
            assert spectrum[0, frame, hop + k].item() == pytest.approx(sine, abs=1e-5)


@pytest.mark.parametrize("hop", [4, 30, 480])
def test_the_mdct_reconstructs_perfectly_and_preserves_energy(hop: int) -> None:
    """The MDCT bins alone reconstruct the signal, because the aliasing of neighboring frames cancels (TDAC)."""
    mdct, audio, silence = MDCT(hop), noise(2, 8 * hop), torch.zeros(2, hop)
    spectrum, _ = mdct.analyze(F.pad(audio, (0, hop)), silence)
    bins = spectrum[..., :hop]
    made, half = mdct.synthesize(bins, silence)
    assert_same(made[:, hop:], audio)
    assert_same(made[:, :hop], silence)
    assert half.shape == (2, hop)
    assert bins.square().sum().item() == pytest.approx(audio.square().sum().item(), rel=1e-5)


def test_overlap_add_of_complex_spectra_is_exact() -> None:
    """Analysis and synthesis with a sine window whose squares sum to one (the Princen-Bradley condition)."""
    hop, audio = 30, noise(2, 240)
    window = sine_window(hop).float()
    spectrum = torch.fft.rfft(F.pad(audio, (hop, hop)).unfold(-1, 2 * hop, hop) * window, norm="ortho")
    frames = torch.fft.irfft(spectrum, norm="ortho") * window
    made, _ = overlap_add(frames.chunk(2, dim=-1), torch.zeros(2, hop))
    assert_same(made[:, hop:], audio)


@pytest.mark.parametrize("exponent", [0.5, 0.7, 1.0])
def test_expand_is_the_inverse_of_compand(exponent: float) -> None:
    x = torch.cat([torch.linspace(-3, 3, 61), torch.logspace(-7, 0, 50), torch.zeros(1)])
    torch.testing.assert_close(expand(compand(x, exponent), exponent), x, rtol=1e-3, atol=2e-6)
    large = x[x.abs() > 1]
    torch.testing.assert_close(compand(large, exponent), large.sign() * large.abs() ** exponent, rtol=0.16, atol=0)
    points = torch.linspace(1e-7, 1, 100, requires_grad=True)
    (slopes,) = torch.autograd.grad(compand(points, exponent).sum(), points)
    assert slopes.max() <= exponent * 0.02 ** (exponent - 1) * 1.001
    assert slopes.min() > 0


# the closed-form start


def chord(seconds: float = 4.0) -> Tensor:
    """Two rows of decaying harmonics [2, 1, time] that no codebook alone describes."""
    time = torch.arange(int(seconds * RATE)) / RATE
    rows = []
    for seed in (0, 1):
        tones = zip(noise(24, seed=seed).abs() * 300 + 80, noise(24, seed=seed + 2) * 3, strict=True)
        sound = torch.stack([torch.sin(2 * math.pi * hertz * time + phase) for hertz, phase in tones]).sum(dim=0)
        rows.append(sound * torch.exp(-2 * (time % 0.5)))
    return 0.05 * torch.stack(rows)[:, None]


def snr(decoded: Tensor, audio: Tensor) -> float:
    """Level in dB."""
    return 10 * math.log10(float(audio.square().sum() / (decoded - audio).square().sum()))


def test_every_codebook_improves_the_closed_form_codec() -> None:
    torch.manual_seed(0)
    model, audio = tiny_model(), chord()
    model.init_from_audio(audio)
    codes = model.encode(audio)
    decibels = [
        snr(model.decode(codes[:, :num_codebooks], length=audio.shape[-1]), audio) for num_codebooks in (1, 2, 3)
    ]
    assert decibels[0] < 0, "codebook 0 has no waveform, only the envelope of noise"
    assert decibels[1] > decibels[0] + 0.5
    assert decibels[2] > decibels[1] + 0.5


def test_learned_noise_begins_as_smooth_noise() -> None:
    plain, smooth = (CausalCodec(chosen(learned_noise=learned)).eval() for learned in (False, True))
    for model in (plain, smooth):
        torch.manual_seed(0)
        model.init_from_audio(chord(1.0))
    assert "decoder.noise" not in plain.state_dict()
    assert smooth.state_dict()["decoder.noise"].equal(smooth_noise(plain.decoder.noise, plain.decoder.window))
    codes = plain.encode(chord(1.0))[:, :1]
    levels = [float(model.decode(codes).square().mean()) for model in (plain, smooth)]
    assert levels[1] == pytest.approx(levels[0], rel=0.1)


def test_init_from_audio_finds_the_principal_components() -> None:
    """The encoder's linear part equals an SVD at unit mean power; the decoder's linear part inverts it."""
    torch.manual_seed(0)
    model, audio = CausalCodec(chosen(envelope_bands=0)).eval(), chord(1.0)
    model.init_from_audio(audio)
    spectrum, _ = model.encoder.mdct.analyze(audio[:, 0], torch.zeros(2, HOP))
    bins = spectrum[..., :HOP]
    loud = bins.square().mean(dim=-1) > 1e-10
    reference = bins[loud].square().mean().sqrt()
    assert model.encoder.reference == model.decoder.reference == reference
    companded = compand(bins / reference, CONFIG.companding)[loud]
    _, strengths, components = np.linalg.svd(companded.double().numpy(), full_matrices=False)
    scale = np.sqrt((strengths[: CONFIG.dim] ** 2).sum() / companded.shape[0] / CONFIG.dim)
    projection = model.encoder.pca @ model.decoder.pca  # [hop, hop]
    np.testing.assert_allclose(projection.numpy(), components[: CONFIG.dim].T @ components[: CONFIG.dim], atol=1e-3)
    np.testing.assert_allclose(model.encoder.pca.norm(dim=0).numpy(), 1 / scale, rtol=1e-3)
    latents, _ = model.latents_step(audio, model.encoder_state(2))
    power = latents.transpose(1, 2)[loud].square().mean(dim=0)
    assert power.mean().item() == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(
        power.detach().numpy(), strengths[: CONFIG.dim] ** 2 / len(companded) / scale**2, rtol=1e-2
    )


def test_init_from_steady_tones_only() -> None:
    """If every frame is a mode, there are no frames for the codebooks; nothing fails."""
    torch.manual_seed(0)
    model = CausalCodec(MODAL.config).eval()
    audio = 0.5 * torch.sin(2 * math.pi * 330 * torch.arange(40 * HOP) / RATE)[None, None]
    model.init_from_audio(audio)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert snr(model.decode(model.encode(audio), length=40 * HOP), audio) > 3


@pytest.mark.parametrize("level", [0.0, 1e-7])
def test_init_from_silence_is_refused(level: float) -> None:
    with pytest.raises(UsageError, match="is silent: give audio with some sound"):
        tiny_model().init_from_audio(level * AUDIO)


# training


@all_cases
def test_the_training_pass_equals_encode_and_decode(case: Case) -> None:
    model, audio = case.model, case.audio[..., : 50 * HOP + 3]
    trained, codes = model(audio), model.encode(audio)
    assert trained.audio.shape == audio.shape
    assert trained.latents.shape == (2, CONFIG.dim, 52)
    shown = trained.quantized.codes  # -1 where a mode uses no entry of the residual codebooks
    assert model.shape
    assert torch.equal(shown, torch.where((codes[:, :1] < model.shape.silence) | (shown >= 0), codes, -1))
    assert torch.equal(shown[:, 0], codes[:, 0])
    assert_same(trained.audio, model.decode(codes, length=audio.shape[-1]))
    for depths in ((1, 2), (2, 1), (3, 2)):
        some = model(audio, torch.tensor(depths))
        for row, num_codebooks in enumerate(depths):
            alone = model.decode(
                model.encode(audio[row : row + 1], num_codebooks=num_codebooks), length=audio.shape[-1]
            )
            assert_same(some.audio[row : row + 1], alone)


@all_cases
def test_every_weight_gets_a_gradient(case: Case) -> None:
    model = lively_model(case.model.config)
    trained = model(case.audio)
    (trained.audio.square().mean() + trained.quantized.commitment).backward()
    silent = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


# sizes and names


def test_the_default_model_is_small() -> None:
    state = CausalCodec(CausalConfig()).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) <= 12e6  # codebooks and axes with it
    assert {name for name in state if name.startswith("quantizer")} == {"quantizer.envelopes"} | {
        f"quantizer.residual.stages.{codebook}.{part}"
        for codebook in range(11)
        for part in ("codebook", "cluster_size")
    }


# the choice of quantizer

ALONE: dict[str, Any] = {"num_codebooks": 1, "envelope_bands": 0}
CHOICES: dict[str, dict[str, Any]] = {
    "residual with a search": {"beam_size": 3},
    "residual by gradient": {"codebook_update": "gradient", "distance": "cosine", "codebook_dim": 4},
    "residual without an envelope": {"envelope_bands": 0},
    "vector": {"quantizer": "vector", **ALONE},
    "vector, projected": {"quantizer": "vector", **ALONE, "codebook_dim": 3, "distance": "cosine"},
    "mixture": {"quantizer": "mixture", **ALONE},
    "scalar": {"quantizer": "scalar", **ALONE, "dim": 4, "levels": (5, 4, 3, 2), "codebook_size": 120},
}


def chosen(**settings: Any) -> CausalConfig:
    return CausalConfig.from_data(CONFIG.model_dump() | settings)


def test_beam_search_streams_and_lowers_the_error() -> None:
    found = lively_model()
    latents, _ = found.latents_step(AUDIO, found.encoder_state(len(AUDIO)))
    found.quantizer = quantizer(chosen(beam_size=4))
    found.quantizer.load_state_dict(MODEL.quantizer.state_dict())
    whole = found.encode(AUDIO)
    state, parts = found.encoder_state(len(AUDIO)), []
    for part in cut(AUDIO, [7 * HOP] * 8 + [4 * HOP]):
        codes, state = found.encode_step(part, state)
        parts.append(codes)
    assert torch.equal(torch.cat(parts, dim=-1), whole[..., :60])
    for item in range(2):
        assert torch.equal(found.encode(AUDIO[item : item + 1])[0], whole[item])
    errors = [(found.quantizer.decode(codes[..., :60]) - latents).square().mean() for codes in (whole, CODES)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("settings", CHOICES.values(), ids=CHOICES)
def test_every_quantizer_encodes_and_trains(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, audio = CausalCodec(chosen(**settings)), chord(1.0)
    model.init_from_audio(audio)
    codes = model.eval().encode(audio)
    assert codes.shape[1] == model.config.num_codebooks
    assert 0 <= codes.min() <= codes.max() < model.config.codebook_size
    assert len(set(codes.flatten().tolist())) > 5
    assert model.decode(codes, length=audio.shape[-1]).shape == audio.shape
    trained = model.train()(audio, torch.full((2,), min(2, model.config.num_codebooks)))
    (trained.audio.square().mean() + trained.quantized.commitment + trained.quantized.codebook).backward()
    assert all(parameter.grad is not None for parameter in model.quantizer.parameters())
    gradient = model.encoder.out_proj.bias.grad
    assert gradient is not None
    assert gradient.any()


def test_the_plain_autoencoder_trains_but_cannot_encode() -> None:
    model, coder, audio = CausalCodec(chosen(quantizer="none", **ALONE)), tiny_model(), chord()
    model.init_from_audio(audio)
    coder.init_from_audio(audio)
    assert snr(model(audio).audio.detach(), audio) > snr(coder(audio).audio.detach(), audio) + 1
    with pytest.raises(UsageError, match="no codes"):
        model.encode(audio)
    with pytest.raises(UsageError, match="no codes"):
        model.decode(torch.zeros(1, 1, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quantizer": "vector"},
            r'"vector" has one codebook and no envelope: set num_codebooks = 1 .* = 0, not 3 and 4',
        ),
        ({"quantizer": "mixture", "num_codebooks": 1}, r'"mixture" has one codebook and no envelope'),
        ({"quantizer": "none", "envelope_bands": 0}, r'"none" has one codebook'),
        ({"num_codebooks": 1}, "the envelope takes codebook 0: set num_codebooks = 2 or more, or envelope_bands = 0"),
        ({"envelope_bands": 21}, "80 bins make 20 at most"),
        ({"modes": 6}, "modes = 6 leave too few of 20 entries for envelopes: set 5 at most"),
        ({"hop": 81}, "hop = 81 is odd"),
        ({"quantizer": "scalar", **ALONE}, r"0 levels that make 1 codes do not fit dim 8 and codebook_size 20"),
        ({"quantizer": "scalar", **ALONE, "dim": 2, "levels": (5, 5)}, r"make 25 codes .* codebook_size 20"),
        ({"quantizer": "scalar", **ALONE, "levels": (5, 4)}, r"2 levels .* dim 8"),
        (
            {"quantizer": "scalar", **ALONE, "dim": 2, "levels": (20, 1)},
            r"levels = \[20, 1\]: must be greater than or equal to 2",
        ),
        ({"levels": (5, 4)}, r'"residual" has no levels'),
        ({"quantizer": "vector", **ALONE, "beam_size": 2}, r'beam_size is for "residual"'),
        ({"quantizer": "mixture", **ALONE, "codebook_dim": 4}, r'not "mixture": leave them out'),
        ({"codebook_dim": 0}, "codebook_dim = 0"),
        ({"quantizer": "product"}, "quantizer"),
    ],
)
def test_invalid_quantizer_sizes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(**settings)


def test_invalid_choices_are_refused_in_python_too() -> None:
    with pytest.raises(ValidationError, match="one codebook"):
        CausalConfig(quantizer="vector")


def test_a_configuration_without_a_quantizer_key_loads() -> None:
    old = {
        key: value
        for key, value in CONFIG.model_dump().items()
        if key in {"family", "sample_rate", "hop", "dim", "num_codebooks", "kernel", "expansion", "companding"}
    }
    assert CausalConfig.from_data(old).quantizer == "residual"


def test_build_of_known_and_unknown_families() -> None:
    model = build("causal", CONFIG.model_dump())
    assert isinstance(model, CausalCodec)
    assert model.config == CONFIG
    with pytest.raises(UnknownModel, match="'casual'; the families are: causal"):
        build("casual", {})


# what users may ask


@pytest.mark.parametrize("shape", [(100,), (1, 100), (1, 2, 100), (1, 1, 0), (1, 1, 1, 100)])
def test_audio_of_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"give \[batch, 1, time\]"):
        MODEL.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(1, 1, 9, dtype=torch.float64), "torch.float64; give a float32 tensor"),
        (torch.zeros(1, 1, 9, dtype=torch.int16), "torch.int16"),
        (np.zeros((1, 1, 9), np.float32), "ndarray"),
        (torch.full((1, 1, 9), math.nan), "NaN, infinite or beyond 1e"),
        (torch.full((1, 1, 9), -math.inf), "NaN, infinite or beyond 1e"),
        (torch.full((1, 1, 9), 2e6), "NaN, infinite or beyond 1e"),
    ],
)
def test_invalid_audio_is_refused(audio: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MODEL.encode(audio)
    with pytest.warns(UserWarning, match="as if it held integers"):
        assert MODEL.encode(torch.full((1, 1, 9), 1e6)).shape == (1, 3, 2)


def test_lengths_are_one_per_item() -> None:
    with pytest.raises(UsageError, match=r"lengths are \[3\]; give one per item, \[2\]"):
        MODEL.encode(torch.zeros(2, 1, 100), lengths=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("num_codebooks", [-1, 0, 4])
def test_invalid_numbers_of_codebooks_are_refused(num_codebooks: int) -> None:
    with pytest.raises(UsageError, match=f"1 to 3 codebooks, not {num_codebooks}"):
        MODEL.encode(AUDIO, num_codebooks=num_codebooks)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.int64), r"torch.int64 \[1, 3\]"),
        (torch.zeros(1, 3, 4), r"torch.float32 \[1, 3, 4\]; give an int64 tensor"),
        (torch.zeros(1, 3, 4, dtype=torch.int32), "torch.int32"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), "1 to 3 codebooks, not 4"),
        (torch.zeros(1, 0, 4, dtype=torch.int64), "1 to 3 codebooks, not 0"),
        (torch.full((1, 3, 4), 20), "from 20 to 20; this model's run from 0 to 19"),
        (torch.full((1, 3, 4), -1), "from -1 to -1"),
    ],
)
def test_invalid_codes_are_refused(codes: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MODEL.decode(codes)
    with pytest.raises(CodecError, match=message):
        MODEL.decode_step(codes, MODEL.decoder_state(1))


def test_a_length_beyond_the_frames_is_refused() -> None:
    assert MODEL.decode(CODES[..., :4], length=3 * HOP).shape[-1] == 3 * HOP
    for length in (3 * HOP + 1, -1):
        with pytest.raises(UsageError, match=f"4 frames hold 0 to 240 samples, not {length}"):
            MODEL.decode(CODES[..., :4], length=length)
    assert MODEL.decode(CODES[..., :0]).shape == (2, 1, 0)
