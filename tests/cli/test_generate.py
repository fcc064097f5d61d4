"""codec generate, with small models in place of the shipped ones."""

import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from codec import pretrained
from codec.generation import generate, infill
from codec.io.audio import read_audio, write_audio
from codec.lm import CodecLM
from codec.lm.filters import Sampling
from codec.lm.sampling import max_prompt_frames
from codec.models.base import Codec
from tests.cli.conftest import Cli
from tests.helpers import processes
from tests.test_generation import lm_of
from tests.tiny import tiny_model

MODEL = tiny_model()


@pytest.fixture
def lm(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> CodecLM:
    """The model and codec that the names stand for; another name is a KeyError."""
    lm = lm_of(MODEL)
    found: dict[str, CodecLM] = {pretrained.DEFAULT_LM: lm}
    codecs: dict[str | None, Codec] = {None: MODEL, "mine": MODEL}
    monkeypatch.setattr(pretrained, "load_lm", lambda name, device: found[name], raising=False)
    monkeypatch.setattr(pretrained, "codec_of", lambda lm, name, device: codecs[name], raising=False)
    return lm


def quantized(audio: torch.Tensor) -> np.ndarray[Any, Any]:
    """[1, 1, time] as 16-bit samples [time, 1], which WAV files have."""
    samples: np.ndarray[Any, Any] = np.rint(audio[0].numpy().T * 32768).clip(-32768, 32767).astype(np.int16)
    return samples


def expected(lm: CodecLM, **options: Any) -> np.ndarray[Any, Any]:
    return quantized(torch.cat(list(generate(lm, MODEL, **options)), dim=2))


def test_output_equals_the_library(cli: Cli, lm: CodecLM) -> None:
    result = cli("generate", "--label", "yes", "--seed", 4, "--device", "cpu")
    assert (result.code, result.out) == (0, b"")
    samples, rate = soundfile.read("generated.wav", dtype="int16", always_2d=True)
    assert rate == 8000
    assert np.array_equal(samples, expected(lm, label="yes", seed=4))
    assert len(samples) > 80
    words = result.err.split()
    assert words[:2] == ["generated.wav:", f"{len(samples) / 8000:.2f}"]
    assert re.fullmatch(r".* × real time, (\d+ samples clipped .*, )?seed 4\n", result.err)


@pytest.mark.slow
def test_every_option_has_an_effect(cli: Cli, lm: CodecLM) -> None:
    arguments = ["--speaker", "cleo", "--seconds", "0.2", "--guidance", "2", "--temperature", "0.9,1,1.1"]
    arguments += ["--top-k", "9", "--top-p", "0.9,0.8,0.7", "--min-p", "0.01", "--seed", "3", "--codec", "mine"]
    assert cli("generate", pretrained.DEFAULT_LM, *arguments, "-o", "a.flac").code == 0
    sampling = Sampling(temperature=(0.9, 1.0, 1.1), top_k=9, top_p=(0.9, 0.8, 0.7), min_p=0.01)
    samples, _ = soundfile.read("a.flac", dtype="int16", always_2d=True)
    assert samples.shape == (1600, 1)
    wanted = expected(lm, speaker="cleo", seconds=0.2, guidance=2.0, sampling=sampling, seed=3)
    assert np.array_equal(samples, wanted)


@pytest.mark.slow
def test_language_conditions_generation(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = lm_of(MODEL, source={"classes": {"language": ["de", "en"]}})
    monkeypatch.setattr("codec.pretrained.load_lm", lambda *_: lm)
    monkeypatch.setattr("codec.pretrained.codec_of", lambda *_: MODEL)
    audio = {}
    for language in ("de", "en"):
        assert (
            cli("generate", "--language", language, "--seconds", "0.2", "--seed", 1, "-o", f"{language}.wav").code == 0
        )
        audio[language] = Path(f"{language}.wav").read_bytes()
    assert audio["de"] != audio["en"]
    result = cli("generate", "--language", "dee")
    assert (result.code, "knows no language dee: did you mean de" in result.err) == (2, True)


@pytest.mark.slow
def test_count_writes_several_files(cli: Cli, lm: CodecLM) -> None:
    result = cli("generate", "-o", "a.wav", "--seconds", "0.1", "--count", "3", "--seed", "8")
    assert (result.code, len(result.err.splitlines())) == (0, 3)
    for seed in (8, 9, 10):
        samples, _ = soundfile.read(f"a-{seed}.wav", dtype="int16", always_2d=True)
        assert np.array_equal(samples, expected(lm, seconds=0.1, seed=seed))
    again = cli("generate", "-o", "a.wav", "--count", "2", "--seed", "10")
    assert (again.code, again.err) == (8, "codec: a-10.wav exists: pass --force to replace it\n")
    assert not Path("a-11.wav").exists()
    assert cli("generate", "-o", "a.wav", "--count", "2", "--seed", "10", "--seconds", "0.1", "--force").code == 0


@pytest.mark.parametrize("target", ["loud.wav", "-"])
def test_clipping_is_counted_and_floats_keep_the_peaks(
    cli: Cli, lm: CodecLM, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """In files and on standard output alike."""
    loud = torch.tensor([[[0.5, 1.04, -1.5, -1.0]]])
    monkeypatch.setattr("codec.generation.generate", lambda *_, **__: iter([loud, loud[..., :2]]))

    def written(*options: str) -> tuple[np.ndarray[Any, Any], str, str]:
        result = cli("generate", "-o", target, "--seed", "1", "--force", *options)
        assert result.code == 0, result.err
        data = result.out if target == "-" else Path(target).read_bytes()
        return soundfile.read(io.BytesIO(data))[0], soundfile.info(io.BytesIO(data)).subtype, result.err

    samples, subtype, said = written()
    assert (subtype, samples.max(), samples.min()) == ("PCM_16", 32767 / 32768, -1)
    assert "3 samples clipped at a peak of +3.52 dBFS (--subtype FLOAT keeps them)" in said
    samples, subtype, said = written("--subtype", "FLOAT")
    np.testing.assert_allclose(samples, [0.5, 1.04, -1.5, -1.0, 0.5, 1.04], rtol=1e-6)
    assert (subtype, "clipped" in said) == ("FLOAT", False)
    assert written("--subtype", "PCM_24")[1] == "PCM_24"


@pytest.mark.slow
def test_random_seeds_are_reported(cli: Cli, lm: CodecLM) -> None:
    seeds = []
    for name in ("a.wav", "b.wav"):
        result = cli("generate", "-o", name, "--seconds", "0.1")
        seeds.append(int(result.err.split()[-1]))
        samples, _ = soundfile.read(name, dtype="int16", always_2d=True)
        assert np.array_equal(samples, expected(lm, seconds=0.1, seed=seeds[-1]))
    assert seeds[0] != seeds[1]


def test_standard_output(cli: Cli, lm: CodecLM) -> None:
    wanted = expected(lm, seconds=0.2, seed=1)
    wav = cli("generate", "-o", "-", "--seconds", "0.2", "--seed", "1")
    assert wav.code == 0
    samples, rate = soundfile.read(io.BytesIO(wav.out), dtype="int16", always_2d=True)
    assert rate == 8000
    assert np.array_equal(samples, wanted)
    assert wav.err.startswith("standard output: 0.20 s, ")
    bare = cli("generate", "-o", "-", "--seconds", "0.2", "--seed", "1", "--raw")
    assert np.array_equal(np.frombuffer(bare.out, "<i2")[:, None], wanted)
    Path("piped.wav").write_bytes(wav.out)  # our own reader accepts a WAV header without a length
    assert read_audio("piped.wav")[0].shape == (1, 1600)


@pytest.mark.slow
def test_infinite_stream_stops_on_closed_pipe(tmp_path: Path) -> None:
    """Samples are written while the stream has no end; closing the pipe ends it without a message."""
    code = """
from codec import pretrained
from codec.cli.main import run
from tests.test_generation import lm_of
from tests.tiny import tiny_model
pretrained.load_lm = lambda name, device: lm_of(tiny_model())
pretrained.codec_of = lambda lm, name, device: tiny_model()
run(["generate", "-o", "-", "--seconds", "inf", "--seed", "0"])
"""
    (output, stdout), (errors, stderr) = os.pipe(), os.pipe()
    process = processes.start(code, stdout=stdout, stderr=stderr, cwd=tmp_path)
    os.close(stdout)
    os.close(stderr)
    with os.fdopen(errors, "rb") as said:
        with os.fdopen(output, "rb") as samples:
            assert samples.read(4) == b"RIFF"
            assert len(samples.read(4000)) == 4000
        assert said.read() == b""
    process.join()
    assert process.exitcode == 8


@pytest.fixture
def recording(cli: Cli) -> Path:
    """Stereo of 0.3 s at 16 kHz."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 4800)).astype(np.float32)
    write_audio("in.wav", noise, 16_000)
    return Path("in.wav")


@pytest.mark.slow
def test_a_long_prompt_is_cut_and_said(cli: Cli, lm: CodecLM) -> None:
    write_audio("long.wav", np.full((1, 12_000), 0.1, np.float32), 8000)
    dropped = (150 - (max_prompt_frames(lm) or 150)) / 100
    assert dropped > 0
    result = cli("generate", "--prompt", "long.wav", "--seconds", "0.7", "--seed", "2")
    assert result.code == 0
    assert f"note: long.wav is longer than the model's context: its first {dropped:.2f} s are left out\n" in result.err


def test_prompt(cli: Cli, lm: CodecLM, recording: Path) -> None:
    assert cli("generate", "--prompt", recording, "--seconds", "0.5", "--seed", "2").code == 0
    prompt = torch.from_numpy(read_audio(recording, rate=8000, mono=True)[0])[None]
    samples, _ = soundfile.read("generated.wav", dtype="int16", always_2d=True)
    assert np.array_equal(samples, expected(lm, prompt=prompt, seconds=0.5, seed=2))


def test_infill(cli: Cli, lm: CodecLM, recording: Path) -> None:
    assert cli("generate", "--infill", recording, "--gap", "0.1:0.15", "--label", "no", "--seed", "2").code == 0
    audio = torch.from_numpy(read_audio(recording, rate=8000, mono=True)[0])[None]
    filled = infill(lm, MODEL, audio, (0.1, 0.15), seed=2, conditioning=lm.conditioning([{"label": "no"}]))
    samples, _ = soundfile.read("generated.wav", dtype="int16", always_2d=True)
    assert np.array_equal(samples, quantized(filled))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--seconds", "inf"], 2, "add -o -"),
        (["--seconds", "nan"], 2, "nan s of audio"),
        (["--raw"], 2, "--raw is for standard output, not for generated.wav"),
        (["--raw", "-o", "-", "--subtype", "FLOAT"], 2, "--raw writes 16-bit samples, not FLOAT: leave out one of"),
        (["--seconds", "inf", "-o", "-", "--subtype", "FLOAT"], 2, "--seconds inf writes 16-bit samples, not FLOAT"),
        (["--subtype", "VORBIS"], 2, "WAV has no subtype VORBIS: use one of"),
        (["-o", "-", "--subtype", "VORBIS"], 2, "has no subtype VORBIS: use one of"),
        (["-o", "-", "--count", "2"], 2, "--count 2"),
        (["-o", ".", "--count", "2"], 2, "is not a file name"),
        (["-o", "", "--count", "2"], 2, "is not a file name"),
        (["--temperature", "1e-50"], 2, "is not within 0.001 to 1000"),
        (["--guidance", "1e39"], 2, "is not within -1000 to 1000"),
        (["--repetition-threshold", "2"], 2, "repetition_threshold = 2"),
        (["-o", "a.txt"], 2, ".txt"),
        (["-o", "none/a.wav"], 8, "none/a.wav"),
        (["--infill", "in.wav"], 2, "belong together"),
        (["--gap", "1:2"], 2, "belong together"),
        (["--infill", "in.wav", "--gap", "1-2"], 2, "--gap 1-2: write it as FROM:TO"),
        (["--infill", "in.wav", "--gap", "0.1:9"], 2, "a gap from 0.1 to 9 s is not within"),
        (["--infill", "in.wav", "--gap", "0.1:0.2", "--seconds", "1"], 2, "leave --prompt and --seconds out"),
        (["--prompt", "none.wav"], 3, "none.wav"),
        (["--label", "maybe"], 2, "knows no label maybe"),
        (["--text", "ja"], 2, "takes no text"),
        (["--temperature", "0"], 2, "top_k = 1 for the most probable"),
        (["--temperature", "hot"], 2, "--temperature hot"),
        (["--temperature", "nan"], 2, "temperature"),
        (["--top-k", "1.5"], 2, "--top-k 1.5"),
        (["--top-k", "21"], 2, "top_k = 21 is not within 1 to 20"),
        (["--top-p", "0.5,0.5"], 2, "top_p has 2 values, the model 3 codebooks"),
    ],
)
def test_invalid_calls_fail_without_output(
    cli: Cli, lm: CodecLM, recording: Path, arguments: list[str], code: int, says: str
) -> None:
    result = cli("generate", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (code, b"", 1)
    assert says in result.err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["in.wav"]


def test_audio_is_not_written_to_a_terminal(cli: Cli, lm: CodecLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = cli("generate", "-o", "-")
    assert (result.code, result.out) == (2, b"")
    assert "terminal" in result.err


def test_immediate_end_token_writes_no_file(cli: Cli, lm: CodecLM) -> None:
    heads = torch.nn.Linear(16, 3 * 21)
    torch.nn.init.zeros_(heads.weight)
    heads.bias.data[20] = 100  # the end
    lm.lm_heads = heads
    result = cli("generate")
    assert result.code == 2
    assert "ended before the first sample" in result.err
    assert not Path("generated.wav").exists()
