"""Small inputs that claim large sizes: time and memory follow the bytes of a file, not its claims."""

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from codec import compression, foreign, models, splicing
from codec.checkpoint import load_lm, load_model, most_memory, save_lm, save_model
from codec.compression import compress, decompress
from codec.errors import CodecError, DamagedFile, UnknownModel, UnsupportedAudio, UsageError
from codec.io import bitstream, bounded_zip, entropy, foreign_codes
from codec.io.audio import MAX_RATIO, MIN_RATE, Resampler
from codec.io.bitstream import Header, Reader, Writer
from codec.models.base import Codec
from codec.splicing import BLOCK_SECONDS
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.families import TINY
from tests.helpers.language_models import tiny_lm
from tests.tiny import tiny_model

MODEL = tiny_model()
CHANNELS = 1024  # the most that a file can have


def silent(path: Path, *, rate: int, channels: int, time: int) -> Path:
    soundfile.write(path, np.zeros((time, channels), np.int16), rate)
    return path


def compressed(path: Path, *, rate: int, channels: int, frames: int, **changes: Any) -> Path:
    header: Header = replace(compression.header_of(MODEL, rate, channels, 1), **changes)
    with path.open("wb") as file:
        writer = Writer(file, header, coder=entropy.NONE)  # because repeated codes would fit in a few bytes
        writer.write(np.zeros((channels, 1, frames), np.int64))
        writer.close(time=max(1, MODEL.frame_spec.time(frames) * rate // MODEL.sample_rate))
    return path


def test_a_recording_below_the_lowest_rate_is_refused(tmp_path: Path) -> None:
    for rate in (1, MIN_RATE - 1):
        source = silent(tmp_path / "low.wav", rate=rate, channels=CHANNELS, time=2)
        with pytest.raises(UnsupportedAudio, match=rf"low.wav has .* of {rate} Hz, .* {MIN_RATE} Hz or more"):
            compress(source, tmp_path / "low.codec", model=MODEL)
    assert not (tmp_path / "low.codec").exists()


def test_rates_too_far_apart_are_refused_with_the_way_out(tmp_path: Path) -> None:
    far = MODEL.sample_rate * MAX_RATIO + 1
    with pytest.raises(UnsupportedAudio, match=f"a.wav has a sample rate of {far} Hz .* {MODEL.sample_rate} Hz"):
        compress(silent(tmp_path / "a.wav", rate=far, channels=1, time=2), tmp_path / "a.codec", model=MODEL)
    file = compressed(tmp_path / "far.codec", rate=far, channels=25, frames=2)
    with pytest.raises(UnsupportedAudio, match=f"far.codec cannot be restored at {far} Hz .*: pass --rate 8000"):
        decompress(file, tmp_path / "far.wav", model=MODEL)
    with pytest.raises(UsageError, match=f"far.codec cannot be restored at {far} Hz"):
        decompress(file, tmp_path / "far.wav", model=MODEL, rate=far)
    assert not (tmp_path / "far.wav").exists()
    assert decompress(file, tmp_path / "far.wav", model=MODEL, rate=8000).channels == 25


def test_a_low_rate_in_a_header_can_be_overridden(tmp_path: Path) -> None:
    file = compressed(tmp_path / "low.codec", rate=50, channels=2, frames=100)
    with pytest.raises(UnsupportedAudio, match=r"cannot be restored at 50 Hz .*: pass --rate 8000"):
        decompress(file, tmp_path / "low.wav", model=MODEL)
    assert decompress(file, tmp_path / "low.wav", model=MODEL, rate=8000).rate == 8000


def test_the_resampler_waits_for_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 1024 channels without packets must not cost the filters of 1024 channels."""

    def made(*_: object, **__: object) -> None:
        raise AssertionError("a resampler without samples")

    monkeypatch.setattr(soxr, "ResampleStream", made)
    resampler = Resampler(8000, 100, CHANNELS)
    assert resampler.push(np.zeros((CHANNELS, 0), np.float32)).shape == (CHANNELS, 0)
    assert resampler.flush().shape == (CHANNELS, 0)
    file = compressed(tmp_path / "a.codec", rate=100, channels=CHANNELS, frames=2)
    with file.open("r+b") as opened:
        opened.truncate(200)
    with pytest.raises(DamagedFile):
        decompress(file, tmp_path / "a.wav", model=MODEL)


@pytest.mark.parametrize("rate", [MIN_RATE, 8000, 48000])
def test_pushes_are_bounded_in_samples_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    sizes: list[int] = []
    push = StreamEncoder.push

    def counted(encoder: StreamEncoder, audio: Any) -> Any:
        sizes.append(audio.size)
        return push(encoder, audio)

    monkeypatch.setattr(StreamEncoder, "push", counted)
    source = tmp_path / "wide.wav"
    soundfile.write(source, np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 4, 64)), rate)
    compress(source, tmp_path / "wide.codec", model=MODEL)
    assert sum(sizes) == 64 * MODEL.sample_rate // 4
    assert max(sizes) <= 2 * BLOCK_SECONDS * MODEL.sample_rate


@pytest.mark.parametrize(("frames", "channels"), [(1000, 1), (20, 64)])
def test_a_long_packet_is_decoded_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int, channels: int
) -> None:
    """A packet may hold hours of audio, or a frame of many channels."""
    pushed: list[int] = []
    push = StreamDecoder.push

    def counted(decoder: StreamDecoder, codes: Any) -> Any:
        pushed.append(codes.shape[0] * codes.shape[2])
        return push(decoder, codes)

    monkeypatch.setattr(StreamDecoder, "push", counted)
    file = compressed(tmp_path / "a.codec", rate=8000, channels=channels, frames=frames, frames_per_packet=frames)
    report = decompress(file, tmp_path / "a.wav", model=MODEL)
    assert (report.time, sum(pushed)) == (MODEL.frame_spec.time(frames), frames * channels)
    assert max(pushed) <= max(channels, BLOCK_SECONDS * MODEL.frame_rate)


def model_of(family: str) -> Codec:
    if family == "causal":
        return MODEL
    torch.manual_seed(0)
    model = models.of_config(TINY[family]).eval()
    model.name, model.weights_hash = family, "0" * 64
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", ["causal", "encodec_segments", "dac"])
@pytest.mark.parametrize(("vbr", "rate"), [(None, 11_025), (None, 8000), (2, 8000)])
def test_channels_in_groups_have_the_codes_and_the_samples_of_all_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, vbr: float | None, rate: int
) -> None:
    """Of seven channels, the last two of which are proportional and one of which is shorter than the others."""
    if vbr is not None and family != "causal":
        pytest.skip("the family has no variable bit rate")
    model = model_of(family)
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (round(2.3 * rate), 7))
    audio[:, 3:] *= np.sin(np.arange(len(audio)) / 900)[:, None]
    audio[:, 6] = audio[:, 5] / 2
    soundfile.write(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    seen: list[float] = []
    damage = 0.5
    for most in (100, 2):
        monkeypatch.setattr(splicing, "MOST_ROWS", most)
        monkeypatch.setattr(compression, "MOST_ROWS", most)
        options: dict[str, Any] = {"model": model, "vbr": vbr, "packet": 0.4, "verify": True}
        compress(tmp_path / "a.wav", tmp_path / f"{most}.codec", progress=lambda done, _: seen.append(done), **options)
        data = bytearray((tmp_path / f"{most}.codec").read_bytes())
        for name, start, end in (("whole", 0.0, None), ("part", 0.61, 1.7)):
            target = tmp_path / f"{name} {most}.wav"
            decompress(tmp_path / f"{most}.codec", target, model=model, subtype="FLOAT", start=start, end=end)
        data[round(damage * len(data))] ^= 1
        (tmp_path / "damaged.codec").write_bytes(data)
        with pytest.raises(DamagedFile, match=r"lost are .* the rest is intact"):
            decompress(tmp_path / "damaged.codec", tmp_path / f"damaged {most}.wav", model=model, subtype="FLOAT")
        with pytest.raises(DamagedFile, match="damaged at byte"):
            decompress(tmp_path / "damaged.codec", tmp_path / "strict.wav", model=model, strict=True)
        assert not (tmp_path / "strict.wav").exists()
        assert seen == sorted(seen)
        assert seen.pop() == pytest.approx(2.3, abs=0.01)
        seen.clear()
    if vbr is None:  # its loudest block is that of the channels that are encoded together
        assert (tmp_path / "2.codec").read_bytes() == (tmp_path / "100.codec").read_bytes()
        for name in ("whole", "part", "damaged"):
            one, other = (soundfile.read(tmp_path / f"{name} {most}.wav")[0] for most in (100, 2))
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_filters_of_many_channels_are_made_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A soxr filter between 100 Hz and 24 kHz takes up to 3 MB for each channel."""
    counts: list[int] = []
    made = soxr.ResampleStream

    def counted(from_rate: int, to_rate: int, channels: int, **options: Any) -> Any:
        counts.append(channels)
        return made(from_rate, to_rate, channels, **options)

    monkeypatch.setattr(soxr, "ResampleStream", counted)
    monkeypatch.setattr(splicing, "MOST_ROWS", 8)
    monkeypatch.setattr(compression, "MOST_ROWS", 8)
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (50, 20)), 400)
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL)
    assert decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL).channels == 20
    assert counts == [8, 8, 4] * 2


def test_long_silence_of_many_channels_takes_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of two packets with minutes between them."""
    monkeypatch.setattr(splicing, "MOST_ROWS", 8)
    sizes: list[int] = []
    temporary = splicing.temporary

    @contextmanager
    def measured(what: str) -> Iterator[Any]:
        with temporary(what) as file:
            yield file
            sizes.append(os.fstat(file.fileno()).st_blocks * 512)

    monkeypatch.setattr(splicing, "temporary", measured)
    file = compressed(tmp_path / "a.codec", rate=8000, channels=20, frames=20, frames_per_packet=10)
    with bitstream.open_reader(file) as reader:
        first, second = reader.parts()
        monkeypatch.setattr(Reader, "parts", lambda *_: iter([first, second._replace(first=6000)]))
        reader.header = replace(reader.header, frames=6010, time=6000 * MODEL.frame_spec.hop)
        blocks = splicing.Restoration(reader, MODEL, rate=8000, force=True).blocks()
        assert sum(block.shape[1] for block in blocks) == reader.header.time
    assert len(sizes) == 6  # codes and audio of three groups
    assert max(sizes) < 2**20 < 8 * 4 * reader.header.time


@pytest.mark.parametrize("length", [20, 243, 244, 255])
def test_the_longest_name_of_a_model(tmp_path: Path, length: int) -> None:
    file = compressed(tmp_path / "a.codec", rate=8000, channels=1, frames=2, model="n" * length)
    with pytest.raises(UnknownModel, match=r"nnn.* is not shipped") as caught:
        decompress(file, tmp_path / "a.wav")
    assert caught.value.exit_code == 6


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    source = silent(tmp_path / "a.wav", rate=8000, channels=1, time=2)
    for name in ("n" * 5000, "a\0b"):
        with pytest.raises(UnknownModel):
            compress(source, tmp_path / "a.codec", model=name)
        with pytest.raises(CodecError):
            compress(name, tmp_path / "a.codec", model=MODEL)
        with pytest.raises(CodecError):
            compress(source, tmp_path / name, model=MODEL)
        with pytest.raises(CodecError):
            decompress(name, tmp_path / "a.wav", model=MODEL)


# model files


class Largest(TorchFunctionMode):
    """Records the elements of the largest tensor that torch makes."""

    elements = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def altered(path: Path, part: str | None, changes: dict[str, Any]) -> Path:
    """The model file with other values in the configuration, or in a part of it; the weights stay."""
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["codec"])
    config = card["config"] if part is None else card["config"][part]
    config |= changes
    save_file(load_file(path), path, metadata={"codec": json.dumps(card)})
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "changes"),
    [
        (None, {"encoder_blocks": 65536}),
        (None, {"hop": 8192}),
        (None, {"num_codebooks": 1024, "codebook_size": 65536}),
        (None, {"encoder_width": 65536, "expansion": 65536}),
        (None, {"kernel": 65536, "decoder_width": 65536}),
        (None, {"codebook_dim": 65536}),
        (None, {"beam_size": 10**9}),
        (None, {"quantizer": "scalar", "levels": [10**9] * 8}),
        ("model", {"layers": 65536}),
        ("model", {"layers": 10**6}),
        ("model", {"width": 65536}),
        ("model", {"depth": {"width": 65536, "layers": 65536}}),
        ("model", {"family": "pixelcnn", "layers": 10**18}),
        ("model", {"family": "pixelcnn", "layers": 1024, "context": 65536, "kernel": 65535}),
        ("source", {"num_codebooks": 1024, "codebook_size": 2**24}),
        ("source", {"dim": 10**9}),
        ("source", {"classes": {"label": [str(name) for name in range(10**5)]}}),
    ],
)
def test_a_configuration_beyond_its_weights_takes_no_memory(
    tmp_path: Path, part: str | None, changes: dict[str, Any]
) -> None:
    path = tmp_path / "a.safetensors"
    load: Callable[[Path], object] = load_lm
    if part is None:
        save_model(path, MODEL, training={})
        load = load_model
    else:
        save_lm(path, tiny_lm(), training={})
    altered(path, part, changes)
    with Largest() as largest, pytest.raises(UnknownModel, match=r"a.safetensors: its weights do not fit"):
        load(path)
    assert largest.elements <= most_memory(path.stat().st_size) / 2


def test_a_long_context_takes_the_memory_of_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_lm(path, tiny_lm(), training={})
    lm = load_lm(altered(path, "model", {"context": 2**24}))
    with Largest() as largest:
        lm.initial_state(lm.conditioning([{}]))
    assert largest.elements < 2**20


def test_checkpoints_of_other_projects_are_as_large_as_they_say(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"x": torch.zeros(1).expand(2**30)}}, path)
    with Largest() as largest, pytest.raises(UnknownModel, match=r"a.pth has tensors that are larger than the file"):
        foreign.load(path)
    assert largest.elements <= 2**30  # the view itself, without memory


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.npz"])
def test_compressed_arrays_are_not_unpacked_beyond_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(bounded_zip, "ALLOWANCE", 1000)
    path, plain, zeros = tmp_path / name, io.BytesIO(), np.zeros((2, 100_000), np.int64)
    if name.endswith("npz"):
        np.savez(plain, codes=zeros)
    else:
        torch.save({"codes": torch.from_numpy(zeros)}, plain)
    read: Callable[[], object] = partial(foreign_codes.read_codes, path, MODEL.frame_spec)
    if name == "a.pth":
        read = partial(foreign.load, path)
    path.write_bytes(plain.getvalue())
    with suppress(UnknownModel):  # it is not a model
        read()
    with zipfile.ZipFile(plain) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as compressed:
        for entry in stored.namelist():
            compressed.writestr(entry, stored.read(entry))
    with pytest.raises((UnknownModel, DamagedFile)) as caught:
        read()
    assert "would unpack to" in f"{caught.value} {caught.value.__cause__}"
