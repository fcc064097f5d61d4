"""checkpoint.py: one file is a complete model, and the hash identifies it."""

import hashlib
import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from codec import models, pretrained
from codec.checkpoint import HASHED_AS, load_lm, load_model, load_state, read_card, save_lm, save_model, save_state
from codec.errors import InputNotFound, UnknownModel, UsageError
from codec.io import bounded_zip
from codec.models.causal import CausalCodec
from codec.models.encodec import EnCodecConfig
from codec.models.mimi import Mimi, MimiConfig
from tests.helpers import processes
from tests.helpers.checkpoints import moshi_tensors, theirs
from tests.helpers.families import TINY
from tests.helpers.language_models import random_tokens, tiny_lm
from tests.tiny import CONFIG, tiny_model


@pytest.fixture
def tiny() -> CausalCodec:
    return tiny_model()


def test_a_file_is_a_complete_model(tmp_path: Path, tiny: CausalCodec) -> None:
    path = tmp_path / "small.safetensors"
    save_model(path, tiny, training={"data": "somewhere", "step": 7})
    loaded = load_model(path)
    assert loaded.config == tiny.config
    assert not loaded.training
    assert loaded.name == "small"
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    card = read_card(path).as_codec()
    assert (card.name, card.family, card.config) == ("small", "causal", CONFIG.model_dump(mode="json"))
    assert card.training == {"data": "somewhere", "step": 7}
    assert card.frame_spec == tiny.frame_spec
    assert card.parameters == sum(tensor.numel() for tensor in tiny.state_dict().values())
    assert card.size == path.stat().st_size
    assert json.loads(json.dumps(card.as_data()))["weights_hash"] == card.weights_hash == loaded.weights_hash


def test_a_loaded_model_gives_the_same_codes(tmp_path: Path, tiny: CausalCodec) -> None:
    save_model(tmp_path / "a.safetensors", tiny, training={})
    audio = 0.1 * torch.randn(1, 1, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_model(tmp_path / "a.safetensors").encode(audio), tiny.encode(audio))


def test_float16_files_load_as_float32(tmp_path: Path, tiny: CausalCodec) -> None:
    path = tmp_path / "half.safetensors"
    save_model(path, tiny, training={}, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()} == {torch.float16}
    loaded = load_model(path).state_dict()
    for name, tensor in tiny.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            assert torch.equal(loaded[name], tensor.half().float())


def test_weights_beyond_float16_are_not_stored(tmp_path: Path, tiny: CausalCodec) -> None:
    name, weights = next(iter(tiny.named_parameters()))
    with torch.no_grad():
        weights.view(-1)[0] = 1e5
    with pytest.raises(UsageError, match=name):
        save_model(tmp_path / "a.safetensors", tiny, training={}, dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
    save_model(tmp_path / "a.safetensors", tiny, training={})


def test_an_unusable_device_raises(tmp_path: Path, tiny: CausalCodec) -> None:
    save_model(tmp_path / "a.safetensors", tiny, training={})
    with pytest.raises(UsageError, match="device nonsense cannot be used"):
        load_model(tmp_path / "a.safetensors", "nonsense")
    assert load_model(tmp_path / "a.safetensors", "auto").device.type in ("cpu", "cuda")


def as_in_0_1_0(name: str) -> str:
    return ".".join(HASHED_AS.get(part, part) for part in name.split("."))


def test_the_hash_is_that_of_the_stored_weights_and_the_config(tmp_path: Path, tiny: CausalCodec) -> None:
    kinds = {torch.float16: "F16", torch.int64: "I64", torch.bool: "BOOL"}
    path = tmp_path / "a.safetensors"
    save_model(path, tiny, training={"step": 1}, dtype=torch.float16)
    expected = hashlib.sha256()
    tensors = load_file(path).items()
    for name, tensor in sorted((as_in_0_1_0(name), tensor) for name, tensor in tensors):
        expected.update(json.dumps([name, kinds[tensor.dtype], list(tensor.shape)]).encode())
        expected.update(tensor.numpy().tobytes())
    config = {HASHED_AS.get(key, key): value for key, value in CONFIG.model_dump(mode="json").items()}
    expected.update(json.dumps(config, sort_keys=True).encode())
    assert read_card(path).weights_hash == expected.hexdigest()

    save_model(path, tiny, training={"step": 2}, dtype=torch.float16)
    assert read_card(path).weights_hash == expected.hexdigest()
    with torch.no_grad():
        next(tiny.parameters()).view(-1)[0] += 0.1
    save_model(path, tiny, training={"step": 1}, dtype=torch.float16)
    assert read_card(path).weights_hash != expected.hexdigest()


def test_a_run_is_named_after_its_folder(tmp_path: Path, tiny: CausalCodec) -> None:
    (tmp_path / "night").mkdir()
    save_model(tmp_path / "night" / "model.safetensors", tiny, training={})
    assert read_card(tmp_path / "night" / "model.safetensors").name == "night"


def test_saving_replaces_and_leaves_no_other_file(tmp_path: Path, tiny: CausalCodec) -> None:
    for step in (1, 2):
        save_model(tmp_path / "a.safetensors", tiny, training={"step": step})
    assert read_card(tmp_path / "a.safetensors").training == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_files_that_are_not_models(tmp_path: Path, tiny: CausalCodec) -> None:
    with pytest.raises(InputNotFound, match="none"):
        read_card(tmp_path / "none.safetensors")
    with pytest.raises(InputNotFound):
        read_card(tmp_path)

    path = tmp_path / "a.safetensors"
    save_model(path, tiny, training={})
    whole = path.read_bytes()
    for damaged in (b"", whole[:5], whole[:60], whole[:-1], whole + b"\0", b"\xff" * 100, b"not a model at all"):
        path.write_bytes(damaged)
        with pytest.raises(UnknownModel, match=r"a\.safetensors is not a complete model file"):
            load_model(path)

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UnknownModel, match="not a model of codec"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"codec": '{"format": 2}'})
    with pytest.raises(UnknownModel, match="upgrade"):
        load_model(path)
    for altered in ("{", "[]", '{"format": 1}', '{"format": "1"}'):
        save_file({"x": torch.zeros(1)}, path, metadata={"codec": altered})
        with pytest.raises(UnknownModel, match="not a model of codec"):
            load_model(path)


def test_weights_that_do_not_fit_the_config(tmp_path: Path, tiny: CausalCodec) -> None:
    path = tmp_path / "a.safetensors"
    save_model(path, tiny, training={})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    name = next(iter(tiny.state_dict()))
    save_file({name: torch.zeros(5, 5)}, path, metadata=metadata)
    with pytest.raises(UnknownModel, match="do not fit its configuration") as error:
        load_model(path)
    assert "Missing key" in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("config", {"dim": 10**12}, "do not fit"),
        ("config", {"dim": "x"}, "do not fit"),
        ("config", {"unknown": 1}, "do not fit"),
        ("frame_spec", {"hop": 77}, "contradicts its configuration"),
    ],
)
def test_metadata_that_does_not_fit_the_weights(
    tmp_path: Path, tiny: CausalCodec, part: str, changes: dict[str, object], says: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_model(path, tiny, training={})
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["codec"])
    card[part] |= changes
    save_file(load_file(path), path, metadata={"codec": json.dumps(card)})
    with pytest.raises(UnknownModel, match=says) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_weights_that_are_not_finite(tmp_path: Path, tiny: CausalCodec) -> None:
    path = tmp_path / "a.safetensors"
    save_model(path, tiny, training={})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = torch.nan
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(UnknownModel, match="not finite"):
        load_model(path)


LMS: dict[str, dict[str, Any]] = {
    "delay": {"pattern": {"delays": [0, 1, 1]}},
    "flatten": {"pattern": {"kind": "flatten"}},
    "coarse first": {"pattern": {"kind": "coarse_first", "block": 4}},
    "depth": {"pattern": {"kind": "parallel"}, "depth": {"width": 12, "layers": 1, "heads": 2}},
    "text": {"text": True, "vectors": "learned"},
}


@pytest.mark.parametrize("name", LMS)
def test_the_file_of_a_language_model(tmp_path: Path, name: str) -> None:
    lm = tiny_lm(**LMS[name])
    path = tmp_path / "words.safetensors"
    save_lm(path, lm, training={"step": 7})
    loaded, card = load_lm(path), read_card(path).as_lm()
    assert (loaded.config, loaded.source, loaded.name, loaded.training) == (lm.config, lm.source, "words", False)
    assert (card.family, card.config["width"], card.source["codec"]) == ("transformer", 16, "tiny")
    assert (card.training, card.parameters) == ({"step": 7}, sum(t.numel() for t in lm.state_dict().values()))
    assert card.weights_hash == loaded.weights_hash
    tokens, conditioning = random_tokens(lm, 2, 5), lm.conditioning([{"label": "yes"}, {}])
    with torch.no_grad():
        assert torch.allclose(loaded(tokens, conditioning), lm(tokens, conditioning), atol=1e-5)
    for key, tensor in lm.state_dict().items():
        assert loaded.state_dict()[key].equal(tensor)
    assert "vectors.entries" in lm.state_dict()


def test_a_shipped_language_model_can_be_saved_again(tmp_path: Path) -> None:
    hashes = []
    lm = tiny_lm()
    for name in ("a.safetensors", "b.safetensors"):
        save_lm(tmp_path / name, lm, training={}, dtype=torch.float16)
        lm = load_lm(tmp_path / name)
        hashes.append(lm.weights_hash)
    assert hashes[0] == hashes[1]


def test_unknown_tensor_types(tmp_path: Path) -> None:
    save_lm(tmp_path / "a.safetensors", tiny_lm(), training={})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        card = file.metadata()
    tensors = load_file(tmp_path / "a.safetensors")
    for kind in (torch.complex64, torch.float8_e4m3fn):
        changed = tensors | {"vectors.special_token": tensors["vectors.special_token"].to(kind)}
        save_file(changed, tmp_path / "b.safetensors", metadata=card)
        with pytest.raises(UnknownModel, match="tensors of a type that codec does not use"):
            load_lm(tmp_path / "b.safetensors")
    save_file(tensors, tmp_path / "b.safetensors", metadata={"codec": "[" * 100_000})
    with pytest.raises(UnknownModel, match="not a model of codec"):
        load_lm(tmp_path / "b.safetensors")


def test_a_language_model_without_level_db(tmp_path: Path) -> None:
    save_lm(tmp_path / "a.safetensors", tiny_lm(source={"level_db": -20.0}), training={})
    assert load_lm(tmp_path / "a.safetensors").source.level_db == -20.0
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["codec"])
    del card["config"]["source"]["level_db"]
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", metadata={"codec": json.dumps(card)})
    old = load_lm(tmp_path / "b.safetensors")
    assert (old.source.level_db, old.weights_hash) == (None, read_card(tmp_path / "b.safetensors").weights_hash)


def test_the_hash_of_a_language_model_includes_its_source(tmp_path: Path) -> None:
    hashes = []
    for codec in ("one", "one", "another"):
        lm = tiny_lm()
        lm.source = lm.source.model_copy(update={"codec": codec})
        save_lm(tmp_path / "a.safetensors", lm, training={"name": codec})
        hashes.append(read_card(tmp_path / "a.safetensors").weights_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_codecs_are_not_language_models(tmp_path: Path, tiny: CausalCodec) -> None:
    save_model(tmp_path / "sounds.safetensors", tiny, training={})
    save_lm(tmp_path / "words.safetensors", tiny_lm(), training={})
    with pytest.raises(UnknownModel, match=r"^sounds is a codec: codec encode takes it; name a language model here$"):
        load_lm(tmp_path / "sounds.safetensors")
    with pytest.raises(UnknownModel, match=r"^words is a language model: codec generate takes it; name a codec here$"):
        load_model(tmp_path / "words.safetensors")


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("model", {"family": "transformer", "width": 10**12}, "do not fit"),
        ("model", {"family": "transformer", "depth": 3}, "do not fit"),
        ("model", {"family": "rnn"}, "no family of language models 'rnn'"),
        ("model", [3], "not a model of codec"),
        ("source", {"codec": "x"}, "not a model of codec"),
        ("source", {"codec": 1, "weights_hash": "", "num_codebooks": 1, "classes": {}}, "not a model of codec"),
        ("source", None, "not a model of codec"),
    ],
)
def test_language_models_that_contradict_themselves(tmp_path: Path, part: str, value: object, says: str) -> None:
    path = tmp_path / "a.safetensors"
    save_lm(path, tiny_lm(), training={})
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["codec"])
    card["config"][part] = value
    save_file(load_file(path), path, metadata={"codec": json.dumps(card)})
    with pytest.raises(UnknownModel, match=says):
        load_lm(path)


def test_training_state_round_trip_executes_no_code(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 3, "recipe": {}, "moments": {"a": torch.arange(3.0)}})
    state = load_state(path)
    assert state["step"] == 3
    assert torch.equal(state["moments"]["a"], torch.arange(3.0))
    with pytest.raises(InputNotFound):
        load_state(tmp_path / "none.pt")
    save_state(path, {"step": 3, "recipe": tmp_path})  # an object that only a pickle which executes code can rebuild
    with pytest.raises(UnknownModel, match="not a training state: start over in another --out"):
        load_state(path)


def test_a_damaged_training_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 3, "recipe": {}, "moments": torch.arange(3000.0)})
    whole = path.read_bytes()
    flipped = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(14, len(whole), 97)]
    for damaged in [*flipped, whole[:-1], whole[:100], whole[:20], whole + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(UnknownModel, match=r"state\.pt is damaged: start over in another --out$"):
            load_state(path)


def test_a_compressed_training_state_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    monkeypatch.setattr(bounded_zip, "ALLOWANCE", 1000)
    save_state(path, {"step": 3, "recipe": {}, "moments": torch.zeros(100_000)})
    magic, content = b"codec state 1\n", io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(path.read_bytes()[len(magic) + 32 :])) as stored,
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in stored.namelist():
            compressed.writestr(name, stored.read(name))
    path.write_bytes(magic + hashlib.sha256(content.getvalue()).digest() + content.getvalue())
    with pytest.raises(UnknownModel, match=r"state\.pt is not a training state"):
        load_state(path)


def test_the_path_of_a_codec_that_is_not_a_text(tmp_path: Path) -> None:
    save_lm(tmp_path / "a.safetensors", tiny_lm(), training={"codec": {"path": 3}})
    assert load_lm(tmp_path / "a.safetensors").codec_path is None


@pytest.mark.parametrize("content", [b"", b"text\n", b"\xff" * 99, pickle.dumps([1]), pickle.dumps({"step": 1})])
def test_files_that_are_not_training_states(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(UnknownModel, match=r"not a training state: start over in another --out$"):
        load_state(path)


@pytest.mark.parametrize("content", [{}, {"step": 1}, [1, 2], torch.zeros(2), {"step": 1, "recipe": {}}])
def test_plain_torch_files_are_of_an_older_version(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "state.pt"
    torch.save(content, path)
    with pytest.raises(UnknownModel, match="made by an older version, or is not a training state: start over"):
        load_state(path)


@pytest.mark.parametrize("content", [{}, {"step": 1}, {"recipe": {}}])
def test_states_with_missing_keys(tmp_path: Path, content: dict[str, Any]) -> None:
    save_state(tmp_path / "state.pt", content)
    with pytest.raises(UnknownModel, match="is not a training state: start over"):
        load_state(tmp_path / "state.pt")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["ours", "moshi"])
def test_weights_are_in_memory_once_while_they_are_read(tmp_path: Path, kind: str) -> None:
    config = TINY["mimi"].model_dump() | {"width": 64, "heads": 1}
    paths = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    layers: dict[str, Any] = {"width": 256, "hidden": 2048, "heads": 4, "layers": 8}
    for path, sizes in zip(paths, ({}, layers), strict=True):
        model = Mimi(MimiConfig.from_data(config | sizes))
        if kind == "ours":
            save_model(path, model, training={})
        else:
            save_file(moshi_tensors(model), path)
    code = """
import sys
from pathlib import Path
from codec.pretrained import load_file

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10

load_file(Path(sys.argv[1]))  # so that modules are imported
before = peak()
load_file(Path(sys.argv[2]))
print(peak() - before)
"""
    done = processes.run(code, *paths)
    assert not done.returncode, done.stderr
    size = paths[1].stat().st_size
    assert size > 80e6
    assert 0.3 * size < int(done.stdout) < (1.25 if kind == "ours" else 1.6) * size


def test_weights_that_share_memory_in_a_file_are_separate_in_the_model(tmp_path: Path) -> None:
    model = models.of_config(EnCodecConfig(filters=4, dim=8, num_codebooks=2, codebook_size=16))
    tensors = theirs(model, "encodec")
    first, second = [name for name in tensors if name.endswith("_codebook.embed")][:2]
    tensors[second] = tensors[first].t().contiguous().t()  # neither contiguous
    tensors[first] = tensors[second].view(tensors[second].shape)
    torch.save(tensors, tmp_path / "encodec.th")
    loaded = pretrained.load_file(tmp_path / "encodec.th")
    one, two = (loaded.state_dict()[f"quantizer.stages.{number}.codebook"] for number in (0, 1))
    assert one.equal(two)
    assert one.is_contiguous()
    assert one.data_ptr() != two.data_ptr()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
