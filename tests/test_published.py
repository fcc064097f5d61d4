"""Published checkpoints: fetched from a hub, cached, verified, and named in .codec files."""

import errno
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

import codec
from codec import published
from codec.compression import compress, decompress
from codec.errors import MissingDependency, StorageError, UnknownModel, UsageError
from codec.io.audio import write_audio
from codec.models.dac import DAC, DACConfig
from tests.cli.conftest import Cli, cli  # noqa: F401 (a fixture)
from tests.helpers.checkpoints import scaled, theirs
from tests.helpers.hub import serve

MODEL = scaled(
    DAC(
        DACConfig(
            sample_rate=16000,
            hop=4,
            encoder_dim=2,
            decoder_dim=8,
            encoder_rates=(2, 2),
            decoder_rates=(2, 2),
            num_codebooks=2,
            codebook_size=16,
            codebook_dim=2,
        )
    )
)
FILES = {
    "config.json": json.dumps(
        {
            "model_type": "dac",
            "encoder_hidden_size": 2,
            "downsampling_ratios": [2, 2],
            "decoder_hidden_size": 8,
            "n_codebooks": 2,
            "codebook_size": 16,
            "codebook_dim": 2,
            "sampling_rate": 16000,
        }
    ).encode(),
    "model.safetensors": save(
        {name: tensor.contiguous() for name, tensor in theirs(MODEL, "transformers DacModel").items()}
    ),
}
NAME = "dac-16khz"
REPOSITORY = published.PUBLISHED[NAME].repository


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.slow
def test_a_published_model_is_fetched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published.cached(NAME) is None
    with serve(REPOSITORY, FILES) as url:
        use(url, monkeypatch)
        model = codec.load(NAME)
    assert model.name == NAME
    assert published.cached(NAME) is not None
    go_offline(monkeypatch)
    again = codec.load(NAME)
    assert again.weights_hash == model.weights_hash
    assert codec.pretrained.describe(NAME).name == NAME
    audio = 0.1 * torch.randn(1, 1, 800, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.encode(audio), MODEL.encode(audio))


@pytest.mark.slow
def test_a_file_names_a_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 400)).astype(np.float32)
    write_audio(tmp_path / "a.wav", noise, 16_000)
    with serve(REPOSITORY, FILES) as url:
        use(url, monkeypatch)
        compress(tmp_path / "a.wav", tmp_path / "a.codec", model=NAME)
    go_offline(monkeypatch)
    assert decompress(tmp_path / "a.codec", tmp_path / "b.wav").time == 400
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UnknownModel, match=f"pass --model {NAME} to fetch it"):
        decompress(tmp_path / "a.codec", tmp_path / "c.wav")


@pytest.mark.slow
def test_a_repository_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that transformers needs, and no other files."""
    name = "hf:somebody/a-codec"
    files = FILES | {"preprocessor_config.json": b"{}", "pytorch_model.bin": b"other weights", "train.py": b"code"}
    write_audio(tmp_path / "a.wav", np.full((1, 400), 0.1, np.float32), 16_000)
    with serve("somebody/a-codec", files) as url:
        use(url, monkeypatch)
        model = codec.load(name)
        compress(tmp_path / "a.wav", tmp_path / "a.codec", model=name)
    assert (model.name, model.weights_hash) == (name, codec.pretrained.describe(name).weights_hash)
    fetched = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*")}
    assert fetched == {"config.json", "model.safetensors", "preprocessor_config.json"}
    go_offline(monkeypatch)
    assert torch.equal(codec.load(name).encode(torch.zeros(1, 1, 80)), model.encode(torch.zeros(1, 1, 80)))
    assert decompress(tmp_path / "a.codec", tmp_path / "b.wav").time == 400
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UnknownModel, match="go online once"):
        codec.load(name)
    with pytest.raises(UnknownModel, match="pass --model"):
        decompress(tmp_path / "a.codec", tmp_path / "c.wav")


def test_a_repository_without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve("somebody/nothing", {"config.json": b"{}"}) as url:
        use(url, monkeypatch)
        with pytest.raises(UnknownModel, match=r"has none of model\.safetensors"):
            codec.load("hf:somebody/nothing")


def test_models_of_other_families_need_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text('{"model_type": "wavtokenizer"}')
    (tmp_path / "model.safetensors").write_bytes(FILES["model.safetensors"])
    with pytest.raises(MissingDependency, match=r"pip install '\.\[transformers\]'"):
        codec.load(tmp_path)


def test_without_a_network_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch)
    with pytest.raises(UnknownModel, match="go online once, or give the path of its file"):
        codec.load(NAME)


@pytest.mark.slow
def test_a_file_that_was_altered_in_the_cache_is_refused(
    cli: Cli,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_audio(tmp_path / "a.wav", np.full((1, 400), 0.1, np.float32), 16_000)
    with serve(REPOSITORY, FILES) as url:
        use(url, monkeypatch)
        codec.load(NAME)
        found = published.cached(NAME)
        assert found is not None
        blob = found.resolve()
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        blob.write_bytes(content)
        said = cli("encode", tmp_path / "a.wav", tmp_path / "a.codec", "--model", NAME)
        assert said.code == StorageError.exit_code
        says = f"{NAME} is not what it was when it was fetched: delete {blob} to fetch it again"
        assert said.err == f"codec: {says}\n"
        assert not (tmp_path / "a.codec").exists()
        blob.unlink()
        assert cli("encode", tmp_path / "a.wav", tmp_path / "a.codec", "--model", NAME).code == 0


def test_other_content_is_refused_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(REPOSITORY, FILES, lie=True) as url:
        use(url, monkeypatch)
        with pytest.raises(StorageError, match="other content than the hub states"):
            codec.load(NAME)
    assert published.cached(NAME) is None


@pytest.mark.slow
def test_a_connection_that_ends_early_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(REPOSITORY, FILES, cut=True) as url, monkeypatch.context() as patch:
        use(url, monkeypatch)
        patch.setattr("time.sleep", lambda seconds: None)  # between attempts
        with pytest.raises(UnknownModel, match=r"cannot be fetched \(.*\): try again") as raised:
            codec.load(NAME)
    assert "\n" not in str(raised.value)
    assert published.cached(NAME) is None
    with serve(REPOSITORY, FILES) as url:
        use(url, monkeypatch)
        assert codec.load(NAME).config == MODEL.config


def test_attempts_to_connect_are_not_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub.file_download as client

    def refused(*args: object, **kwargs: object) -> None:
        client.logger.warning("connection refused: retrying")
        raise TimeoutError("the hub does not answer")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refused)
    with pytest.raises(UnknownModel, match=r"cannot be fetched \(the hub does not answer\): try again"):
        codec.load(NAME)
    assert "retrying" not in capfd.readouterr().err + caplog.text
    client.logger.warning("as before")
    assert "as before" in caplog.text + capfd.readouterr().err


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(StorageError, match=r"cannot be stored \(No space left on device\): free space"):
        codec.load(NAME)


def test_names_rates_and_sizes_agree() -> None:
    for name, known in published.PUBLISHED.items():
        count, size = (int(part) for part in known.codebooks.split(" × "))
        lowest, highest = (float(part) for part in known.bitrates.split(" to "))
        per_codebook = math.log2(size) * known.spec.frame_rate / 1000
        assert lowest == pytest.approx(per_codebook, rel=0.02), name
        assert highest == pytest.approx(count * per_codebook, rel=0.02), name


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(UnknownModel, match="did you mean dac-16khz"):
        codec.load("dac-16kz")


@pytest.mark.slow
def test_convert_and_list(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "dac"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    said = cli("convert", folder, "dac.safetensors")
    assert (said.code, said.err.count("\n")) == (0, 1)
    model = codec.load("dac.safetensors")
    assert model.weights_hash == codec.load(folder).weights_hash
    assert cli("convert", folder, "dac.safetensors").code == StorageError.exit_code
    assert cli("convert", folder, "dac.pth").code == UsageError.exit_code
    listed = cli("models").out.decode()
    assert "dac-16khz" in listed
    assert "MIT" in listed
    rows = {row["name"]: row for row in json.loads(cli("models", "--json").out)}
    assert rows["dac-16khz"]["path"] is None
    assert io.StringIO(cli("info", folder).out.decode()).readline().split() == ["name", "dac"]
