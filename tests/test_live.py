"""Compiled steps of live streams, compared with torch."""

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from codec import backend, live, pretrained
from codec.checkpoint import save_model
from codec.compression import compress, decompress
from codec.data.tokenize import tokenize
from codec.errors import UsageError
from codec.generation import generate
from codec.io.audio import write_audio
from codec.io.bitstream import Reader
from codec.io.pipes import Layout, LiveReader
from codec.models import causal_frames
from codec.models.base import Codec, StepCodec
from codec.models.causal import CausalCodec
from codec.nn import compiled
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.language_models import tiny_lm
from tests.helpers.signals import voice
from tests.tiny import CONFIG, tiny_model

KINDS = ("noise", "tone", "click", "silence", "faint", "full scale")


LIVE_AFTER = live.LIVE_AFTER


@pytest.fixture(autouse=True)
def compiled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "auto")  # all other tests run in torch
    monkeypatch.setattr(live, "LIVE_AFTER", 2)  # so that short signals reach them


@pytest.fixture
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps fail when they are prepared, as late as in use."""

    def fail(*args: object) -> None:
        raise AssertionError("steps were prepared")

    monkeypatch.setattr(live, "LIVE_AFTER", LIVE_AFTER)
    monkeypatch.setattr(live, "_frame_steps", fail)


def signal(kind: str, model: Codec, frames: int) -> torch.Tensor:
    """A signal [1, 1, time] whose frames use an envelope, a mode or silence."""
    time = frames * model.frame_spec.hop
    noise = torch.randn(1, 1, time, generator=torch.Generator().manual_seed(0))
    bins = torch.arange(time) / model.frame_spec.hop
    match kind:
        case "tone":
            return 0.5 * torch.sin(math.pi * 20.5 * bins)[None, None]
        case "click":
            return (torch.arange(time) % (3 * model.frame_spec.hop) == 7).float()[None, None]
        case "silence":
            return torch.zeros(1, 1, time)
        case "faint":
            return noise / 1e4
        case "full scale":
            return noise.sign()
    return noise / 10


def streamed(
    model: Codec, audio: torch.Tensor, sizes: list[int], num_codebooks: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and audio of streams that get chunks of these numbers of samples in turn."""
    encoder = StreamEncoder(model, num_codebooks=num_codebooks, batch=len(audio))
    decoder = StreamDecoder(model, batch=len(audio))
    codes: list[torch.Tensor] = []
    first = 0
    while first < audio.shape[2]:
        size = sizes[len(codes) % len(sizes)]
        codes.append(encoder.push(audio[:, :, first : first + size]))
        first += size
    codes.append(encoder.flush())
    sound = [decoder.push(part) for part in codes]
    return torch.cat(codes, dim=2), torch.cat([*sound, decoder.flush()], dim=2)


@pytest.fixture(scope="module")
def tiny() -> CausalCodec:
    """A model with codes for tones and clicks, and random weights, half of them exact in fp16."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"num_codebooks": 8, "codebook_size": 256, "modes": 32}
        model = CausalCodec(CONFIG.model_copy(update=sizes | {"spectrum_gain": True, "learned_noise": True})).eval()
        with torch.no_grad():
            for number, weight in enumerate(model.parameters()):
                weight.add_(0.1 * torch.randn_like(weight))
                if number % 2:
                    weight.copy_(weight.half())
    return model


@pytest.fixture(scope="module")
def shipped() -> StepCodec:
    model = pretrained.load("general-24k", "cpu")
    assert isinstance(model, StepCodec)
    return model


@pytest.mark.slow  # loads the compiled loops
@pytest.mark.parametrize(("kind", "beams"), [("noise", 1), ("tone", 1), *((kind, 5) for kind in KINDS)])
def test_codes_and_audio_are_those_of_torch(tiny: CausalCodec, kind: str, beams: int) -> None:
    model, audio = copy.deepcopy(tiny), signal(kind, tiny, 20)
    model.shape.residual.beam_size = beams  # type: ignore[union-attr]
    if beams == 1:
        model.decoder.spectrum_gain = None
    assert live.backend_of(model) == "compiled"
    for num_codebooks, sizes in ((8, [80]), (3, [50, 200]), (1, [80, 80, 400, 80])):
        codes, sound = streamed(model, audio, sizes, num_codebooks)
        assert torch.equal(codes, model.encode(audio, num_codebooks=num_codebooks))
        torch.testing.assert_close(sound, model.decode(codes), rtol=0, atol=1e-5)


@pytest.mark.slow  # loads the compiled loops
def test_signals_of_a_batch_are_those_alone(tiny: CausalCodec) -> None:
    audio = torch.cat([signal("noise", tiny, 12), signal("tone", tiny, 12), signal("click", tiny, 12)])
    codes, sound = streamed(tiny, audio, [80])
    assert torch.equal(codes, tiny.encode(audio))
    torch.testing.assert_close(sound, tiny.decode(codes), rtol=0, atol=1e-5)


def test_every_frame_uses_what_it_is_for(tiny: CausalCodec) -> None:
    """The signals of the tests reach envelopes, modes and silence."""
    shape = tiny.shape
    assert shape is not None
    first = {kind: tiny.encode(signal(kind, tiny, 20))[0, 0] for kind in KINDS}
    assert (first["silence"] == shape.silence).all()
    assert (first["tone"][2:-1] > shape.silence).all()
    assert (first["click"] > shape.silence + shape.modes.tones).any()
    assert (first["noise"] < shape.silence).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "num_codebooks", "frames"), [([480], None, 60), ([300], 5, 20), ([480, 480, 480, 4800, 960], 1, 40)]
)
def test_codes_of_the_shipped_codec_are_those_of_torch(
    shipped: StepCodec, sizes: list[int], num_codebooks: int | None, frames: int
) -> None:
    export = pytest.importorskip("codec.export.onnx")
    audio = torch.stack(list(export.check_signals(shipped).values()))[:, :, : frames * 480]
    for row in audio[:, None]:
        codes, sound = streamed(shipped, row, sizes, num_codebooks)
        assert torch.equal(codes, shipped.encode(row, num_codebooks=num_codebooks))
        torch.testing.assert_close(sound, shipped.decode(codes), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("nothing_compiled")
def test_streams_of_short_steps_are_compiled(tiny: CausalCodec) -> None:
    streamed(tiny, torch.zeros(1, 1, 80 * (LIVE_AFTER - 2)), [80])
    with pytest.raises(AssertionError, match="steps were prepared"):
        streamed(tiny, torch.zeros(1, 1, 80 * LIVE_AFTER), [80])


@pytest.mark.slow
def test_live_pipes_load_the_loops_before_they_read(
    tiny: CausalCodec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If both ends are live; otherwise the writer of the pipe would wait for the loops, for nothing."""
    order: list[str] = []
    tiny.weights_hash = "ab" * 32
    monkeypatch.setattr(live, "prepare", lambda model, job: order.append(job))

    def read(original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            order.append("read")
            return original(*arguments)

        return noted

    monkeypatch.setattr(LiveReader, "blocks", read(LiveReader.blocks))
    monkeypatch.setattr(Reader, "pieces", read(Reader.pieces))
    options: dict[str, Any] = {"model": tiny, "raw": Layout(8000, 1), "packet": 0.1}

    def done(work: Callable[[Path], object], content: bytes) -> list[str]:
        """What `work` does with a named pipe of this content."""
        order.clear()
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        writer = Thread(target=pipe.write_bytes, args=[content])
        writer.start()
        work(pipe)
        writer.join()
        pipe.unlink()
        return order

    samples = (1000 * voice(0.4, rate=8000)).astype("<i2").tobytes()
    assert done(lambda pipe: compress(pipe, tmp_path / "a.codec", **options), samples) == ["read"]
    assert done(lambda pipe: compress(pipe, os.devnull, **options), samples) == ["encode", "read"]
    coded = (tmp_path / "a.codec").read_bytes()
    assert done(lambda pipe: decompress(pipe, os.devnull, model=tiny), coded) == ["decode", "read"]
    assert done(lambda pipe: decompress(pipe, tmp_path / "a.wav", model=tiny), coded) == ["read"]


def test_numpy_computes_on_one_thread_in_live_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of entropy coding took five times as long on two threads while the other program ran."""

    def of_blas() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with threadpool_limits(2, "blas"):
        with live.sharing_cores():
            assert of_blas() == {1}
        with live.sharing_cores(is_live=False):
            assert of_blas() == {2}


@pytest.mark.slow
@pytest.mark.parametrize("stated", [None, "2"])
@pytest.mark.parametrize("has_steps", [True, False])
def test_live_pipes_share_the_cores(
    tiny: CausalCodec, stated: str | None, has_steps: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two threads in each of two programs on two cores took longer than a frame lasts, whenever a third one ran."""
    tiny.weights_hash = "ab" * 32
    monkeypatch.setattr(live, "_cores", lambda: 6)
    monkeypatch.setattr(live, "prepare", lambda model, job: None)
    monkeypatch.setattr(CausalCodec, "has_frame_steps", has_steps)
    if stated is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    threads: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    options: dict[str, Any] = {"model": tiny, "raw": Layout(8000, 1), "packet": 0.1}

    def done(work: Callable[[Path], object], content: bytes) -> list[int]:
        """The numbers of threads while `work` reads a named pipe of this content."""
        threads[:] = [2]
        (pipe := tmp_path / "pipe").unlink(missing_ok=True)
        os.mkfifo(pipe)
        writer = Thread(target=pipe.write_bytes, args=[content])
        writer.start()
        work(pipe)
        writer.join()
        return threads

    samples = (1000 * voice(0.4, rate=8000)).astype("<i2").tobytes()
    of_live = [2] if stated else [2, 1, 2] if has_steps else [2, 1, 3, 2]  # and as before at the end
    assert done(lambda pipe: compress(pipe, os.devnull, **options), samples) == of_live
    assert done(lambda pipe: compress(pipe, tmp_path / "a.codec", **options), samples) == [2]
    coded = (tmp_path / "a.codec").read_bytes()
    assert done(lambda pipe: decompress(pipe, os.devnull, model=tiny), coded) == of_live
    assert done(lambda pipe: decompress(pipe, tmp_path / "a.wav", model=tiny), coded) == [2]


def test_models_say_whether_they_have_steps(tiny: CausalCodec) -> None:
    assert tiny.has_frame_steps
    assert tiny.frame_steps() is not None
    without = CausalCodec(CONFIG.model_copy(update={"envelope_bands": 0, "modes": 0}))
    assert not without.has_frame_steps
    assert without.frame_steps() is None


@pytest.mark.slow  # loads the compiled loops
@pytest.mark.parametrize("job", ["encode", "decode"])
def test_prepared_loops_are_those_that_are_used(tiny: CausalCodec, job: Literal["encode", "decode"]) -> None:
    """No type of argument is left to be compiled in the stream."""
    live.prepare(tiny, job)
    before = compilations()
    encoder, decoder = StreamEncoder(tiny), StreamDecoder(tiny)
    for block in torch.split(signal("noise", tiny, 20), 80, dim=2):
        codes = encoder.push(block)
        if job == "decode":
            decoder.push(codes)
    assert compilations() == before


def compilations() -> dict[str, int]:
    """The numbers of types for which each loop is compiled or loaded."""
    loops = {**vars(compiled), **vars(causal_frames)}
    return {name: len(loop.signatures) for name, loop in loops.items() if hasattr(loop, "signatures")}


@pytest.mark.usefixtures("nothing_compiled")
def test_files_are_never_compiled(tiny: CausalCodec, tmp_path: Path) -> None:
    """Whatever the length of their rest: compiling takes longer than a minute of audio in torch."""
    path, coded, restored = (tmp_path / name for name in ("in.wav", "in.codec", "out.wav"))
    model_file = tmp_path / "model.safetensors"
    tiny.name = ""
    save_model(model_file, tiny, training={})
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": "in.wav"}))
    cases: list[tuple[float, dict[str, Any]]] = [(0.13, {}), (0.6, {"packet": 0.1}), (4.06, {"vbr": 2.0}), (4.06, {})]
    for seconds, options in cases:
        write_audio(path, voice(seconds, rate=16000)[None], 16000, force=True)
        compress(path, coded, model=model_file, force=True, **options)
        decompress(coded, restored, model=model_file, force=True, start=seconds / 2)
    tokenize(tmp_path / "list.jsonl", tmp_path / "store", model=model_file)


@pytest.mark.usefixtures("nothing_compiled")
def test_generated_files_are_never_compiled() -> None:
    """In blocks of the length that `codec generate` uses."""
    model = tiny_model()
    source = {"codec": model.name, "weights_hash": model.weights_hash, "codebook_size": 20, "dim": 8}
    assert sum(block.shape[2] for block in generate(tiny_lm(3, source=source), model, seconds=1.0)) == 8000


@pytest.mark.slow  # loads the compiled loops
def test_other_weights_are_prepared_again(tiny: CausalCodec) -> None:
    model = copy.deepcopy(tiny)
    audio = signal("noise", model, 10)
    before, _ = streamed(model, audio, [80])
    with torch.no_grad():
        model.encoder.out_proj.weight.neg_()
    codes, _ = streamed(model, audio, [80])
    assert not torch.equal(codes, before)
    assert torch.equal(codes, model.encode(audio))


@pytest.mark.slow  # loads the compiled loops
def test_a_state_is_a_value(tiny: CausalCodec) -> None:
    steps = tiny.frame_steps()
    assert steps is not None
    state = steps.arrays(tiny.encoder_state(1))
    audio = signal("noise", tiny, 1).numpy()
    first, after = steps.encode(audio, state, 3)
    again, _ = steps.encode(audio, state, 3)
    np.testing.assert_array_equal(first, again)
    codes, _ = tiny.encode_step(torch.from_numpy(audio), steps.tensors(after), num_codebooks=3)
    expected, _ = steps.encode(audio, after, 3)
    np.testing.assert_array_equal(codes.numpy(), expected)


def test_torch_takes_all_steps_if_asked(tiny: CausalCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "torch")
    assert live.backend_of(tiny) == "torch"


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "tensorflow")
    with pytest.raises(UsageError, match=r"CODEC_BACKEND is 'tensorflow': set it to auto or torch"):
        StreamEncoder(tiny_model())
