"""training/codec/dry_run.py: the estimates are those of the model and of training."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codec.checkpoint import save_model
from codec.errors import ConfigError, InputNotFound
from codec.io.audio import write_audio
from codec.models.causal import CausalCodec, CausalConfig
from codec.streams import StreamDecoder, StreamEncoder
from codec.training.codec import dry_run
from codec.training.codec.dry_run import (
    Plan,
    estimate,
    flops_per_second,
    peak_bytes,
    report,
    state_bytes,
    step_cost,
    summarize_data,
)
from codec.training.codec.task import CodecTask, build_task
from tests.helpers.training import small_recipe, tones, write_recordings
from tests.tiny import CONFIG, tiny_model

CPU = torch.device("cpu")
HOP, RATE = CONFIG.hop, CONFIG.sample_rate


@pytest.fixture(autouse=True, scope="module")
def timed_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "MAX_SECONDS", 0.0)  # because no test compares times
        yield


@pytest.fixture(scope="module")
def adversarial() -> Plan:
    """A run whose discriminators join at step 2 of 6."""
    return estimate(small_recipe(discriminator={"start": 2}), device="cpu")


def lively(config: CausalConfig) -> CausalCodec:
    """A model in which every weight matters, because fresh networks are silent."""
    model = CausalCodec(config).eval()
    for number, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    return model


def changed_steps(one: Tensor, other: Tensor) -> int:
    """Length of the part in which two signals [1, channels, time] differ."""
    places = (one - other).abs().amax(dim=(0, 1)).nonzero()[:, 0]
    return int(places[-1] - places[0]) + 1


# the model


def test_numbers_by_part_are_those_of_the_formulas(adversarial: Plan, tmp_path: Path) -> None:
    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    def networks(inputs: int, width: int, *outputs: int) -> int:
        """A map in, one block (depthwise kernel 3, norm, two maps, scale), a norm, maps out."""
        block = width * 3 + width + 2 * width + linear(width, 2 * width) + linear(2 * width, width) + width
        return linear(inputs, width) + block + 2 * width + sum(linear(width, each) for each in outputs)

    def convolution(inputs: int, outputs: int, size: int) -> int:
        return inputs * outputs * size + 2 * outputs  # with its bias, and the scale of weight norm

    fine = linear(16, 2 * 12) + networks(12, 12, 3 * 41) - linear(12, 12)  # a map to two short frames of 12
    widths = [2, 2, 2, 4, 4]
    discriminator = sum(convolution(before, after, 27) for before, after in pairwise(widths))
    discriminator += convolution(4, 4, 9) + convolution(4, 1, 9)
    assert adversarial.parameters == {
        "encoder": 80 * 8 + 1 + networks(160 + 5, 16, 8),
        "quantizer": 15 * 5 + 2 * (20 * 8 + 20),  # envelopes of four bands and a gain; 5 codes are modes and silence
        "decoder": 8 * 80 + 1 + networks(8 + 5, 16, 80) + fine,
        "discriminators": 2 * discriminator,
    }
    save_model(tmp_path / "model.safetensors", tiny_model(), training={}, dtype=torch.float16)
    assert 0 < (tmp_path / "model.safetensors").stat().st_size - adversarial.file_bytes < 6000


@pytest.mark.parametrize(
    ("kernel", "encoder_blocks", "decoder_blocks", "fine_blocks"),
    [(1, 1, 1, 1), (3, 1, 1, 1), (5, 2, 1, 1), (4, 1, 3, 1), (4, 1, 1, 2), (3, 1, 1, 2)],
)
def test_a_change_reaches_the_receptive_field(
    kernel: int, encoder_blocks: int, decoder_blocks: int, fine_blocks: int
) -> None:
    """A hop of audio changes as many latent frames as the encoder sees hops; a frame changes as many hops of audio."""
    sizes = {"encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks, "fine_blocks": fine_blocks}
    config = CausalConfig.from_data(CONFIG.model_dump() | {"kernel": kernel} | sizes)
    model, frames = lively(config), 60
    audio = torch.randn(1, 1, frames * HOP, generator=torch.Generator().manual_seed(1))
    other = audio.clone()
    other[..., 20 * HOP : 21 * HOP] += 0.5
    with torch.no_grad():
        latents, _ = model.latents_step(audio, model.encoder_state(1))
        hops = changed_steps(latents, model.latents_step(other, model.encoder_state(1))[0])
        changed = latents.clone()
        changed[..., 20] += 0.5
        ours, theirs = (model.audio_step(some, model.decoder_state(1))[0] for some in (latents, changed))
    encoder, decoder = (context.frames for context in model.receptive_field())
    assert hops == encoder
    samples = changed_steps(ours, theirs)
    assert decoder * HOP - HOP < samples <= decoder * HOP


def test_the_delay_is_that_of_a_stream(adversarial: Plan) -> None:
    """The maximum, over all positions, of the samples pushed between a sample and its decoded one."""
    model = tiny_model()
    encoder, decoder = StreamEncoder(model), StreamDecoder(model)
    came, delays = 0, []
    for pushed in range(1, 6 * HOP + 1):
        audio = decoder.push(encoder.push(torch.zeros(1, 1, 1)))
        delays += [pushed - place for place in range(came, came + audio.shape[-1])]
        came += audio.shape[-1]
    assert max(delays) == adversarial.delay == 2 * HOP


def test_operations_are_those_of_the_matrix_products() -> None:
    model = tiny_model()

    def block(width: int) -> int:
        return width * 3 + 2 * 2 * width * width

    nearest, curve = 15 * 5, 4 * 80  # of the envelopes; from four bands to bins, or back
    frame = {
        "encoder": 2 * curve + nearest + 80 * 8 + (160 + 5) * 16 + block(16) + 16 * 8,
        "quantizer": nearest + curve + 2 * 20 * 8,
        "decoder": (8 + 5) * 16
        + block(16)
        + 16 * 80
        + 16 * 2 * 12
        + 2 * (block(12) + 12 * 3 * 41)
        + curve
        + 4 * 41
        + 8 * 80,
    }
    assert flops_per_second(model) == {part: 2 * products * RATE / HOP for part, products in frame.items()}


# the training


def test_stages(adversarial: Plan) -> None:
    assert [(stage.name, stage.steps) for stage in adversarial.stages] == [
        ("without discriminators", 2),
        ("with discriminators", 4),
    ]
    alone, both = adversarial.stages
    assert both.memory > alone.memory
    assert adversarial.hours == pytest.approx((2 * alone.seconds + 4 * both.seconds) / 3600)
    assert adversarial.trained_seconds == pytest.approx(6 * 3 * 0.15)
    for start, names in (
        (None, ["without discriminators"]),
        (9, ["without discriminators"]),
        (0, ["with discriminators"]),
    ):
        found = estimate(small_recipe(discriminator={"start": start}), device="cpu")
        assert [(stage.name, stage.steps) for stage in found.stages] == [(names[0], 6)]


def test_a_batch_too_large_to_try_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate(small_recipe(data={"batch_size": 16}), device="cpu")
    monkeypatch.setattr(dry_run, "MAX_AUDIO", 8.5 * 0.15)
    part = estimate(small_recipe(data={"batch_size": 16}), device="cpu")
    assert (whole.measured_rows, part.measured_rows, part.rows) == (16, 8, 16)
    assert part.stages[0].memory == pytest.approx(whole.stages[0].memory, rel=0.03)
    assert "8 of 16 rows, extrapolated" in report(part)
    monkeypatch.setattr(dry_run, "MAX_AUDIO", 0.1)  # less than a crop
    least = estimate(small_recipe(data={"batch_size": 16}), device="cpu")
    assert least.measured_rows == 2
    assert least.stages[0].memory == pytest.approx(whole.stages[0].memory, rel=0.1)


def test_out_of_memory_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(CodecTask, "step", full)
    with pytest.raises(ConfigError, match=r"out of memory: try .*data\.crop = .* lower"):
        estimate(small_recipe(), device="cpu")


def test_processes_share_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = estimate(small_recipe(), device="cpu")
    assert (found.processes, found.rows, found.measured_rows) == (2, 2, 2)
    assert "2 in each of 2 processes" in report(found)
    assert found.trained_seconds == pytest.approx(6 * 3 * 0.15)


def test_bytes_between_steps() -> None:
    """Weights, averaged weights and two moments of each weight; buffers are in both models."""
    recipe = small_recipe(discriminator={"start": 0})
    task = build_task(recipe, CPU)
    step_cost(task, 0, 3, 3)
    state = task.train_state
    weights = 4 * sum(p.numel() for p in state.model.parameters())
    buffers = 4 * sum(b.numel() for b in state.model.buffers())
    discriminators = 4 * sum(p.numel() for p in state.discriminators.parameters())
    windows = 4 * (256 + 128)
    steps = 4 * (len(list(state.model.parameters())) + len(list(state.discriminators.parameters())))
    assert state_bytes(state) == 4 * weights + 2 * buffers + 3 * discriminators + windows + steps


def test_peak_bytes() -> None:
    x = torch.zeros(1000)

    def work() -> None:
        x.add_(1)  # allocates nothing
        x.view(10, 100)
        y = x * 2
        z = y + 1
        del y
        z.exp()

    assert peak_bytes(work, CPU) == 2 * 4000
    weight = torch.ones(1000, requires_grad=True)

    def held() -> None:
        """exp saves its result for the backward pass, so one more tensor is alive than Python names."""
        a = weight.exp()
        a = a.exp()
        a = a * 1
        a.detach_()

    assert peak_bytes(held, CPU) == 3 * 4000


# the data


def test_audio_by_headers_and_by_manifest(tmp_path: Path) -> None:
    write_recordings(tmp_path)
    assert (summary := summarize_data(tmp_path, RATE)).seconds == pytest.approx(1.5, abs=1e-3)
    assert (summary.clips, summary.headers, summary.bad) == (3, 3, 0)
    lines = ['{"path": "a.wav", "seconds": 0.25}', '{"path": "b/c.flac", "split": "valid"}']
    lines += ['{"path": "b/d.aiff", "start": 0.2}']
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    assert (summary := summarize_data(tmp_path / "some.jsonl", RATE)).seconds == pytest.approx(0.55, abs=1e-3)
    assert (summary.clips, summary.headers) == (2, 1)
    with pytest.raises(InputNotFound):
        summarize_data(tmp_path / "none", RATE)


def test_of_many_files_a_sample_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        write_audio(tmp_path / f"{number:02}.wav", tones(0.1 if number < 15 else 0.3, 8000, seed=0), 8000)
    (tmp_path / "15.wav").write_bytes(b"no audio")
    assert summarize_data(tmp_path, RATE).seconds == pytest.approx(15 * 0.1 + 14 * 0.3)
    assert summarize_data(tmp_path, RATE).bad == 1
    monkeypatch.setattr(dry_run, "MAX_HEADERS", 20)
    summary = summarize_data(tmp_path, RATE)
    assert (summary.clips, summary.headers) == (30, 20)
    assert summary.seconds == pytest.approx(5.7, rel=0.25)  # the first twenty would say 4.2 or less


def test_the_report(adversarial: Plan, tmp_path: Path) -> None:
    text = report(adversarial)
    for words in (
        "model small",
        "8000 Hz mono, 100 frames/s of 80 samples",
        "160 samples (20.0 ms)",
        "encoder 4 frames (40 ms), decoder 5 frames (50 ms)",
        "0.5 1 1.5 kbit/s with 1 to 3 codebooks",
        "3 crops of 0.15 s",
        "from step 2 on",
        "cpu, 1 threads, float32, noise as audio, the whole batch",
    ):
        assert words in text, words
    assert "data " not in text.split("measured")[0]
    recordings = write_recordings(tmp_path)
    with_data = report(estimate(small_recipe(), data=recordings, device="cpu"))
    assert "resampled" not in with_data
    assert "0.00 h in 3 clips (by 3 of their headers): 1.8 epochs" in with_data
    assert max(map(len, with_data.splitlines())) <= 120
    for name in "xy":
        write_audio(recordings / f"{name}.wav", tones(0.1, 3000, seed=0), 3000)
    narrow = replace(adversarial, data=summarize_data(recordings, RATE))
    line, note = (line for line in report(narrow).splitlines() if "clips" in line)
    assert note.strip() == "2 clips: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz"
    assert note.index("2 clips") == line.index("0.00 h")
