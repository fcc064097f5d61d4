"""models/wrapped.py beside transformers: tiny audio tokenizers with random weights, made by transformers' own code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import codec
from codec.checkpoint import load_model, save_model
from codec.cli.main import run
from codec.compression import compress, decompress
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.errors import CodecError, UnknownModel, UsageError
from codec.generation import generate, prompt_codes
from codec.io.audio import read_audio, write_audio
from codec.lm.sampling import generate_frames
from codec.nn.resample import resample
from codec.streams import StreamDecoder, StreamEncoder
from tests.helpers.language_models import tiny_lm
from tests.helpers.transformers_models import MODELS, write_tokenizer

transformers = pytest.importorskip("transformers", minversion="5.24")

pytestmark = pytest.mark.peers


def sound(time: int, seed: int = 0, batch: int = 1) -> Tensor:
    """Tones with noise, whose level and frequency change; [batch, 1, time]."""
    generator = torch.Generator().manual_seed(seed)
    level, frequency = (torch.randn(batch, 1, time // 500 + 1, generator=generator) for _ in "12")
    level, frequency = (steps.repeat_interleave(500, dim=2)[..., :time] for steps in (level.exp(), frequency.abs()))
    noise = 0.3 * torch.randn(batch, 1, time, generator=generator)
    return 0.1 * level * (torch.sin(torch.cumsum(0.2 * frequency, dim=2)) + noise)


@pytest.fixture(scope="module", params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(transformers, request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return codec.load(folder, "cpu")


@pytest.fixture(scope="module")
def net(folder: Path) -> Any:
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = transformers.AutoModel if kind == "xcodec" else transformers.AutoModelForAudioTokenization
    return auto.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def extractor(folder: Path) -> Any:
    return transformers.AutoFeatureExtractor.from_pretrained(folder)


@pytest.mark.parametrize("time", [9600, 9601, 24_000, 24_321])
def test_codes_and_audio_are_those_of_transformers(model: Any, net: Any, extractor: Any, time: int) -> None:
    audio = sound(time)
    codes = model.encode(audio)
    assert codes.shape[2] == model.frame_spec.frames(time)
    if time % model.frame_spec.hop and model.config.model_type == "neucodec":
        # NeuCodec drops what does not fill a frame; here it is padded with silence
        audio = torch.nn.functional.pad(audio, (0, -time % model.frame_spec.hop))
    if model.config.input_rate != model.sample_rate:
        audio = resample(audio[0], model.sample_rate, model.config.input_rate)
    inputs = extractor(audio.reshape(-1).numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt")
    kept = ("input_values", "input_features", "input_features_mask")
    with torch.no_grad():
        theirs = net.encode(**{name: inputs[name] for name in kept if name in inputs}).audio_codes
        decoded = net.decode(codes).audio_values.reshape(1, 1, -1)
    assert torch.equal(codes, theirs[..., : codes.shape[2]])
    assert theirs.shape[2] - codes.shape[2] in (0, 1)  # Xcodec2 adds a frame after whole ones
    assert min(row.unique().numel() for row in codes[0]) >= min(5, codes.shape[2] // 4)
    ours = model.decode(codes, length=time)
    assert (ours - decoded[..., :time]).abs().max() <= 1e-5
    assert ours.abs().max() > 1e-3


def test_every_length_is_exact_and_a_batch_equals_its_items(model: Any) -> None:
    hop = model.frame_spec.hop
    times = [1, hop - 1, hop, 5 * hop + 1]
    padded = sound(times[-1], batch=4)
    codes = model.encode(padded, lengths=times)
    for row, time in enumerate(times):
        alone = model.encode(padded[row : row + 1, :, :time])
        assert torch.equal(codes[row : row + 1, :, : alone.shape[2]], alone)
        assert model.decode(alone, length=time).shape == (1, 1, time)


def test_streams_give_everything_at_their_end(model: Any) -> None:
    audio = sound(7001)
    encoder, decoder = StreamEncoder(model), StreamDecoder(model, length=7001)
    parts = [encoder.push(part) for part in torch.split(audio, 640, dim=2)]
    assert all(part.shape[2] == 0 for part in parts)
    codes = encoder.flush()
    assert torch.equal(codes, model.encode(audio))
    given = [decoder.push(part) for part in torch.split(codes, 2, dim=2)]
    assert all(part.shape[2] == 0 for part in given)
    assert torch.allclose(decoder.flush(), model.decode(codes, length=7001), atol=1e-6)


def test_one_file_holds_everything(model: Any, tmp_path: Path) -> None:
    save_model(tmp_path / "one.safetensors", model, training={})
    again = load_model(tmp_path / "one.safetensors")
    assert again.weights_hash == model.weights_hash
    audio = sound(5000)
    assert torch.equal(again.encode(audio), model.encode(audio))
    assert torch.equal(again.decode(model.encode(audio)), model.decode(model.encode(audio)))


def test_files_and_token_stores(model: Any, folder: Path, tmp_path: Path) -> None:
    rate = model.sample_rate
    (tmp_path / "corpus").mkdir()
    for number, time in enumerate((3000, 9001)):
        write_audio(tmp_path / f"corpus/{number}.wav", sound(time, number)[0].numpy(), rate)
    compress(tmp_path / "corpus/1.wav", tmp_path / "1.codec", model=folder)
    decompress(tmp_path / "1.codec", tmp_path / "1.wav", model=folder)
    restored, _ = read_audio(tmp_path / "1.wav")
    assert restored.shape == (1, 9001)
    tokenize(tmp_path / "corpus", tmp_path / "store", model=folder)
    store = TokenStore(tmp_path / "store", model)
    audio, _ = read_audio(tmp_path / "corpus/1.wav")
    assert torch.equal(store[1].codes, model.encode(torch.from_numpy(audio)[None])[0])


def test_language_models_generate_through_it(model: Any) -> None:
    spec = {"codec": model.name, "weights_hash": model.weights_hash, "codebook_size": model.codebook_size, "dim": 8}
    assert model.quantizer.vector_dim > 0
    lm = tiny_lm(model.num_codebooks, source=spec)
    seconds = 20 * model.frame_spec.hop / model.sample_rate
    audio = torch.cat(list(generate(lm, model, seed=1, seconds=seconds)), dim=2)
    codes = torch.cat(list(generate_frames(lm, seeds=[1], frames=20, stop=False)), dim=2)
    assert torch.allclose(audio, model.decode(codes), atol=1e-5)
    assert prompt_codes(lm, model, sound(5 * model.frame_spec.hop), rows=1).shape[2] == 5


def test_info_says_that_streams_are_whole_clips(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["info", str(folder)])
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    assert "codec (transformers)" in printed
    assert "none: whole clips, in memory at once" in printed


def test_training_is_refused(model: Any) -> None:
    with pytest.raises(UsageError, match="is not trained here"):
        model(sound(5000))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PocketTTSAudioTokenizerConfig", "continuous latents, not codes"),
        ("VibeVoiceAcousticTokenizerConfig", "continuous latents, not codes"),
        ("BertConfig", "is not an audio tokenizer of transformers"),
    ],
)
def test_models_without_codes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    write_tokenizer(transformers, "wavtokenizer", tmp_path / "model")
    kind = getattr(transformers, name).model_type
    facts = {"model_type": kind}
    (tmp_path / "model/config.json").write_text(json.dumps(facts))
    with pytest.raises(UnknownModel, match=message):
        codec.load(tmp_path / "model")


def test_bad_folders_have_one_line(tmp_path: Path) -> None:
    folder = write_tokenizer(transformers, "wavtokenizer", tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())

    def message() -> str:
        with pytest.raises(CodecError) as raised:
            codec.load(folder)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "is not a complete model file" in message()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(config | {"decoder_num_layers": 2}))
    assert re.search("lacks [0-9]+ tensors of its configuration, such as backbone", message())
    (folder / "config.json").write_text(json.dumps(config | {"codebook_size": 65}))
    assert re.search("has [0-9]+ tensors of other sizes than its configuration, such as .*codebook", message())
    for key, size in (("decoder_intermediate_size", 10**8), ("decoder_num_layers", 10**5)):
        (folder / "config.json").write_text(json.dumps(config | {key: size}))
        assert "does not fit its own configuration: it asks for" in message()
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_type"}))
    assert "cannot be loaded by transformers" in message()
