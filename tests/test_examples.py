"""The programs in docs/examples run, with a tiny model and tiny sizes."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from codec import pretrained
from codec.checkpoint import load_model, save_model
from codec.compression import compress
from codec.data.tokenize import tokenize
from codec.io import bitstream, entropy, entropy_model
from codec.io.audio import read_audio
from codec.io.bitstream import Header, SourceId, Writer
from codec.io.entropy_files import SUFFIX
from codec.io.packets import CodesPacket
from tests.helpers.entropy import codes_of, force_coder, random_tensors, thinned
from tests.helpers.tokens import noise
from tests.tiny import tiny_model

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SIZES = [
    *("--codebooks=2", "--context=33", "--width=16", "--layers=1", "--heads=2"),
    *("--steps=3", "--batch-size=2", "--seconds=0.3"),
]


def test_every_example_has_a_test() -> None:
    names = sorted(path.name for path in EXAMPLES.iterdir() if path.is_file())
    assert names == [
        "batch_ray.py", "gpt.py", "microphone.py", "onnx_decode.mjs", "onnx_decode.py", "onnx_generate.py",
        "read_codec.mjs", "read_codec.py",
    ]  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "store"])
def test_gpt(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "tiny.safetensors", tiny_model(), training={})
    for number in range(3):
        noise(tmp_path / f"folder/{number}.wav", time=3000 + number)
    if source == "store":
        tokenize(tmp_path / "folder", tmp_path / "store", model=tmp_path / "tiny.safetensors")
    output = tmp_path / "sample.wav"
    arguments = [tmp_path / source, "--model", tmp_path / "tiny.safetensors", *SIZES, "--output", output]
    monkeypatch.setattr(sys, "argv", ["gpt.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / "gpt.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[0] == "3 clips, 234 tokens"
    assert soundfile.info(output).frames == 2400


def test_gpt_has_60_lines() -> None:
    """As its first line says; imports, options and empty lines do not count."""
    text = (EXAMPLES / "gpt.py").read_text("utf-8")
    lines = [line for line in text[text.index("\nclass Block") :].splitlines() if line.strip()]
    assert len(lines) <= 60


def example(name: str) -> dict[str, Any]:
    """The names that a script defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_model(path, tiny_model(), training={})
    return path


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    (folder / "deep").mkdir(parents=True)
    samples = np.random.default_rng(0).normal(0, 0.1, (4001, 2))
    soundfile.write(folder / "a.wav", samples[:, 0], 8000)
    soundfile.write(folder / "deep" / "b.flac", samples, 16_000)
    (folder / "bad.wav").write_text("not audio")
    return folder


def check_token_files(recordings: Path, tokens: Path, model_file: Path) -> None:
    model = load_model(model_file)
    for name in ("a.wav", "deep/b.flac"):
        audio, _ = read_audio(recordings / name, rate=model.sample_rate)
        codes = np.load(tokens / f"{name}.npy")
        assert torch.equal(torch.from_numpy(codes.astype(np.int64)), model.encode(torch.from_numpy(audio)[:, None]))
    assert sorted(path.name for path in tokens.rglob("*.npy")) == ["a.wav.npy", "b.flac.npy"]


def test_batch_ray_worker(tmp_path: Path, recordings: Path, model_file: Path) -> None:
    """The work of one process, without Ray."""
    encoder = example("batch_ray")["Encoder"](str(model_file), recordings, tmp_path / "tokens")
    results = [encoder({"name": name})["result"] for name in ("a.wav", "deep/b.flac", "bad.wav")]
    assert results[0].endswith(" frames")
    assert results[2].startswith("failed: ")
    check_token_files(recordings, tmp_path / "tokens", model_file)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_batch_ray(
    tmp_path: Path, recordings: Path, model_file: Path, ray_cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = example("batch_ray")["main"]
    main([str(recordings), str(tmp_path / "tokens"), "--model", str(model_file), "--jobs", "2"])
    assert "bad.wav failed: " in capsys.readouterr().out
    check_token_files(recordings, tmp_path / "tokens", model_file)


@pytest.mark.parametrize("block", [[], ["--block", "100"]])
def test_microphone_with_a_recording(
    tmp_path: Path, recordings: Path, model_file: Path, capsys: pytest.CaptureFixture[str], block: list[str]
) -> None:
    main = example("microphone")["main"]
    target = tmp_path / "out.wav"
    main(["--input", str(recordings / "a.wav"), "--output", str(target), "--model", str(model_file), *block])
    model = load_model(model_file)
    audio, _ = read_audio(recordings / "a.wav")
    expected = model.decode(model.encode(torch.from_numpy(audio)[None]))[0].numpy()
    decoded, rate = read_audio(target)
    assert rate == model.sample_rate
    np.testing.assert_allclose(decoded[:, : expected.shape[1]], expected.clip(-1, 1), atol=1e-4)
    printed = capsys.readouterr().out
    assert printed.startswith("latency ")
    if not block:
        assert f"{1000 * model.delay / model.sample_rate:.1f} ms of audio in the codec" in printed


def test_microphone_at_48_khz(
    tmp_path: Path, recordings: Path, model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.wav"
    source = recordings / "a.wav"
    example("microphone")["main"](
        ["--input", str(source), "--output", str(target), "--model", str(model_file), "--rate", "48000"]
    )
    assert soundfile.info(target).samplerate == 48000
    assert soundfile.info(target).duration >= soundfile.info(source).duration
    assert capsys.readouterr().out.startswith("latency ")


@pytest.mark.parametrize("script", ["read_codec.py", "read_codec.mjs"])
@pytest.mark.parametrize("sizes", [(1024,) * 4, (2, 3, 65536, 1 << 24), (1 << 24,)])
@pytest.mark.parametrize("segment", [0, 5])
def test_plain_readers(
    script: str, sizes: tuple[int, ...], segment: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = Header(
        model="größe", family="trial", weights_hash="0123456789abcdef" * 4, source_rate=44_100, channels=3,
        sample_rate=24_000, hop=480, decoder_delay=480, codebook_sizes=sizes, frames_per_packet=20, model_channels=2,
        segment_frames=segment, sample_format="FLOAT", source=SourceId(1 << 40, "fedcba9876543210"),
        mix=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, -2.5)) if segment else (),
    )  # fmt: skip
    random = np.random.default_rng(0)
    codes = random.integers(0, np.array(sizes)[:, None], (2, len(sizes), 47))
    scale = random.uniform(0.5, 2, (2, 10)).astype(np.float32)
    path = tmp_path / "a.codec"
    with path.open("wb") as file:
        writer = Writer(file, header)
        writer.write(codes, scale.repeat(5, axis=1)[:, :47] if segment else None)
        writer.close(time=40_000)
    runner = sys.executable if script.endswith(".py") else shutil.which("node")
    if runner is None:
        pytest.skip("node is not installed")
    result = subprocess.run([runner, EXAMPLES / script, path], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert found["header"].pop("rows") == header.rows
    assert Header(
        **found["header"]
        | {"mix": tuple(map(tuple, found["header"].get("mix", [])))}
        | {"codebook_sizes": tuple(found["header"]["codebook_sizes"]), "source": SourceId(**found["header"]["source"])}
    ) == replace(header, time=40_000, frames=47)
    assert [packet["first"] for packet in found["packets"]] == [0, 20, 40]
    read = np.concatenate([packet["codes"] for packet in found["packets"]], axis=2)
    np.testing.assert_array_equal(read, codes)
    if segment:
        np.testing.assert_array_equal(np.concatenate([packet["scale"] for packet in found["packets"]]), scale.T)
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"oops")
    result = subprocess.run([runner, EXAMPLES / script, path], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "damaged at byte" in result.stderr


NETWORK_SIZES = (20, 30, 2, *[7] * 10)
NETWORK = entropy_model.EntropyModel(random_tensors(NETWORK_SIZES))


def trial_header(rows: int, codebooks: int, hop: int, packet: int = 20) -> Header:
    return Header(
        model="tiny", family="trial", weights_hash="ab" * 32, source_rate=8000, channels=rows, sample_rate=8000,
        hop=hop, decoder_delay=hop, codebook_sizes=NETWORK.sizes[:codebooks], frames_per_packet=packet,
    )  # fmt: skip


def entropy_coded(
    path: Path,
    coder: int,
    *,
    kind: str,
    rows: int,
    codebooks: int,
    frames: int,
    varying: bool = False,
    hop: int = 80,
    packet: int = 20,
) -> entropy.Codes:
    """Write a file whose packets all take one coder, with ends if they have half a second; return its codes."""
    header = trial_header(rows, codebooks, hop, packet)
    codes = codes_of(kind, list(header.codebook_sizes), rows=rows, frames=frames, seed=frames)
    codes = thinned(codes, frames) if varying else codes

    with path.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitstream, "find_network", lambda weights_hash, sizes: NETWORK)
        force_coder(patch, coder)
        writer = Writer(file, header)
        writer.write(codes)
        writer.close(time=hop * (frames - 1))
    return codes


def read_by(script: str, recording: Path, network: Path) -> dict[str, Any]:
    """What a plain reader prints; the one in Python runs in this process."""
    if script == "read_codec":
        found: dict[str, Any] = example(script)["read"](recording.read_bytes(), network.read_bytes())
        return found
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    result = subprocess.run([node, EXAMPLES / script, recording, network], capture_output=True, text=True, check=True)
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def codes_by(script: str, recording: Path, network: Path) -> Any:
    packets = read_by(script, recording, network)["packets"]
    return np.concatenate([packet["codes"] for packet in packets], axis=2)


CASES = [("rows", 3, 3, 21), ("runs", 1, 2, 47), ("constant", 2, 1, 40), ("few", 2, 3, 90), ("random", 2, 3, 150)]


@pytest.mark.parametrize("script", ["read_codec", "read_codec.mjs"])
@pytest.mark.parametrize("coder", [entropy.ADAPTIVE, entropy.MODEL])
def test_plain_readers_of_entropy_coded_files(script: str, coder: int, tmp_path: Path) -> None:
    network, path = tmp_path / f"tiny{SUFFIX}", tmp_path / "a.codec"
    entropy_model.save(network, random_tensors(NETWORK_SIZES), weights_hash="ab" * 32)
    for kind, rows, codebooks, frames in CASES[:: 1 if script == "read_codec" else 2]:
        codes = entropy_coded(path, coder, kind=kind, rows=rows, codebooks=codebooks, frames=frames, hop=40, packet=100)
        np.testing.assert_array_equal(codes_by(script, path, network), codes)


@pytest.mark.parametrize("script", ["read_codec.py", "read_codec.mjs"])
def test_plain_readers_without_the_network(script: str, tmp_path: Path) -> None:
    """One line, from node too."""
    entropy_coded(tmp_path / "a.codec", entropy.MODEL, kind="few", rows=1, codebooks=2, frames=30)
    runner = sys.executable if script.endswith(".py") else shutil.which("node")
    if runner is None:
        pytest.skip("node is not installed")
    command = [runner, str(EXAMPLES / script), str(tmp_path / "a.codec")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"codes by coder 2, network [0-9a-f]{8}\b.*\n", result.stderr)


def packets_with_ends(path: Path, coder: int, keep: tuple[int, ...], *, varying: bool) -> entropy.Codes:
    """Write one packet with ends several times, cut to each number of codebooks; return its codes."""
    header = replace(trial_header(2, 13, 800), network=NETWORK.digest)
    codes = codes_of("runs", list(NETWORK_SIZES), rows=2, frames=20, seed=0)
    codes = thinned(codes, 0) if varying else codes
    network = NETWORK if coder == entropy.MODEL else None
    payload = entropy.encode_adaptive(codes, NETWORK_SIZES, network, with_ends=True)
    with path.open("wb") as file:
        writer = Writer(file, header)
        for count in keep:
            cut = entropy.thinned(coder, payload, len(NETWORK_SIZES), count, rows=2, frames=20, varying=varying)
            writer.copy(CodesPacket(0, codes.shape[2], count, coder, cut, 0, varying=varying, has_ends=True))
        writer.close(time=0)
    return codes


@pytest.mark.parametrize("script", ["read_codec", "read_codec.mjs"])
@pytest.mark.parametrize(
    ("coder", "varying"), [(entropy.ADAPTIVE, True), (entropy.MODEL, False), (entropy.MODEL, True)]
)
def test_plain_readers_of_packets_cut_at_the_ends_of_their_codebooks(
    script: str, coder: int, varying: bool, tmp_path: Path
) -> None:
    network, path, keep = tmp_path / f"tiny{SUFFIX}", tmp_path / "a.codec", (1, 2, 7, 12, 13)
    entropy_model.save(network, random_tensors(NETWORK_SIZES), weights_hash="ab" * 32)
    codes = packets_with_ends(path, coder, keep, varying=varying)
    read = [packet["codes"] for packet in read_by(script, path, network)["packets"]]
    assert read == [codes[:, :count].tolist() for count in keep]


@pytest.mark.parametrize("script", ["read_codec", "read_codec.mjs"])
def test_plain_readers_of_files_with_ends(script: str, tmp_path: Path) -> None:
    network, path = tmp_path / f"tiny{SUFFIX}", tmp_path / "a.codec"
    entropy_model.save(network, random_tensors(NETWORK_SIZES), weights_hash="ab" * 32)
    codes = entropy_coded(path, entropy.MODEL, kind="few", rows=1, codebooks=7, frames=23, hop=800)
    assert path.read_bytes().count(bytes([0xF5, 0xC3, 32 + entropy.MODEL])) == 2
    np.testing.assert_array_equal(codes_by(script, path, network), codes)


@pytest.mark.parametrize("script", ["read_codec.py", "read_codec.mjs"])
@pytest.mark.parametrize("has_ends", [False, True])
def test_plain_readers_of_payloads_of_another_length(script: str, has_ends: bool, tmp_path: Path) -> None:
    """The packet's checksum is right, but no encoder writes as many bytes; with ends, it may write more, not less."""
    codes, path = codes_of("random", list(NETWORK_SIZES[:3]), rows=1, frames=60, seed=0), tmp_path / "a.codec"
    payload = entropy.encode_adaptive(codes, NETWORK_SIZES[:3], with_ends=has_ends)
    payload = payload[:-3] if has_ends else payload + bytes(2)
    with path.open("wb") as file:
        writer = Writer(file, trial_header(1, 13, 800))
        writer.copy(CodesPacket(0, 60, 3, entropy.ADAPTIVE, payload, 0, has_ends=has_ends))
        writer.close(time=0)
    runner = sys.executable if script.endswith(".py") else shutil.which("node")
    if runner is None:
        pytest.skip("node is not installed")
    command = [runner, str(EXAMPLES / script), str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr in ("codes that no encoder writes\n", "truncated\n")


@pytest.mark.parametrize("script", ["read_codec", "read_codec.mjs"])
@pytest.mark.parametrize("coder", [entropy.NONE, entropy.ADAPTIVE, entropy.MODEL])
def test_plain_readers_of_frames_with_different_numbers_of_codebooks(script: str, coder: int, tmp_path: Path) -> None:
    network, path = tmp_path / f"tiny{SUFFIX}", tmp_path / "a.codec"
    entropy_model.save(network, random_tensors(NETWORK_SIZES), weights_hash="ab" * 32)
    for kind, rows, frames in (("runs", 1, 47), ("rows", 3, 21)):
        codes = entropy_coded(path, coder, kind=kind, rows=rows, codebooks=3, frames=frames, varying=True)
        read = [np.array(packet["codes"]) for packet in read_by(script, path, network)["packets"]]
        filled = [np.pad(one, ((0, 0), (0, 3 - one.shape[1]), (0, 0)), constant_values=-1) for one in read]
        np.testing.assert_array_equal(np.concatenate(filled, axis=2), codes)


def test_plain_readers_forget_the_oldest_of_65_recent_codes(tmp_path: Path) -> None:
    """The codebooks of the network above have fewer codes."""
    codes = np.concatenate([np.arange(100), np.arange(30, 60), np.arange(0, 200, 3)])[None, None]
    reader = example("read_codec")
    body = reader["Bytes"](entropy.encode_adaptive(codes, [1000]))
    assert reader["Adaptive"](body, [1000], 1, False, False).read(codes.size) == codes.tolist()


@pytest.mark.parametrize("script", ["read_codec", "read_codec.mjs"])
def test_plain_readers_without_the_network_say_so(script: str, tmp_path: Path) -> None:
    path, other = tmp_path / "a.codec", tmp_path / f"other{SUFFIX}"
    entropy_coded(path, entropy.MODEL, kind="few", rows=1, codebooks=1, frames=3)
    entropy_model.save(other, random_tensors(seed=1), weights_hash="ab" * 32)
    failure = SystemExit if script == "read_codec" else subprocess.CalledProcessError
    with pytest.raises(failure):
        read_by(script, path, other)


@pytest.mark.slow
@pytest.mark.parametrize(("codebooks", "channels", "longest"), [(1, 2, 9000), (3, 1, 5000), (12, 2, 2500)])
def test_plain_readers_of_recordings(codebooks: int, channels: int, longest: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(codebooks)
    swept = 0.3 * np.sin(generator.uniform(0.02, 0.2, (16, 1)).repeat(1000, axis=0).cumsum(axis=0))
    audio = swept * np.array([1.0, 0.4])[:channels] + generator.normal(0, 0.01, (16_000, channels))
    network = pretrained.WEIGHTS / f"{pretrained.DEFAULT}{SUFFIX}"
    for time in (700, longest):
        soundfile.write(tmp_path / "a.wav", audio[:time], 24_000)
        compress(tmp_path / "a.wav", tmp_path / "a.codec", num_codebooks=codebooks, force=True)
        with bitstream.open_reader(tmp_path / "a.codec") as reader:
            codes = np.concatenate(list(reader.packets()), axis=2)
        for script in ("read_codec", "read_codec.mjs"):
            np.testing.assert_array_equal(codes_by(script, tmp_path / "a.codec", network), codes)
