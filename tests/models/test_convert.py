"""Checkpoints of other implementations are recognized by their tensors, and refused beside another configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import codec
from codec import models
from codec.errors import UnknownModel
from codec.models import convert
from codec.models.encodec import EnCodecConfig
from codec.models.snac import SNACConfig
from tests.helpers.checkpoints import theirs
from tests.helpers.families import TINY

DIALECTS = {dialect.label: dialect for dialect in convert.DIALECTS}
MODELS = {family: models.of_config(config) for family, config in TINY.items()}
TENSORS = {label: theirs(MODELS[dialect.family.lower()], label) for label, dialect in DIALECTS.items()}
CONFIGURATIONS: dict[str, dict[str, Any]] = {  # keys of what their own packages write
    "descript-audio-codec": {"kwargs": {"encoder_dim": 4, "n_codebooks": 4}},
    "snac": {"sampling_rate": 24000, "encoder_rates": [2, 4, 8, 8], "vq_strides": [4, 2, 1], "noise": True},
    "transformers DacModel": {"model_type": "dac", "n_codebooks": 4},
    "transformers EncodecModel": {"model_type": "encodec", "upsampling_ratios": [5, 4, 2]},
    "transformers MimiModel": {"model_type": "mimi", "num_quantizers": 4},
}
OTHERS = [
    (label, theirs)
    for label, dialect in DIALECTS.items()
    for theirs in CONFIGURATIONS
    if DIALECTS[theirs].family != dialect.family
]


@pytest.mark.parametrize("label", DIALECTS)
def test_the_dialect_is_that_of_the_tensors(label: str) -> None:
    assert convert.recognize(TENSORS[label]) is DIALECTS[label]


@pytest.mark.parametrize("window", [0, 16])
@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("depthwise", [True, False])
def test_snac_is_not_taken_as_dac(window: int, noise: bool, depthwise: bool) -> None:
    """The models of the package without noise and attention have the names of DAC but for one activation."""
    layers = {"window": window, "noise": noise, "depthwise": depthwise, "encoder_dim": 16, "decoder_dim": 256}
    net = models.of_config(SNACConfig.from_data(TINY["snac"].model_dump() | layers))
    assert convert.recognize(theirs(net, "snac")) is DIALECTS["snac"]


@pytest.mark.parametrize(("label", "other"), OTHERS)
def test_the_configuration_of_another_family_is_refused(label: str, other: str) -> None:
    family, stated = DIALECTS[label].family, DIALECTS[other].family
    words = rf"^here has the tensors of {family}, but it comes with the configuration of {stated}: download both"
    with pytest.raises(UnknownModel, match=words) as raised:
        convert.convert(dict(TENSORS[label]), CONFIGURATIONS[other], label="here")
    assert "\n" not in str(raised.value)


def test_every_pair_of_families_is_tried() -> None:
    assert len({(DIALECTS[label].family, DIALECTS[other].family) for label, other in OTHERS}) == 4 * 3
    assert len(OTHERS) == 7 * 5 - 2 * 2 - 1 - 2 - 2  # without those of the same family


@pytest.mark.parametrize("name", ["pytorch_model.bin", "encodec_24khz.th"])
def test_a_folder_of_two_families_is_refused(tmp_path: Path, name: str) -> None:
    torch.save(TENSORS["encodec"], tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGURATIONS["snac"]))
    with pytest.raises(UnknownModel, match=f"{name} has the tensors of EnCodec, but .* the configuration of SNAC"):
        codec.load(tmp_path / name)


def test_the_configuration_of_a_language_model_beside_a_file_does_not_matter(tmp_path: Path) -> None:
    net = models.of_config(EnCodecConfig(filters=4, dim=8, num_codebooks=2, codebook_size=16))
    torch.save(theirs(net, "encodec"), tmp_path / "encodec.th")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "moshi"}))
    assert codec.load(tmp_path / "encodec.th").config.family == "encodec"


@pytest.mark.parametrize("label", [label for label, dialect in DIALECTS.items() if dialect.configured_by])
def test_a_missing_configuration_is_named(label: str) -> None:
    with pytest.raises(UnknownModel, match=f"^here is a checkpoint of {label} without (config.json|its metadata): "):
        convert.convert(dict(TENSORS[label]), {}, label="here")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UnknownModel, match="without a usable configuration: it lacks 'encoder_rates'"):
        convert.convert(dict(TENSORS["snac"]), {"vq_strides": [1]}, label="here")


def test_a_checkpoint_without_tensors_by_name_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(UnknownModel, match=r"a\.pth holds a list, not tensors by name: give a model's checkpoint"):
        codec.load(tmp_path / "a.pth")
