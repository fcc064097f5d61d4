"""export/transformers.py: our codecs as models of transformers, called as transformers calls its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import codec
from codec import models
from codec.errors import UnknownModel, UsageError
from codec.models.base import Codec, split_scale
from tests.helpers.families import TINY
from tests.tiny import CONFIG

transformers = pytest.importorskip("transformers", minversion="5.24")

from codec.export.transformers import CodecModel, feature_extractor  # noqa: E402 (it needs transformers)

pytestmark = pytest.mark.peers


@pytest.fixture(scope="module", params=["causal", *TINY])
def ours(request: pytest.FixtureRequest) -> Codec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.of_config(CONFIG if request.param == "causal" else TINY[request.param])
        model.init_from_audio(0.1 * torch.randn(4, model.channels, 8000))
    return model.eval()


@pytest.fixture(scope="module")
def folder(ours: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registered") / "model"
    CodecModel.of(ours).save_pretrained(path)
    feature_extractor(ours).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoModel.from_pretrained(folder)


def recordings(channels: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, (channels, time)[2 - channels :]).astype(np.float32) for time in (1601, 3333, 800)]


def test_a_saved_model_is_the_same(ours: Codec, folder: Path, theirs: Any) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.sampling_rate, config.hop_length) == (8000, ours.frame_spec.hop)
    assert (config.num_codebooks, config.codebook_size) == (ours.num_codebooks, ours.codebook_size)
    loaded = transformers.AutoModelForAudioTokenization.from_pretrained(folder)
    assert type(theirs) is type(loaded) is CodecModel
    audio = 0.1 * torch.randn(2, ours.channels, 2000)
    codes, scale = split_scale(ours.encode(audio))
    for model in (theirs, loaded):
        encoded = model.encode(audio)
        assert torch.equal(encoded.audio_codes, codes)
        decoded = model.decode(encoded.audio_codes, encoded.audio_scales).audio_values
        assert torch.equal(decoded, ours.decode(ours.encode(audio)))
    assert (theirs.encode(audio).audio_scales is None) == (scale is None)


def test_a_padded_batch_equals_its_items(ours: Codec, folder: Path, theirs: Any) -> None:
    """Through the feature extractor that AutoFeatureExtractor finds."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    items = recordings(ours.channels)
    inputs = extractor(raw_audio=items, sampling_rate=8000, return_tensors="pt")
    batch = theirs.encode(inputs["input_values"], inputs["padding_mask"])
    audio = theirs.decode(batch.audio_codes, batch.audio_scales, inputs["padding_mask"]).audio_values
    assert audio.shape == inputs["input_values"].shape
    for row, item in enumerate(items):
        alone = theirs.encode(torch.from_numpy(item.reshape(1, ours.channels, -1)))
        frames = alone.audio_codes.shape[2]
        assert torch.equal(batch.audio_codes[row : row + 1, :, :frames], alone.audio_codes)
        assert batch.audio_codes_mask[row].tolist() == [1] * frames + [0] * (batch.audio_codes.shape[2] - frames)
        time = item.shape[-1]
        decoded = theirs.decode(alone.audio_codes, alone.audio_scales).audio_values[..., :time]
        assert torch.allclose(audio[row : row + 1, :, :time], decoded, atol=1e-5)
        assert not audio[row, :, time:].any()
    output = theirs(inputs["input_values"], inputs["padding_mask"])
    assert torch.equal(output.audio_codes, batch.audio_codes)
    assert torch.equal(output.audio_values, audio)
    as_tuple = theirs(**inputs, return_dict=False)
    assert torch.equal(as_tuple[0], batch.audio_codes)


def test_codec_load_takes_the_folder(ours: Codec, folder: Path) -> None:
    again = codec.load(folder)
    audio = 0.1 * torch.randn(1, ours.channels, 900)
    assert torch.equal(split_scale(again.encode(audio))[0], split_scale(ours.encode(audio))[0])
    assert again.config == ours.config


def test_fewer_codebooks(ours: Codec, theirs: Any) -> None:
    fewer = ours.codebook_choices[-2]
    codes = theirs.encode(torch.zeros(1, ours.channels, 800), num_codebooks=fewer).audio_codes
    assert codes.shape[1] == fewer
    assert theirs.decode(codes).audio_values.shape[1] == ours.channels


def test_invalid_calls_have_one_line(theirs: Any, folder: Path, ours: Codec) -> None:
    audio = torch.zeros(2, ours.channels, 800)
    left = torch.ones(2, 800, dtype=torch.long)
    left[1, :100] = 0
    with pytest.raises(UsageError, match="pad at the end"):
        theirs.encode(audio, left)
    with pytest.raises(UsageError, match=r"padding_mask is \[800\]"):
        theirs.encode(audio, left[0])
    with pytest.raises(UsageError, match="computes in float32"):
        transformers.AutoModel.from_pretrained(folder, dtype=torch.float16)
    with pytest.raises(UsageError, match="computes in float32"):
        theirs.half()


def test_an_altered_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "codec", "family": "causal", "codec": {"hop": "long"}}')
    with pytest.raises(UnknownModel, match="was altered"):
        codec.load(tmp_path)
