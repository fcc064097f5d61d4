"""compression.py: files and folders compressed and restored, against the model on the whole signal."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch

import codec
from codec import compression, live, pretrained, splicing
from codec.checkpoint import load_model, save_model
from codec.compression import compress, decompress
from codec.errors import (
    ConfigError,
    DamagedFile,
    InputNotFound,
    StorageError,
    UnknownModel,
    UnsupportedAudio,
    UsageError,
    WeightsMismatch,
)
from codec.frames import FrameSpec
from codec.io import bitstream
from codec.io.audio import Block, Resampler, write_audio
from codec.io.bitstream import Codes, Header, Writer
from codec.io.entropy import Choice, bytes_for
from codec.io.pipes import Layout
from codec.models.base import Codec
from codec.nn.quantize.gain_shape import GainShapeVQ
from codec.streams import StreamDecoder
from tests.helpers.memory import peak_memory
from tests.tiny import tiny_model

MODEL = tiny_model()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, MODEL, training={})
    return path


def tones(path: Path, *, time: int = 12345, rate: int = 8000, channels: int = 1) -> Path:
    t = np.arange(time)[:, None] / rate
    hertz = 200 * (1 + np.arange(channels))
    noise = np.random.default_rng(time).normal(0, 0.05, (time, channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * t) + noise, rate)
    return path


def samples(path: Path) -> Block:
    block: Block = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    return block


def codes_in(path: Path) -> tuple[Header, Codes]:
    with bitstream.open_reader(path) as reader:
        return reader.header, np.concatenate(list(reader.packets()), axis=2)


def resampled(audio: Block, from_rate: int, to_rate: int) -> Block:
    resampler = Resampler(from_rate, to_rate, len(audio))
    return np.concatenate([resampler.push(audio), resampler.flush()], axis=1)


def rewritten(path: Path, **changes: Any) -> Path:
    """Replace fields of the header and keep the codes."""
    header, codes = codes_in(path)
    with path.open("wb") as file:
        writer = Writer(file, replace(header, **changes))
        writer.write(codes)
        writer.close(time=changes.get("time", header.time))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("block_seconds", [0.03, 4.0])
@pytest.mark.parametrize(
    ("time", "rate", "channels"),
    [(1, 8000, 1), (79, 8000, 2), (80, 8000, 1), (12345, 8000, 5), (1, 44100, 1), (9001, 44100, 2), (777, 3001, 3)],
)
def test_a_file_holds_the_codes_and_the_audio_of_the_whole_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: int, rate: int, channels: int, block_seconds: float
) -> None:
    monkeypatch.setattr(compression, "BLOCK_SECONDS", block_seconds)
    monkeypatch.setattr(splicing, "BLOCK_SECONDS", block_seconds)
    source = tones(tmp_path / "a.wav", time=time, rate=rate, channels=channels)
    report = compress(source, tmp_path / "a.codec", model=MODEL)
    header, codes = codes_in(tmp_path / "a.codec")
    assert (header.time, header.source_rate, header.channels) == (time, rate, channels)
    assert (header.model, header.weights_hash) == ("tiny-0", MODEL.weights_hash)
    audio = torch.from_numpy(resampled(samples(source), rate, 8000))[:, None]
    expected = MODEL.encode(audio)
    assert codes.shape == tuple(expected.shape)
    if rate == 8000:  # resampling in blocks rounds differently, which may change a code
        np.testing.assert_array_equal(codes, expected)
    assert report.compressed_bytes == (tmp_path / "a.codec").stat().st_size
    assert report.seconds == time / rate
    assert report.bitrate == pytest.approx(report.compressed_bytes * 8 / 1000 / (time / rate))

    back = decompress(tmp_path / "a.codec", tmp_path / "back.wav", model=MODEL)
    info = soundfile.info(tmp_path / "back.wav")
    assert (info.frames, info.samplerate, info.channels) == (time, rate, channels)
    decoded = MODEL.decode(torch.from_numpy(codes.copy()), length=audio.shape[2])[:, 0].numpy()
    ours = samples(tmp_path / "back.wav")
    np.testing.assert_allclose(ours, resampled(decoded, 8000, rate)[:, :time].clip(-1, 1), atol=1e-4)
    assert (back.time, back.rate, back.channels) == (time, rate, channels)
    assert back.compressed_bytes == report.compressed_bytes


def test_the_bit_rate_of_a_part_is_that_of_the_file(tmp_path: Path) -> None:
    source = tones(tmp_path / "a.wav", time=32_000, rate=8000, channels=1)
    compress(source, tmp_path / "a.codec", model=MODEL)
    size = (tmp_path / "a.codec").stat().st_size
    part = decompress(tmp_path / "a.codec", tmp_path / "part.wav", model=MODEL, start=1.0, end=1.5)
    assert (part.seconds, part.coded_seconds, part.compressed_bytes) == (0.5, 4.0, size)
    assert part.bitrate == pytest.approx(size * 8 / 1000 / 4)


def test_the_entropy_coder_is_chosen_and_its_saving_reported(tmp_path: Path) -> None:
    source = tones(tmp_path / "a.wav", time=16_000, rate=8000, channels=1)
    sizes, codes = {}, {}
    choices: tuple[Choice, ...] = ("none", "adaptive", "auto")
    for choice in choices:
        report = compress(source, tmp_path / f"{choice}.codec", model=MODEL, entropy=choice)
        sizes[choice], codes[choice] = report.compressed_bytes, codes_in(tmp_path / f"{choice}.codec")[1]
        assert report.entropy_saved is not None
        packed = bytes_for(MODEL.codebook_sizes, codes[choice].shape[2])
        saved = report.entropy_saved * packed
        assert sizes["none"] - sizes[choice] == pytest.approx(saved, abs=8)  # packets, their lengths, rounding
    assert sizes["adaptive"] == sizes["auto"] < sizes["none"]
    np.testing.assert_array_equal(codes["none"], codes["auto"])
    with pytest.raises(UsageError, match=r"no network for entropy coding, .*: use --entropy auto"):
        compress(source, tmp_path / "model.codec", model=MODEL, entropy="model")
    assert not (tmp_path / "model.codec").exists()


def test_another_rate_and_format(tmp_path: Path) -> None:
    compress(tones(tmp_path / "a.wav", time=4410, rate=44100, channels=2), tmp_path / "a.codec", model=MODEL)
    report = decompress(tmp_path / "a.codec", tmp_path / "a.flac", model=MODEL, rate=16000)
    info = soundfile.info(tmp_path / "a.flac")
    assert (info.frames, info.samplerate, info.channels, info.format) == (1600, 16000, 2, "FLAC")
    assert report.rate == 16000


def test_progress_counts_seconds(tmp_path: Path) -> None:
    calls: list[tuple[float, float | None]] = []
    source = tones(tmp_path / "a.wav", time=80_000)
    compress(source, tmp_path / "a.codec", model=MODEL, progress=lambda *call: calls.append(call))
    assert calls == [(4.0, 10.0), (8.0, 10.0), (10.0, 10.0)]
    calls.clear()
    decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL, progress=lambda *call: calls.append(call))
    assert calls[-1] == (10.0, 10.0)
    assert sorted(calls) == calls


def test_codebooks_by_number_and_by_bitrate(tmp_path: Path) -> None:
    source, rate = tones(tmp_path / "a.wav"), MODEL.frame_spec.bitrate(2)
    one = compress(source, tmp_path / "one.codec", model=MODEL, num_codebooks=1)
    two = compress(source, tmp_path / "two.codec", model=MODEL, bitrate=rate)
    assert (one.num_codebooks, two.num_codebooks) == (1, 2)
    all_codes = MODEL.encode(torch.from_numpy(samples(source))[:, None])
    np.testing.assert_array_equal(codes_in(tmp_path / "two.codec")[1], all_codes[:, :2])
    assert decompress(tmp_path / "one.codec", tmp_path / "one.wav", model=MODEL).num_codebooks == 1
    with pytest.raises(UsageError, match="one of the two"):
        compress(source, tmp_path / "x.codec", model=MODEL, num_codebooks=1, bitrate=rate)
    with pytest.raises(UsageError, match="4"):
        compress(source, tmp_path / "x.codec", model=MODEL, num_codebooks=4)
    with pytest.raises(ConfigError, match="lowest rate"):
        compress(source, tmp_path / "x.codec", model=MODEL, bitrate=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["compress", "decompress"])
def test_memory_is_constant(tmp_path: Path, way: str) -> None:
    peaks = []
    for seconds in (1, 8, 24):  # the first includes one-time loading
        source = tones(tmp_path / "a.wav", time=seconds * 8000, channels=2)
        work: Callable[[], object] = lambda: compress(source, tmp_path / "a.codec", model=MODEL, force=True)  # noqa: B023, E731
        if way == "decompress":
            work()
            work = lambda: decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL, force=True)  # noqa: E731
        peaks.append(peak_memory(work))
    assert peaks[2] < peaks[1] * 1.1


@pytest.mark.parametrize(
    ("seconds", "packet"), [(0.0, 1.0), (2.0, 1.0), (20.0, 1.0), (30.0, 1.5), (60.0, 3.0), (36_000.0, 10.0)]
)
def test_a_packet_is_a_second_or_a_twentieth_of_the_recording(seconds: float, packet: float) -> None:
    header = compression.header_of(MODEL, 8000, 1, 1, seconds=seconds)  # 1 codebook, 250 bit/s
    assert header.frame_spec.seconds(header.frames_per_packet * header.hop) == pytest.approx(packet, rel=0.03)


@pytest.mark.parametrize("channels", [1, 2])
def test_packets_have_ends_in_recordings_of_any_length(channels: int) -> None:
    """Whatever the number of codebooks, 50 frames of 10 bits a codebook and second as in general-24k."""
    spec = FrameSpec(sample_rate=24_000, hop=480, decoder_delay=480, num_codebooks=16, codebook_size=1024)
    model: Any = SimpleNamespace(
        frame_spec=spec, weights_hash="00" * 32, channels=1, segment_frames=0, codebook_sizes=(1024,) * 16,
        name="model", config=SimpleNamespace(family="causal"),
    )  # fmt: skip
    for num_codebooks in (2, 3, 8, 12, 13, 16):
        for length in np.geomspace(1, 3600, 300):
            assert compression.header_of(model, 24_000, channels, num_codebooks, seconds=length).wants_ends
        assert compression.header_of(model, 24_000, channels, num_codebooks, average=4, seconds=9.0).wants_ends
    assert not compression.header_of(model, 24_000, channels, 16, 0.2, seconds=9.0).wants_ends


def test_more_beams_find_codes_nearer_to_the_latents(tmp_path: Path) -> None:
    source = tones(tmp_path / "a.wav", time=80 * 150)
    audio = torch.from_numpy(samples(source))[None]
    quantizer = cast(GainShapeVQ, MODEL.quantizer)
    residual = quantizer.split(MODEL.analyze(audio)).residual.detach()
    codes, errors = {}, {}
    for beams in (None, 1, 8):
        compress(source, tmp_path / "a.codec", model=MODEL, beams=beams, force=True)
        codes[beams] = torch.from_numpy(codes_in(tmp_path / "a.codec")[1])
        decoded = quantizer.split(quantizer.decode(codes[beams][..., : residual.shape[2]]))
        used = decoded.learned >= 0
        errors[beams] = float((used * (residual - decoded.residual)).square().sum())
    assert torch.equal(codes[None], codes[1])  # the model's own number
    assert errors[8] < 0.99 * errors[1]
    assert MODEL.beam_size == 1
    with pytest.raises(UsageError, match=r"^300 beams: use 1 to 256"):
        compress(source, tmp_path / "b.codec", model=MODEL, beams=300)
    assert not (tmp_path / "b.codec").exists()


def test_packets_are_equally_long() -> None:
    for seconds in (0.1, 0.99, 1.0, 1.01, 1.49, 1.51, 5.0, 19.99):
        header = compression.header_of(MODEL, 8000, 1, 1, seconds=seconds)
        frames, packet = header.frame_spec.frames(round(8000 * seconds)), header.frames_per_packet
        assert packet - -frames % packet >= packet - -(-frames // packet)  # the last one has at most a frame less each
        assert header.frame_spec.seconds(packet * header.hop) <= 1.53


def test_standard_input_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tones(tmp_path / "a.wav", channels=2)
    compress(source, tmp_path / "a.codec", model=MODEL, packet=1.0)  # as in a pipe
    decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL)

    def piped(data: bytes, work: Callable[[], object]) -> bytes:
        out = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out))
            work()
            return out.getvalue()

    compressed = piped(source.read_bytes(), lambda: compress("-", "-", model=MODEL))
    assert compressed == (tmp_path / "a.codec").read_bytes()
    restored = piped(compressed, lambda: decompress("-", "-", model=MODEL))
    assert restored == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("rate", [8000, 11_025])
def test_a_live_recording_does_not_end_in_a_whole_packet(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what a whole packet completes is played before the next one comes; lengths around two packets."""
    monkeypatch.setattr(live, "prepare", lambda model, job: None)

    def compressed(samples: bytes, *, is_live: bool) -> bytes:
        with monkeypatch.context() as patch:
            patch.setattr(compression, "_are_live", lambda source, target: is_live)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(samples)))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO()))
            compress("-", "-", model=MODEL, raw=Layout(rate, 1), packet=0.1)  # 10 frames
            return out.getvalue()

    cut, same = 0, 0
    for frames in np.arange(17.25, 21.0, 1 / 2):
        time = round(frames * 80 * rate / 8000) + 1
        samples = np.random.default_rng(time).integers(-9999, 9999, time).astype("<i2").tobytes()
        live_file, other = (compressed(samples, is_live=is_live) for is_live in (True, False))
        reader, expected = (bitstream.Reader(io.BytesIO(data), label="x") for data in (live_file, other))
        assert (reader.header.is_live, expected.header.is_live) == (True, False)
        assert (reader.header.time, reader.header.frames) == (time, expected.header.frames)
        packets = list(reader.coded())
        for packet in packets:
            if packet.frames == reader.header.frames_per_packet:
                assert (packet.first + packet.frames) * 80 <= reader.header.model_time
        codes, others = (np.concatenate(list(file.packets()), axis=2) for file in (reader, expected))
        np.testing.assert_array_equal(codes, others)
        is_as_before = [packet.frames for packet in packets] == [packet.frames for packet in expected.coded()]
        same, cut = same + is_as_before, cut + (not is_as_before)
    assert same >= 2
    assert cut >= 2


@pytest.mark.parametrize("is_live", [True, False])
def test_a_whole_packet_of_a_live_pipe_is_given_up_to_its_last_sample(is_live: bool) -> None:
    codes = MODEL.encode(0.1 * torch.randn(1, 1, 80 * 30, generator=torch.Generator().manual_seed(0))).numpy()
    file = io.BytesIO()
    writer = Writer(file, compression.header_of(MODEL, 8000, 1, 3, 0.1), is_live=is_live)
    writer.write(codes[:, :, :30])
    writer.write(codes[:, :, 30:], is_end=True)  # 1 frame
    writer.close(time=80 * 30)
    places = [packet.offset for packet in bitstream.Reader(io.BytesIO(file.getvalue()), label="x").coded()]
    given = {0: 0}  # samples by the bytes that were taken

    class Pipe(io.RawIOBase):
        data = io.BytesIO(file.getvalue())

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            if self.data.tell() == len(file.getvalue()):
                given[-1] = time  # before the writer closes the pipe
            return self.data.readinto(memoryview(buffer)[:1])

    pipe = Pipe()
    reader = bitstream.Reader(io.BufferedReader(pipe, 1), label="x")
    time, blocks = 0, []
    for block in splicing.Restoration(reader, MODEL, rate=8000).blocks():
        time += block.shape[1]
        given[pipe.data.tell()] = time
        blocks.append(block)
    rate_change = 2  # samples that wait for a change of the sample rate, even if there is none
    for packet, end in enumerate([*places[1:], places[3] + 1][:3], start=1):
        most = max(time for place, time in given.items() if 0 <= place <= end)
        assert most == 80 * (10 * packet - 1 - (not is_live)) - rate_change
    assert given[-1] == 80 * 30
    audio = MODEL.decode(torch.from_numpy(codes), length=80 * 30)[0]
    np.testing.assert_allclose(np.concatenate(blocks, axis=1), audio, atol=1e-5)


def test_an_existing_target_is_kept_without_force(tmp_path: Path) -> None:
    source, target = tones(tmp_path / "a.wav"), tmp_path / "a.codec"
    target.write_text("dear")
    with pytest.raises(StorageError, match="--force"):
        compress(source, target, model=MODEL)
    assert target.read_text() == "dear"
    compress(source, target, model=MODEL, force=True)
    with pytest.raises(StorageError, match="--force"):
        decompress(target, source, model=MODEL)
    decompress(target, source, model=MODEL, force=True)


def test_source_and_target_must_differ(tmp_path: Path) -> None:
    source = tones(tmp_path / "a.wav")
    before = source.read_bytes()
    link = tmp_path / "link.codec"
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(UsageError, match="the same file"):
            compress(source, target, model=MODEL, force=True)
    assert source.read_bytes() == before
    compressed = tmp_path / "b.wav"
    compress(source, compressed, model=MODEL)
    with pytest.raises(UsageError, match="the same file"):
        decompress(compressed, compressed, model=MODEL, force=True)


def test_a_failing_file_leaves_no_output(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.0] * 70000 + [np.nan]), 8000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "text.codec").write_text("no codes, but more than eight bytes")
    for name in ("nan.wav", "text.wav"):
        with pytest.raises(UnsupportedAudio, match=name):
            compress(tmp_path / name, tmp_path / "x.codec", model=MODEL)
    with pytest.raises(UnsupportedAudio, match=r"text\.codec"):
        decompress(tmp_path / "text.codec", tmp_path / "x.wav", model=MODEL)
    with pytest.raises(InputNotFound):
        compress(tmp_path / "missing.wav", tmp_path / "x.codec", model=MODEL)
    with pytest.raises(InputNotFound):
        decompress(tmp_path / "missing.codec", tmp_path / "x.wav", model=MODEL)
    assert {path.name for path in tmp_path.iterdir()} == {"nan.wav", "text.wav", "text.codec"}


def damaged(path: Path, *packets: int) -> list[int]:
    """Alter packets of codes; return the offsets of all packets."""
    data = bytearray(path.read_bytes())
    places = []
    at = data.index(b"\xf5\xc3")
    while at >= 0:
        places.append(at)
        at = data.find(b"\xf5\xc3", at + 2)
    for number in packets:
        data[places[number] + 30] ^= 1
    path.write_bytes(data)
    return places


def start_of_frame(frame: int, rate: int) -> int:
    return frame * 80 * rate // 8000


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 44100])
def test_damage_stays_in_its_packet(tmp_path: Path, rate: int) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav", time=rate * 5, rate=rate, channels=2), target, model=MODEL, packet=1.0)
    decompress(target, tmp_path / "whole.wav", model=MODEL)
    places = damaged(target, 2)
    with pytest.raises(DamagedFile, match=r"packet 2: .* lost are 1\.990 to 3\.000 s, the rest is intact") as caught:
        decompress(target, tmp_path / "part.wav", model=MODEL)
    assert (caught.value.offset, caught.value.seconds_decoded) == (places[2], 1.99)
    part, whole = samples(tmp_path / "part.wav"), samples(tmp_path / "whole.wav")
    assert part.shape == whole.shape
    # The resampler's filter reaches about 10 ms.
    reach = 0 if rate == 8000 else rate // 50
    before, behind = round(1.99 * rate), 3 * rate
    np.testing.assert_allclose(part[:, : before - reach], whole[:, : before - reach], atol=1e-4)
    assert not part[:, before + rate // 50 + reach : behind - reach].any()
    warm = behind + start_of_frame(MODEL.receptive_field().decoder.past + 1, rate) + reach
    assert warm < 4.5 * rate
    np.testing.assert_allclose(part[:, warm:], whole[:, warm:], atol=1e-4)
    fade = np.abs(part[:, behind : behind + rate // 100]).mean(axis=0)
    assert fade[: len(fade) // 4].mean() < 0.5 * fade[-len(fade) // 4 :].mean()
    refused = tmp_path / "strict.wav"
    with pytest.raises(DamagedFile, match=r"first 1\.990 s are intact"):
        decompress(target, refused, model=MODEL, strict=True)
    assert not refused.exists()


def test_concealment_continues_before_the_silence(tmp_path: Path) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav", time=8000 * 3), target, model=MODEL, packet=1.0)
    damaged(target, 1)
    levels = {}
    for conceal in (False, True):
        with pytest.raises(DamagedFile):
            decompress(target, tmp_path / "b.wav", model=MODEL, conceal=conceal, force=True)
        lost = samples(tmp_path / "b.wav")[0, round(0.99 * 8000) : 2 * 8000]
        levels[conceal] = [np.abs(lost[n * 80 : n * 80 + 80]).max() for n in range(15)]
    assert [level > 0 for level in levels[False]] == [True] + [False] * 14
    assert [level > 0 for level in levels[True]] == [True] * 12 + [False] * 3
    assert levels[True][11] < 0.2 * max(levels[True])


@pytest.mark.parametrize(
    ("packets", "silent"), [([0], (0, 8000)), ([4], (4 * 8000 - 80 + 160, 36_000)), ([1, 3], None)]
)
def test_damage_at_both_ends_and_twice(tmp_path: Path, packets: list[int], silent: tuple[int, int] | None) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav", time=36_000), target, model=MODEL, packet=1.0)
    damaged(target, *packets)
    with pytest.raises(DamagedFile, match="in 1 more places" if silent is None else "the rest is intact") as caught:
        decompress(target, tmp_path / "b.wav", model=MODEL)
    assert caught.value.lost is not None
    assert len(caught.value.lost) == len(packets)
    back = samples(tmp_path / "b.wav")
    assert back.shape == (1, 36_000)
    if silent:
        assert not back[:, slice(*silent)].any()
        assert back.any()


@pytest.mark.slow
def test_damage_outside_the_codes_costs_no_audio(tmp_path: Path) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav", time=160_000), target, model=MODEL)
    decompress(target, tmp_path / "whole.wav", model=MODEL)
    data = target.read_bytes()
    for position in (3, 40, len(data) - 20, len(data) - 2):
        altered = bytearray(data)
        altered[position] ^= 1
        target.write_bytes(altered)
        with pytest.raises(
            DamagedFile, match=r"all audio is intact and in .*; codec transcode writes a file without the damage"
        ):
            decompress(target, tmp_path / "b.wav", model=MODEL, force=True)
        assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


def test_a_truncated_file_ends_with_its_last_packet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav", time=8000 * 3), target, model=MODEL, packet=1.0)
    places = damaged(target)
    target.write_bytes(target.read_bytes()[: places[2] + 5])
    with pytest.raises(DamagedFile, match=r"lost are all from 1\.990 s on"):
        decompress(target, tmp_path / "b.wav", model=MODEL)
    assert samples(tmp_path / "b.wav").shape == (1, 1.99 * 8000)


def with_gaps(folder: Path, monkeypatch: pytest.MonkeyPatch, *begins: int) -> Path:
    """A file with packets of 100 frames that begin at these frames, and without the limit of samples."""
    target = folder / "a.codec"
    compress(tones(folder / "a.wav"), target, model=MODEL, packet=1.0)
    header, codes = codes_in(target)
    with target.open("wb") as file:
        writer = Writer(file, header)
        for first in begins:
            writer.header = replace(writer.header, frames=first)
            writer.write(codes[:, :, :100])
        writer.close(time=(begins[-1] + 100) * 80)
    monkeypatch.setattr(splicing, "MAX_SAMPLES", 1 << 62)
    return target


def test_silence_out_of_proportion_needs_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packets, 25 days apart."""
    target = with_gaps(tmp_path, monkeypatch, 0, 1 << 28)
    with pytest.raises(UnsupportedAudio, match="2684354 s beside 1 s of audio: pass --force"):
        decompress(target, tmp_path / "b.wav", model=MODEL)
    assert not (tmp_path / "b.wav").exists()


def test_silence_of_many_gaps_is_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps of 500 s and of 250000 s, which is less than 600 times what is before it."""
    target = with_gaps(tmp_path, monkeypatch, 0, 50_000, 25_000_000)
    with pytest.raises(UnsupportedAudio, match="lacks 249998 s beside 2 s of audio: pass --force"):
        decompress(target, tmp_path / "b.wav", model=MODEL)
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize("is_pipe", [False, True])
def test_audio_out_of_proportion_needs_force(is_pipe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of one coded channel that is given to 1024 at 1 MHz: 2 GB."""
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav", time=9000), target, model=MODEL, packet=1.0)
    header, codes = codes_in(target)
    with target.open("wb") as file:
        writer = Writer(file, replace(header, source_rate=1 << 20, channels=1024, mix=((1.0,),) * 1024, time=0))
        writer.write(codes[:, :, :100])
        writer.close(time=1 << 20)
    if is_pipe:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(target.read_bytes())))
    monkeypatch.setattr("codec.splicing.SAMPLES_PER_BYTE", 1 << 16)
    with pytest.raises(UnsupportedAudio, match=r"s of 1024 channels at 1048576 Hz, .* GB: pass --force"):
        decompress("-" if is_pipe else target, tmp_path / "b.wav", model=MODEL)
    assert not (tmp_path / "b.wav").exists()
    with bitstream.open_reader(target) as reader:
        blocks = splicing.Restoration(reader, MODEL, rate=1 << 20, part=(0, 1000)).blocks()
        assert [block.shape for block in blocks] == [(1024, 1000)]
    with bitstream.open_reader(target) as reader:
        blocks = splicing.Restoration(reader, MODEL, rate=1 << 20, force=True).blocks()
        assert max(block.size for block, _ in zip(blocks, range(20), strict=False)) <= splicing.MAX_BLOCK


def test_damage_before_the_first_second_leaves_no_target(tmp_path: Path) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav"), target, model=MODEL)
    data = target.read_bytes()
    for cut in (0, 50, 120):
        target.write_bytes(data[:cut])
        with pytest.raises(DamagedFile):
            decompress(target, tmp_path / "b.wav", model=MODEL)
    assert {path.name for path in tmp_path.iterdir()} == {"a.wav", "a.codec"}


def test_other_weights_raise(tmp_path: Path) -> None:
    compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=MODEL)
    with pytest.raises(WeightsMismatch, match=r"tiny-0.*tiny-1.*--model"):
        decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=tiny_model(1))
    assert not (tmp_path / "b.wav").exists()


def test_weights_of_an_earlier_release_are_named(tmp_path: Path) -> None:
    old = tiny_model(1)
    old.weights_hash = next(hash_ for hash_, release in pretrained.EARLIER.items() if release == "0.1.0")
    compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=old)
    with pytest.raises(WeightsMismatch, match=r"release 0\.1\.0 of codec decodes it; or pass --model"):
        decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL)


@pytest.mark.parametrize(
    "changes", [{"codebook_sizes": (32, 32, 32)}, {"hop": 40, "decoder_delay": 40, "time": 1}, {"family": "other"}]
)
def test_a_header_that_contradicts_its_model_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=MODEL)
    rewritten(tmp_path / "a.codec", **changes)
    with pytest.raises(DamagedFile, match="contradicts"):
        decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL)


def test_a_recording_without_samples_raises(tmp_path: Path) -> None:
    compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=MODEL)
    with pytest.raises(UnsupportedAudio, match="no samples"):
        decompress(rewritten(tmp_path / "a.codec", time=0), tmp_path / "b.wav", model=MODEL)


def test_a_model_that_was_never_saved_raises(tmp_path: Path) -> None:
    model = tiny_model()
    model.weights_hash = None
    with pytest.raises(UsageError, match="never saved"):
        compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=model)


def test_the_file_names_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav"), target, model=model_file)
    with pytest.raises(UnknownModel, match=r"tiny .*not shipped.*--model"):
        decompress(target, tmp_path / "b.wav")
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "tiny.safetensors").write_bytes(model_file.read_bytes())
    (tmp_path / "other.safetensors").write_bytes(model_file.read_bytes())
    monkeypatch.setattr(pretrained, "WEIGHTS", weights)
    decompress(target, tmp_path / "b.wav")
    decompress(target, tmp_path / "c.wav", model=model_file)
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()
    for name in ("", "../other", str(tmp_path / "other"), str(model_file)):
        with pytest.raises(UnknownModel):
            decompress(rewritten(target, model=name), tmp_path / "d.wav")


@pytest.mark.slow
def test_a_changed_model_file_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    hashes = []
    for seed in range(2):
        save_model(path, tiny_model(seed), training={})
        compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=path, force=True)
        assert codes_in(tmp_path / "a.codec")[0].weights_hash == load_model(path).weights_hash
        hashes.append(load_model(path).weights_hash)
    assert hashes[0] != hashes[1]


# samples beyond full scale

RATE = 8000


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.9, 0.9, RATE), RATE, subtype="FLOAT")
    return path


def scaled(path: Path, factor: float) -> Path:
    soundfile.write(path, soundfile.read(path)[0] * factor, RATE, subtype="FLOAT")
    return path


def test_peaks_of_the_source_are_reported(noise: Path) -> None:
    model = tiny_model()
    assert codec.encode_file(noise, model=model).notes == ()
    assert codec.encode_file(scaled(noise, 3), model=model, force=True).notes == ()  # floats are scaled
    (note,) = compression.peak_notes("a.wav", 2.7, model.limit)  # of a pipe, whose peak is known too late
    assert "peaks at +8.6 dBFS" in note
    assert "clipped at +0.4 dBFS" in note
    (note,) = codec.encode_file(scaled(noise, 32768 / 3), model=model, force=True).notes
    assert "as if it held integers: divide its samples by 32768" in note


def loud(model: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the decoder give a constant of 1.04, within the model's limit."""
    push = StreamDecoder.push
    monkeypatch.setattr(StreamDecoder, "push", lambda self, codes: push(self, codes) * 0 + 1.04)


def test_clipping_is_counted_and_floats_keep_the_peaks(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    codec.encode_file(noise, model=model)
    loud(model, monkeypatch)
    report = codec.decode_file(noise.with_suffix(".codec"), noise.with_name("b.wav"), model=model, subtype="PCM_16")
    (note,) = report.notes
    assert "samples clipped at a peak of +0.34 dBFS (--subtype FLOAT keeps them)" in note
    assert soundfile.read(noise.with_name("b.wav"))[0].max() == 32767 / 32768
    out = noise.with_name("c.wav")
    report = codec.decode_file(noise.with_suffix(".codec"), out, model=model, subtype="FLOAT")
    assert report.notes == ()
    assert soundfile.info(out).subtype == "FLOAT"
    assert np.isclose(soundfile.read(out)[0].max(), 1.04)
    with pytest.raises(UsageError, match="WAV has no subtype LOUD: use one of"):
        codec.decode_file(noise.with_suffix(".codec"), noise.with_name("d.wav"), model=model, subtype="LOUD")
    assert not noise.with_name("d.wav").exists()


def test_a_codec_file_under_the_name_of_audio_is_refused(noise: Path) -> None:
    with pytest.raises(UsageError, match=r"out.mp3 would be a .codec file under the name of an audio file"):
        codec.encode_file(noise, noise.with_name("out.mp3"), model=tiny_model())
    assert not noise.with_name("out.mp3").exists()


def snr_db(reference: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(reference).mean() / np.square(other - reference).mean()))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("suffixes", "least_db"), [((".wav", ".flac", ".aiff", ".caf", ".w64", ".au"), 70), ((".ogg", ".mp3"), 6)]
)
def test_formats_hold_the_decoded_audio(
    tmp_path: Path, channels: int, suffixes: tuple[str, ...], least_db: float
) -> None:
    """The same samples in every format: no other delay, level or order of channels; lossy ones add noise alone."""
    net = tiny_model()
    time = np.arange(16_000) / 8000
    sweeps = [np.sin(2 * np.pi * (200 + 100 * channel) * time * (1 + time)) for channel in range(channels)]
    write_audio(tmp_path / "in.wav", (0.3 * np.array(sweeps)).astype(np.float32), 8000)
    codec.encode_file(tmp_path / "in.wav", tmp_path / "in.codec", model=net)
    codec.decode_file(tmp_path / "in.codec", tmp_path / "exact.wav", model=net, rate=24_000, subtype="FLOAT")
    exact, _ = soundfile.read(tmp_path / "exact.wav", always_2d=True)
    for suffix in suffixes:
        codec.decode_file(tmp_path / "in.codec", tmp_path / f"out{suffix}", model=net, rate=24_000)
        decoded, rate = soundfile.read(tmp_path / f"out{suffix}", always_2d=True)
        assert (rate, decoded.shape) == (24_000, (48_000, channels))
        found = snr_db(exact, decoded)
        assert found > least_db, suffix
        others = [np.roll(decoded, shift, axis=0) for shift in (-1, 1)] + ([decoded[:, ::-1]] if channels == 2 else [])
        assert found > max(snr_db(exact, other) for other in others) + 1, suffix
        assert np.std(decoded) == pytest.approx(np.std(exact), rel=0.1)


def test_live_pipes_load_their_model_before_the_first_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def opened(*_: Any, **__: Any) -> None:
        calls.append("open")
        raise InputNotFound("nothing")

    monkeypatch.setattr(compression, "_are_live", lambda *_: True)
    monkeypatch.setattr(live, "prepare", lambda _, job: calls.append(job))
    monkeypatch.setattr(compression, "open_live", opened)
    monkeypatch.setattr(bitstream, "open_reader", opened)
    for work in (compression.compress, compression.decompress):
        with pytest.raises(InputNotFound):
            work("-", "-", model=tiny_model())
    assert calls == ["encode", "open", "decode", "open"]
