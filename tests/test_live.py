"""Live streams in ONNX Runtime, compared with torch."""

import copy

import pytest
import torch

from codec import live, pretrained
from codec.errors import UsageError
from codec.models.base import Codec, StepCodec
from codec.streams import StreamDecoder, StreamEncoder
from tests.tiny import tiny_model

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model() -> StepCodec:
    model = pretrained.load("general-24k", "cpu")
    assert isinstance(model, StepCodec)
    return model


@pytest.fixture(scope="module")
def audio(model: StepCodec) -> torch.Tensor:
    """A voice with music, silence, noise at full scale and the voice 60 dB lower: [4, 1, 60 frames]."""
    export = pytest.importorskip("codec.export.onnx")
    signals = export.check_signals(model).values()
    return torch.stack(list(signals))[:, :, : 60 * model.frame_spec.hop]


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "sizes", "num_codebooks"),
    [
        (slice(0, 1), [480], None),
        (slice(1, 2), [480], None),
        (slice(2, 3), [480], None),
        (slice(3, 4), [300], 5),
        (slice(0, 1), [480, 480, 480, 4800, 960], 1),
        (slice(0, 2), [480], None),
    ],
)
def test_codes_and_audio_are_those_of_torch(
    model: StepCodec,
    audio: torch.Tensor,
    rows: slice,
    sizes: list[int],
    num_codebooks: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert live.backend_of(model) == "onnxruntime"
    codes, sound = streamed(model, audio[rows], sizes, num_codebooks)
    assert torch.equal(codes, model.encode(audio[rows], num_codebooks=num_codebooks))
    monkeypatch.setenv("CODEC_BACKEND", "torch")
    assert live.backend_of(model) == "torch"
    _, expected = streamed(model, audio[rows], sizes, num_codebooks)
    assert (sound - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_the_graphs_are_those_of_the_shipped_weights(model: StepCodec) -> None:
    """If not: python tools/live_graphs.py."""
    for graph in ("encoder", "decoder"):
        session, _ = live._session("general-24k", graph, 1)
        assert model.weights_hash in session.get_modelmeta().custom_metadata_map["codec"]


@pytest.mark.slow
def test_the_first_step_and_long_steps_are_those_of_torch(model: StepCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that encoding a file does not load the graphs."""

    def fail(*args: object) -> None:
        raise AssertionError("a graph was loaded")

    monkeypatch.setattr(live, "_session", fail)
    streamed(model, torch.zeros(1, 1, 24_000), [24_000, 480])
    with pytest.raises(AssertionError, match="a graph was loaded"):
        streamed(model, torch.zeros(1, 1, 24_000), [480])


@pytest.mark.slow
def test_other_weights_stay_in_torch(model: StepCodec) -> None:
    changed = copy.deepcopy(model)
    assert live.backend_of(changed) == "onnxruntime"
    with torch.no_grad():
        next(changed.parameters())[0] += 1e-3
    assert live.backend_of(changed) == "torch"


def test_models_without_a_graph_stay_in_torch() -> None:
    assert live.backend_of(tiny_model()) == "torch"


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEC_BACKEND", "tensorflow")
    with pytest.raises(UsageError, match=r"CODEC_BACKEND is 'tensorflow': set it to auto or torch"):
        StreamEncoder(tiny_model())
