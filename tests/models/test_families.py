"""Everything that knows codecs by their interface alone, with a family that is not causal."""

import gc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codec import models
from codec.checkpoint import load_model, save_model
from codec.compression import compress, decompress
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.errors import DamagedFile, UsageError
from codec.evaluation.codec import evaluate
from codec.io import bitstream
from codec.models.base import Encoded, split_scale
from codec.streams import StreamDecoder, StreamEncoder
from codec.training.codec import dry_run
from codec.training.codec.crops import Batch, open_crops
from codec.training.codec.task import build_task
from codec.training.logger import Logger
from tests.helpers.families import TINY
from tests.helpers.training import small_recipe, write_recordings
from tests.helpers.trial_family import FAMILY, TrialConfig, trial_model

MODEL = trial_model()
HOP, SEGMENT = 40, 5


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Audio whose level changes."""
    audio = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return 0.3 * audio * torch.linspace(0.05, 1, shape[-1])


pytestmark = pytest.mark.usefixtures("without_drawing")


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(models.FAMILIES, "trial", FAMILY["trial"])
    save_model(tmp_path / "trial.safetensors", MODEL, training={})
    return tmp_path / "trial.safetensors"


def encoded(audio: Tensor, num_codebooks: int | None = None) -> Encoded:
    codes, scale = split_scale(MODEL.encode(audio, num_codebooks=num_codebooks))
    assert scale is not None
    return Encoded(codes, scale)


def test_every_length_is_exact() -> None:
    for time in (1, 39, 40, 41, 199, 200, 201, 1234):
        both = encoded(noise(2, 2, time))
        assert both.codes.shape == (2, 4, -(-time // HOP))
        assert both.scale.shape == (2, -(-time // HOP))
        assert MODEL.decode(both, length=time).shape == (2, 2, time)


def test_the_scale_is_divided_out_and_multiplied_back() -> None:
    audio = noise(1, 2, 1000)
    soft, loud = encoded(0.01 * audio), encoded(audio)
    ratio = (loud.scale - 1e-3) / (soft.scale - 1e-3)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 100.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(MODEL.decode(Encoded(loud.codes, 2 * loud.scale)), 2 * MODEL.decode(loud))
    torch.testing.assert_close(MODEL.decode(loud.codes), MODEL.decode(Encoded(loud.codes, torch.ones(1, 25))))


@pytest.mark.slow
@settings(max_examples=40)
@given(time=st.integers(1, 1500), pieces=st.lists(st.integers(0, 700), max_size=6))
def test_streams_of_blocks_equal_the_whole_signal(time: int, pieces: list[int]) -> None:
    audio = noise(2, 2, time)
    expected = encoded(audio)
    encoder = StreamEncoder(MODEL, batch=2)
    ends = np.cumsum([0, *pieces, time]).tolist()
    parts = [encoder.push(audio[..., begin:end]) for begin, end in pairwise(ends)]
    both = [split_scale(part) for part in (*parts, encoder.flush())]
    codes = torch.cat([part for part, _ in both], dim=2)
    scale = torch.cat([part for _, part in both if part is not None], dim=1)
    assert torch.equal(codes, expected.codes)
    torch.testing.assert_close(scale, expected.scale, rtol=1e-6, atol=0)
    assert (encoder.time, encoder.frames) == (time, codes.shape[2])

    decoder = StreamDecoder(MODEL, batch=2, length=time)
    ends = np.cumsum([0, *(piece // HOP for piece in pieces), codes.shape[2]]).tolist()
    decoded = [decoder.push(Encoded(codes[..., begin:end], scale[:, begin:end])) for begin, end in pairwise(ends)]
    whole = torch.cat([*decoded, decoder.flush()], dim=2)
    torch.testing.assert_close(whole, MODEL.decode(expected, length=time), rtol=0, atol=1e-5)


def test_a_stream_is_no_later_than_its_delay() -> None:
    audio = noise(1, 2, 4000)
    encoder, decoder = StreamEncoder(MODEL), StreamDecoder(MODEL)
    for first in range(0, 4000, 10):
        decoder.push(encoder.push(audio[..., first : first + 10]))
        assert decoder.time >= first + 10 - MODEL.delay
    assert MODEL.lookahead == (4 + 5 + 2) * HOP


def test_rows_of_a_padded_batch_are_coded_as_alone() -> None:
    audio, lengths = noise(3, 2, 900), [900, 333, 1]
    codes, scale = split_scale(MODEL.encode(audio, lengths=lengths))
    assert scale is not None
    decoded = MODEL.decode(Encoded(codes, scale), lengths=lengths)
    for row, length in enumerate(lengths):
        alone = encoded(audio[row : row + 1, :, :length])
        frames = alone.codes.shape[2]
        assert torch.equal(codes[row : row + 1, :, :frames], alone.codes)
        torch.testing.assert_close(
            decoded[row : row + 1, :, :length], MODEL.decode(alone, length=length), rtol=0, atol=1e-5
        )
        assert not decoded[row, :, length:].any()
    recordings = [audio[row, :, :length] for row, length in enumerate(lengths)]
    assert torch.equal(MODEL.encode(recordings).codes, codes)


def test_only_some_prefixes_decode() -> None:
    assert MODEL.encode(noise(1, 2, 99), num_codebooks=2)[0].shape == (1, 2, 3)
    with pytest.raises(UsageError, match="this model has 1, 2, 4 codebooks, not 3"):
        MODEL.encode(noise(1, 2, 99), num_codebooks=3)
    rate = MODEL.frame_spec.bitrate(3)
    assert MODEL.codebooks_for(bitrate=rate) == 2


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_files(model_file: Path, tmp_path: Path, channels: int) -> None:
    audio = noise(channels, 12_345).numpy()
    soundfile.write(tmp_path / "a.wav", audio.T, 8000, subtype="FLOAT")
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=model_file)
    decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=model_file)
    with bitstream.open_reader(tmp_path / "a.codec") as reader:
        header = reader.header
        packets = list(reader.packets_with_scale())
    assert (header.channels, header.model_channels, header.segment_frames) == (channels, 2, SEGMENT)
    assert header.rows == (channels + 1) // 2
    rows = np.concatenate([audio, audio[-1:]])[: 2 * header.rows].reshape(header.rows, 2, -1)
    expected = load_model(model_file).encode(torch.from_numpy(rows.copy()))
    codes, scale = split_scale(expected)
    assert scale is not None
    assert np.array_equal(np.concatenate([part for part, _ in packets], axis=2), codes.numpy())
    stored = np.concatenate([part for _, part in packets if part is not None], axis=1)
    np.testing.assert_allclose(stored, scale.numpy(), rtol=1e-6)
    decoded = MODEL.decode(expected, length=12_345).flatten(0, 1)[:channels].clamp(-1, 1).numpy()
    back = soundfile.read(tmp_path / "b.wav", always_2d=True)[0].T
    np.testing.assert_allclose(back, decoded, atol=2e-4)  # 16 bits


def test_a_damaged_scale_is_found(model_file: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(2, 9000).numpy().T, 8000, subtype="FLOAT")
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=model_file)
    content = bytearray((tmp_path / "a.codec").read_bytes())
    content[-30] ^= 1
    with bitstream.open_reader(bytes(content)) as reader, pytest.raises(DamagedFile, match="checksum"):
        list(reader.packets())


def test_training_moves_every_part() -> None:
    model = trial_model().train()
    output = model(noise(2, 2, 1000), torch.tensor([4, 2]))
    assert output.audio.shape == (2, 2, 1000)
    (output.audio.square().mean() + output.quantized.commitment).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    entries = model.entries(output)
    assert entries is not None
    assert entries[0].isfinite().all()
    assert entries[1].isnan().all()


@pytest.mark.slow
@pytest.mark.parametrize("balance", [False, True])
def test_training_step_and_dry_run(monkeypatch: pytest.MonkeyPatch, balance: bool) -> None:
    """A stereo model, whose channels the losses and the discriminators take as rows."""
    monkeypatch.setitem(models.FAMILIES, "trial", FAMILY["trial"])
    recipe = small_recipe(discriminator={"start": 0, "update_every": 1}, losses={"balance": balance})
    recipe = recipe.model_copy(update={"model": TrialConfig()})
    task = build_task(recipe, torch.device("cpu"))
    model = task.train_state.model
    time = round(recipe.data.crop * model.sample_rate)
    model.init_from_audio(noise(4, 2, 8000))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for step in range(2):
        metrics = task.step(Batch(noise(recipe.data.batch_size, 2, time, seed=step), ()), step)
        assert all(metrics[name].isfinite() for name in ("mel", "level", "commitment", "adversarial", "discriminator"))
    assert [name for name, weight in model.named_parameters() if torch.equal(weight, before[name])] == []

    monkeypatch.setattr(dry_run, "MAX_SECONDS", 0.0)  # one step is enough: its time is not tested
    plan = dry_run.estimate(recipe, device="cpu")
    assert [stage.name for stage in plan.stages] == ["with discriminators"]
    assert plan.delay == model.delay
    # 3 hops wide, 2 channels, 8 latent channels, then 3 wide; 200 frames per second
    assert plan.flops["encoder"] == 2 * 200 * (3 * 40 * 2 * 8 + 3 * 8 * 8)


@pytest.mark.slow
def test_training_on_recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Crops and validation clips have the channels of the model."""
    monkeypatch.setitem(models.FAMILIES, "trial", FAMILY["trial"])
    recipe = small_recipe().model_copy(update={"model": TrialConfig()})
    data = write_recordings(tmp_path / "data")
    reports: list[str] = []
    sides = open_crops(data, tmp_path / "index", recipe.data, sample_rate=8000, seed=0, report=reports.append)
    task = build_task(recipe, torch.device("cpu"), train_data=sides[0], valid_data=sides[1])
    with Logger(tmp_path / "run") as logger:
        task.initialize(logger)
        (batch,) = task.batches(0, 1)
        assert batch.audio.shape == (3, 2, 1200)
        assert task.step(batch, 0)["mel"].isfinite()
        assert task.validate(logger, 1).startswith("mel")
    assert task.validation_clips().shape[1] == 2


def test_tokens(model_file: Path, tmp_path: Path) -> None:
    """Channels are averaged, as for any codec; a store holds no scale."""
    (tmp_path / "data").mkdir()
    audio = noise(2, 8001).numpy()
    soundfile.write(tmp_path / "data" / "a.wav", audio.T, 8000, subtype="FLOAT")
    tokenize(tmp_path / "data", tmp_path / "store", model=model_file)
    mean = torch.from_numpy(audio.mean(axis=0)).expand(1, 2, -1)
    assert torch.equal(TokenStore(tmp_path / "store")[0].codes, encoded(mean).codes[0])


@pytest.mark.slow
def test_evaluation(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    soundfile.write(tmp_path / "data" / "a.wav", noise(2, 16_000).numpy().T, 8000)
    found = evaluate(load_model(model_file), tmp_path / "data", num_codebooks=[1, 4], speech=False)
    assert [file.num_codebooks for file in found.files] == [1, 4]
    assert not found.failures


@pytest.mark.nightly
@pytest.mark.parametrize("family", sorted(TINY))
def test_what_streams_hold_does_not_grow(family: str) -> None:
    """After 25 s, as many bytes of tensors are alive as after 7 s, but for a push, whose place in a segment varies."""
    model = models.of_config(TINY[family]).eval()
    encoder, decoder = StreamEncoder(model), StreamDecoder(model)
    audio = 0.1 * torch.randn(1, model.channels, model.sample_rate // 4)
    held = []
    for _ in range(100):
        decoder.push(encoder.push(audio))
        storages = [found.untyped_storage() for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
        held.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))
    assert max(held[-20:]) <= max(held[10:30]) + audio.nbytes  # 70 pushes of codes alone are 14 times as much
