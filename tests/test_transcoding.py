"""transcoding.py: on codes alone, against encoding and decoding."""

import math
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from codec.checkpoint import save_model
from codec.compression import compress, decompress
from codec.errors import ConfigError, DamagedFile, InputNotFound, StorageError, UsageError, WeightsMismatch
from codec.io import bitstream, entropy
from codec.io.audio import read_audio
from codec.io.bitstream import Header, Packet, Reader, Writer
from codec.io.entropy_model import EntropyModel
from codec.io.packets import CodesPacket
from codec.io.tags import NO_TAGS
from codec.transcoding import append, concat, transcode
from tests.cli.conftest import Cli, cli  # noqa: F401
from tests.helpers import processes
from tests.helpers.entropy import force_coder, random_tensors, thinned
from tests.tiny import tiny_model

MODEL = tiny_model()
RATE = 11_025


def recording(path: Path, *, time: int = 2 * RATE, seed: int = 0, rate: int = RATE, **options: Any) -> Path:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, time)
    soundfile.write(path.with_suffix(".wav"), noise, rate)
    compress(path.with_suffix(".wav"), path, model=MODEL, **options)
    return path


def decoded(path: Path) -> Any:
    decompress(path, path.with_suffix(".out.wav"), model=MODEL, subtype="FLOAT", force=True)
    return read_audio(path.with_suffix(".out.wav"))[0]


def codes(path: Path) -> Any:
    with bitstream.open_reader(path) as reader:
        return np.concatenate(list(reader.packets()), axis=2)


def test_fewer_codebooks_are_those_of_the_encoder(tmp_path: Path) -> None:
    source = recording(tmp_path / "all.codec", packet=1.0)
    direct = recording(tmp_path / "two.codec", num_codebooks=2, packet=1.0)
    header = transcode(source, tmp_path / "a.codec", num_codebooks=2)
    assert (header.num_codebooks, header.time) == (2, 2 * RATE)
    np.testing.assert_array_equal(codes(tmp_path / "a.codec"), codes(direct))
    assert (tmp_path / "a.codec").stat().st_size < 1.1 * direct.stat().st_size
    transcode(source, tmp_path / "b.codec", bitrate=1.2)
    assert (tmp_path / "b.codec").read_bytes() == (tmp_path / "a.codec").read_bytes()
    transcode(source, tmp_path / "c.codec")
    assert (tmp_path / "c.codec").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("rate", [8000, 11_025])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.2), (0.5, None), (0.503, 1.2), (1.0, 99.0)])
def test_a_part(tmp_path: Path, rate: int, start: float, end: float | None) -> None:
    source = recording(tmp_path / "a.codec", rate=rate, time=2 * rate, packet=0.3)
    header = transcode(source, tmp_path / "part.codec", start=start, end=end)
    first = int(start * 100)
    begin = -(-first * rate // 100)
    assert header.time == min(2 * rate, round((end or 99) * rate)) - begin
    part, whole = decoded(tmp_path / "part.codec"), decoded(source)
    assert part.shape == (1, header.time)
    kept = codes(tmp_path / "part.codec")
    np.testing.assert_array_equal(kept, codes(source)[:, :, first : first + kept.shape[2]])
    if rate == 8000:
        warm = (MODEL.receptive_field().decoder.past + 1) * 80
        np.testing.assert_allclose(part[:, warm:], whole[:, begin + warm : begin + header.time], atol=1e-2)


@pytest.mark.parametrize("damage", ["header", "footer", "end", "tail"])
def test_damage_without_lost_audio_is_mended(tmp_path: Path, damage: str) -> None:
    whole = recording(tmp_path / "whole.codec").read_bytes()
    altered = bytearray(whole)
    altered[9 if damage == "header" else -1] ^= 1
    damaged = {"end": whole[:-10], "tail": whole + b"more"}.get(damage, bytes(altered))
    (tmp_path / "a.codec").write_bytes(damaged)
    with pytest.raises(DamagedFile, match=r"all audio is intact and in .*mended\.codec$") as caught:
        transcode(tmp_path / "a.codec", tmp_path / "mended.codec")
    assert caught.value.lost == ()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert (tmp_path / "mended.codec").read_bytes() == whole


def test_lost_audio_is_not_left_out(tmp_path: Path) -> None:
    source = recording(tmp_path / "a.codec", packet=0.5)
    whole = source.read_bytes()
    altered = bytearray(whole)
    altered[len(altered) // 2] ^= 1
    for damaged in (altered, whole[:-60]):
        source.write_bytes(damaged)
        with pytest.raises(DamagedFile, match="fetch the file again"):
            transcode(source, tmp_path / "b.codec")
        assert not (tmp_path / "b.codec").exists()


@pytest.mark.parametrize("made_by", ["concat", "append", "part"])
def test_without_its_end_a_changed_file_is_known_to_be_whole(tmp_path: Path, made_by: str) -> None:
    source, target = recording(tmp_path / "a.codec"), tmp_path / "b.codec"
    match made_by:
        case "concat":
            time = concat([source, recording(tmp_path / "c.codec", seed=1)], target).time
        case "append":
            target = source
            time = append(tmp_path / "a.wav", source, model=MODEL).time
        case _:
            time = transcode(source, target, start=0.503, end=1.7).time
    data = target.read_bytes()
    target.write_bytes(data[:-10])
    with pytest.raises(DamagedFile, match="all audio is intact"):
        transcode(target, tmp_path / "mended.codec")
    assert (tmp_path / "mended.codec").read_bytes() == data
    with bitstream.open_reader(tmp_path / "mended.codec") as reader:
        assert reader.header.time == time


def test_joined_recordings_follow_one_another(tmp_path: Path) -> None:
    one, two = (
        recording(tmp_path / "one.codec", rate=8000, time=9001),
        recording(tmp_path / "two.codec", rate=8000, time=5003, seed=1, num_codebooks=2),
    )
    header = concat([one, two], tmp_path / "both.codec")
    with bitstream.open_reader(one) as reader:
        begin = reader.header.frames * 80
    assert 9001 <= begin <= 9001 + 160
    assert header.time == begin + 5003
    both = decoded(tmp_path / "both.codec")
    assert both.shape == (1, header.time)
    np.testing.assert_array_equal(both[:, :9000], decoded(one)[:, :9000])
    warm = (MODEL.receptive_field().decoder.past + 1) * 80
    np.testing.assert_allclose(both[:, begin + warm :], decoded(two)[:, warm:], atol=1e-2)
    concat([one], tmp_path / "same.codec")
    np.testing.assert_array_equal(codes(tmp_path / "same.codec"), codes(one))


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    one, two = recording(tmp_path / "one.codec"), recording(tmp_path / "two.codec", rate=8000)
    with pytest.raises(UsageError, match=r"two\.codec has source_rate 8000, .*one\.codec has 11025"):
        concat([one, two], tmp_path / "x.codec")
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"num_codebooks": 4}, UsageError),
        ({"num_codebooks": 1, "bitrate": 1.0}, UsageError),
        ({"bitrate": 0.1}, ConfigError),
        ({"start": 2.5}, UsageError),
        ({"start": -1.0}, UsageError),
        ({"start": 1.0, "end": 0.5}, UsageError),
        *(({key: value}, UsageError) for key in ("start", "end") for value in (math.nan, math.inf, 1e300)),
    ]
    for options, error in cases:
        with pytest.raises(error):
            transcode(one, tmp_path / "x.codec", **options)
    with pytest.raises(StorageError, match="--force"):
        transcode(one, two)
    before = one.read_bytes()
    for write in (partial(transcode, one, one, num_codebooks=1, force=True), partial(concat, [one, one], one)):
        with pytest.raises(UsageError, match="are the same file: name another output"):
            write()
    assert one.read_bytes() == before
    data = bytearray(one.read_bytes())
    data[len(data) // 2] ^= 1
    one.write_bytes(data)
    with pytest.raises(DamagedFile, match="packet"):
        transcode(one, tmp_path / "x.codec")
    with pytest.raises(DamagedFile, match="packet"):
        concat([one, one], tmp_path / "x.codec")
    assert not (tmp_path / "x.codec").exists()


def coded(path: Path, frames: int, *, segment: int = 0, channels: int = 1) -> tuple[Any, Any]:
    """Write random codes, and a scale if there are segments; return both."""
    random = np.random.default_rng(frames)
    header = Header(
        model="tiny", family="trial", weights_hash="ab" * 32, source_rate=8000, channels=channels, sample_rate=8000,
        hop=80, decoder_delay=0, codebook_sizes=(8, 8), frames_per_packet=20, segment_frames=segment,
        time=80 * frames,
    )  # fmt: skip
    codes = random.integers(0, 8, (channels, 2, frames))
    scale = random.uniform(0.5, 2, (channels, -(-frames // segment))).astype(np.float32) if segment else None
    scale = None if scale is None else scale.repeat(segment, axis=1)[:, :frames]
    with path.open("wb") as file:
        writer = Writer(file, header)
        writer.write(codes, scale)
        writer.close(time=frames * 80)
    return codes, scale


def test_segments_of_joined_recordings_keep_their_scale(tmp_path: Path) -> None:
    codes_a, scale_a = coded(tmp_path / "a.codec", 47, segment=5, channels=2)
    codes_b, scale_b = coded(tmp_path / "b.codec", 23, segment=5, channels=2)
    header = concat([tmp_path / "a.codec", tmp_path / "b.codec"], tmp_path / "c.codec")
    assert (header.frames, header.time) == (50 + 23, 80 * 73)
    with bitstream.open_reader(tmp_path / "c.codec") as reader:
        packets = list(reader.intact())
    codes = np.concatenate([packet.codes for packet in packets], axis=2)
    scale = np.concatenate([packet.scale for packet in packets if packet.scale is not None], axis=1)
    for whole, first, second in ((codes, codes_a, codes_b), (scale, scale_a, scale_b)):
        np.testing.assert_array_equal(whole[..., :47], first)
        np.testing.assert_array_equal(whole[..., 47:50], first[..., -1:].repeat(3, axis=-1))
        np.testing.assert_array_equal(whole[..., 50:], second)


def test_packets_that_stay_as_they_are_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coded(tmp_path / "a.codec", 70)
    unpacked: list[int] = []
    original = Reader.unpacked

    def noted(reader: Reader, packet: CodesPacket) -> Packet:
        unpacked.append(packet.first)
        return original(reader, packet)

    monkeypatch.setattr(Reader, "unpacked", noted)
    transcode(tmp_path / "a.codec", tmp_path / "b.codec")
    assert (tmp_path / "b.codec").read_bytes() == (tmp_path / "a.codec").read_bytes()
    concat([tmp_path / "a.codec"] * 2, tmp_path / "c.codec")
    assert unpacked == []
    transcode(tmp_path / "a.codec", tmp_path / "d.codec", start=0.25, end=0.65)
    assert unpacked == [20, 60]
    np.testing.assert_array_equal(codes(tmp_path / "d.codec"), codes(tmp_path / "a.codec")[:, :, 25:65])


@pytest.mark.parametrize("count", [12, 5, 2, 1])
@pytest.mark.parametrize("varying", [False, True])
def test_codebooks_are_left_out_without_being_unpacked(
    count: int, varying: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = Header(
        model="tiny", family="trial", weights_hash="ab" * 32, source_rate=8000, channels=2, sample_rate=8000,
        hop=800, decoder_delay=0, codebook_sizes=(8,) * 13, frames_per_packet=20, segment_frames=5,
    )  # fmt: skip
    codes = np.random.default_rng(0).integers(0, 8, (2, 13, 5)).repeat(10, axis=2)
    codes = thinned(codes, 0) if varying else codes
    scale = np.random.default_rng(1).uniform(0.5, 2, (2, 10)).astype(np.float32).repeat(5, axis=1)
    with (tmp_path / "a.codec").open("wb") as file:
        writer = Writer(file, header)
        writer.write(codes, scale)
        writer.close(time=800 * 50)
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "unpacked", None)
        transcode(tmp_path / "a.codec", tmp_path / "b.codec", num_codebooks=count)
        transcode(tmp_path / "b.codec", tmp_path / "c.codec", num_codebooks=1)
        transcode(tmp_path / "a.codec", tmp_path / "d.codec", num_codebooks=1)
    for name, kept in (("b", count), ("c", 1), ("d", 1)):
        with bitstream.open_reader(tmp_path / f"{name}.codec") as reader:
            assert reader.header.num_codebooks == kept
            packets = list(reader.intact())
            counts = np.concatenate([reader.codebook_counts(packet) for packet in reader.coded()])
        np.testing.assert_array_equal(counts, (codes[:, :kept] >= 0).sum(axis=1).T)
        filled = [
            np.pad(packet.codes, ((0, 0), (0, kept - packet.codes.shape[1]), (0, 0)), constant_values=-1)
            for packet in packets
        ]
        np.testing.assert_array_equal(np.concatenate(filled, axis=2), codes[:, :kept])
        np.testing.assert_array_equal(np.concatenate([packet.scale for packet in packets], axis=1), scale)


def test_codebooks_that_their_network_predicts_badly_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may take more bytes than a packet of these codebooks may have, while the whole packet does not."""
    sizes = (20, 20, 20)
    network = EntropyModel(random_tensors(sizes))
    header = Header(
        model="tiny", family="trial", weights_hash="ab" * 32, source_rate=8000, channels=1, sample_rate=8000, hop=80,
        decoder_delay=0, codebook_sizes=sizes, frames_per_packet=200,
    )  # fmt: skip
    codes = np.random.default_rng(0).integers(0, 20, (1, 3, 400))
    codes[:, 1:] = 7
    monkeypatch.setattr(bitstream, "find_network", lambda weights_hash, sizes: network)
    with monkeypatch.context() as patch, (tmp_path / "a.codec").open("wb") as file:
        force_coder(patch, entropy.MODEL)
        writer = Writer(file, header)
        writer.write(codes)
        writer.close(time=80 * 400)
    with bitstream.open_reader(tmp_path / "a.codec") as reader:
        for packet in reader.coded():
            assert (packet.coder, packet.has_ends) == (entropy.MODEL, True)
            assert reader.thinned(packet, 1) is packet
    transcode(tmp_path / "a.codec", tmp_path / "b.codec", num_codebooks=1)
    with bitstream.open_reader(tmp_path / "b.codec") as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.packets()), axis=2), codes[:, :1])


def test_append_is_the_join_of_both(tmp_path: Path) -> None:
    first = recording(tmp_path / "a.codec", rate=8000, time=9001, num_codebooks=2)
    second = recording(tmp_path / "b.codec", rate=8000, time=5003, seed=1, num_codebooks=2)
    concat([first, second], tmp_path / "both.codec")
    append(tmp_path / "b.wav", first, model=MODEL)
    assert first.read_bytes() == (tmp_path / "both.codec").read_bytes()
    again = append(tmp_path / "b.wav", first, model=MODEL, num_codebooks=3)
    assert (again.num_codebooks, again.tags) == (3, NO_TAGS)
    with bitstream.open_reader(first) as reader:
        counts = [packet.num_codebooks for packet in reader.coded()]
        assert reader.check() == []
    assert counts == [2, 2, 3]
    concat([first, second], first, force=True)
    assert codes_of(first) == sum(map(codes_of, (tmp_path / "both.codec", second, second)))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def codes_of(path: Path) -> int:
    """The number of frames."""
    with bitstream.open_reader(path) as reader:
        return sum(packet.frames for packet in reader.coded())


def test_append_of_another_rate_and_other_channels(tmp_path: Path) -> None:
    whole = recording(tmp_path / "a.codec", rate=8000, time=8000)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (22_050, 2))
    soundfile.write(tmp_path / "b.wav", noise, 22_050)
    with pytest.raises(UsageError, match=r"b\.wav has 2 channels, the file has 1: --channels 1 mixes it down"):
        append(tmp_path / "b.wav", whole, model=MODEL)
    header = append(tmp_path / "b.wav", whole, model=MODEL, channels=1)
    assert (header.source_rate, header.time) == (8000, 8080 + 8000)
    soundfile.write(tmp_path / "c.wav", noise[:8000, :1] * [1, 0.5], 8000)
    compress(tmp_path / "c.wav", tmp_path / "c.codec", model=MODEL)
    soundfile.write(tmp_path / "d.wav", noise[8000:16_000, :1] * [1, 0.5], 8000)
    header = append(tmp_path / "d.wav", tmp_path / "c.codec", model=MODEL)
    assert header.coded_channels == 1
    with pytest.raises(UsageError, match="not mixed as those of the file"):
        append(tmp_path / "b.wav", tmp_path / "c.codec", model=MODEL)
    compress(tmp_path / "b.wav", tmp_path / "b.codec", model=MODEL)
    assert append(tmp_path / "d.wav", tmp_path / "b.codec", model=MODEL).coded_channels == 2
    image = decoded(tmp_path / "b.codec")
    assert image.shape[0] == 2


@pytest.mark.parametrize("gain", [1, 4])
def test_append_to_mid_and_side(tmp_path: Path, gain: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (8000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", gain * noise, 8000, subtype="FLOAT")
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL, stereo="mid-side")
    with bitstream.open_reader(tmp_path / "a.codec") as reader:
        mix = reader.header.mix
    for block in (noise[::-1], noise[:, :1].repeat(2, axis=1)):  # equal channels alone would be coded once
        soundfile.write(tmp_path / "b.wav", block, 8000, subtype="FLOAT")
        header = append(tmp_path / "b.wav", tmp_path / "a.codec", model=MODEL)
        assert (header.mix, header.settings) == (mix, "stereo mid-side")
        mid_side = np.float32(block @ [[0.5, 0.5], [0.5, -0.5]] / mix[0][0])
        expected = MODEL.encode(torch.from_numpy(mid_side.T.copy())[:, None])
        np.testing.assert_array_equal(codes(tmp_path / "a.codec")[..., -expected.shape[2] :], expected)


def test_a_failed_append_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    whole = recording(tmp_path / "a.codec", rate=8000, time=8000)
    soundfile.write(tmp_path / "b.wav", np.zeros(40_000), 8000)
    before, names = whole.read_bytes(), sorted(tmp_path.iterdir())

    def stop(done: float, total: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append(tmp_path / "b.wav", whole, model=MODEL, progress=stop)
    with pytest.raises(InputNotFound):
        append(tmp_path / "none.wav", whole, model=MODEL)
    with pytest.raises(InputNotFound):
        append(tmp_path / "b.wav", tmp_path / "none.codec", model=MODEL)
    with pytest.raises(WeightsMismatch):
        append(tmp_path / "b.wav", whole, model=tiny_model(seed=1))
    assert whole.read_bytes() == before
    data = bytearray(before)
    data[len(data) // 2] ^= 1
    whole.write_bytes(data)
    with pytest.raises(DamagedFile):
        append(tmp_path / "b.wav", whole, model=MODEL)
    assert whole.read_bytes() == data
    assert sorted(tmp_path.iterdir()) == names


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.01, 0.05, 0.2])
def test_a_killed_append_leaves_a_whole_file(seconds: float, tmp_path: Path) -> None:
    """The process is killed at a time after its first block, some of them while the new file is written."""
    whole = recording(tmp_path / "a.codec", rate=8000, time=8000)
    soundfile.write(tmp_path / "b.wav", np.zeros(80_000), 8000)
    before = codes(whole)
    program = (
        "import os, signal, sys, threading\n"
        "from codec.transcoding import append\n"
        "from tests.tiny import tiny_model\n"
        f"kill = threading.Timer({seconds}, lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        "started = lambda *_: kill.is_alive() or kill.start()\n"
        "append(sys.argv[1], sys.argv[2], model=tiny_model(), progress=started)\n"
        "kill.join()\n"
    )
    assert processes.run(program, tmp_path / "b.wav", whole).returncode == -signal.SIGKILL
    with bitstream.open_reader(whole) as reader:
        assert reader.check() == []
    np.testing.assert_array_equal(codes(whole)[:, :, : before.shape[2]], before)
    append(tmp_path / "b.wav", whole, model=MODEL)


def test_of_two_appends_at_once_neither_is_lost(tmp_path: Path) -> None:
    whole = recording(tmp_path / "a.codec", rate=8000, time=4000)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: append(tmp_path / "a.wav", whole, model=MODEL), range(3)))
    assert codes_of(whole) == 4 * MODEL.frame_spec.frames(4000)


@pytest.mark.slow
def test_append_command(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    recording(tmp_path / "here/a.codec", rate=8000, time=8000)
    save_model(tmp_path / "here/tiny.safetensors", tiny_model(), training={})
    for options in (["a.wav"], ["a.wav", "a.wav", "a.codec"], ["a.wav", "a.codec", "--verify"]):
        assert cli("encode", *options, "--append").code == 2
    assert cli("encode", "a.wav", "new.codec", "--model", "tiny.safetensors").code == 0
    done = cli("encode", "a.wav", "new.codec", "--append", "--model", "tiny.safetensors", "--device", "cpu")
    assert (done.code, done.err) == (0, "a.wav -> the end of new.codec: 2.01 s in all\n")


def test_commands(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    recording(tmp_path / "here/a.codec")
    done = cli("transcode", "a.codec", "b.codec", "--codebooks", 1, "--end", 1)
    assert (done.code, done.out) == (0, b"")
    assert done.err == "a.codec -> b.codec: 1.00 s, 1 codebooks\n"
    joined = cli("concat", "a.codec", "b.codec", "-o", "c.codec")
    assert joined.code == 0
    assert joined.err.startswith("2 files -> c.codec: 3.0")
    assert cli("concat", "a.codec").code == 2


@pytest.mark.slow
def test_changes_on_codes_alone_do_not_load_torch() -> None:
    script = "import sys, codec.cli.main, codec.transcoding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
