"""The commands with checkpoint files that the packages of the four families write themselves."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import codec
from codec.data.token_store import TokenStore
from codec.io.audio import write_audio
from codec.io.bitstream import open_reader
from codec.models.base import split_scale
from codec.published import PUBLISHED
from tests.cli.conftest import Cli, cli, command  # noqa: F401
from tests.helpers.training import tones

dac = pytest.importorskip("dac.model.dac")
audiotools = pytest.importorskip("audiotools")
encodec = pytest.importorskip("encodec")
loaders = pytest.importorskip("moshi.models.loaders")
snac = pytest.importorskip("snac")
transformers = pytest.importorskip("transformers")

RATES = {"16khz": [2, 4, 5, 8], "24khz": [2, 4, 5, 8], "44khz": [2, 4, 8, 8]}
SNAC: dict[str, dict[str, Any]] = {
    "24khz": {"sampling_rate": 24000, "encoder_rates": [2, 4, 8, 8], "attn_window_size": None, "vq_strides": [4, 2, 1]},
    "32khz": {"sampling_rate": 32000, "encoder_rates": [2, 3, 8, 8], "attn_window_size": 32},
    "44khz": {"sampling_rate": 44100, "encoder_rates": [2, 3, 8, 8], "attn_window_size": 32},
}
SECONDS = 1.3


@torch.no_grad()
def randomized(net: nn.Module) -> Any:
    """The network with entries of the size of its latents, because untrained EnCodecs have entries of zero."""
    for name, tensor in net.named_buffers():
        if name.endswith(("embed", "embed_sum", "embedding_sum")):
            tensor.normal_(0, 0.1)
    return net.eval()


def of_encodec(build: Callable[..., Any], folder: Path) -> Path:
    torch.save(randomized(build(pretrained=False)).state_dict(), folder / f"{build.__name__}.th")
    return folder / f"{build.__name__}.th"


def of_dac(name: str, folder: Path) -> Path:
    rate = PUBLISHED[f"dac-{name}"].spec.sample_rate
    sizes = {"encoder_dim": 16, "decoder_dim": 128, "n_codebooks": 9, "sample_rate": rate}
    net = dac.DAC(**sizes, encoder_rates=RATES[name], decoder_rates=RATES[name][::-1])
    net.save(folder / f"weights_{name}.pth", package=False)
    return folder / f"weights_{name}.pth"


def of_snac(name: str, folder: Path) -> Path:
    facts: dict[str, Any] = {"encoder_dim": 16, "decoder_dim": 128, "vq_strides": [8, 4, 2, 1]} | SNAC[name]
    facts["decoder_rates"] = facts["encoder_rates"][::-1]
    facts |= {"codebook_size": 4096, "codebook_dim": 8, "noise": True, "depthwise": True}
    torch.save(snac.SNAC(**facts).state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def of_moshi(folder: Path) -> Path:
    save_file(randomized(loaders.get_mimi(None, num_codebooks=32)).state_dict(), folder / "tokenizer.safetensors")
    return folder / "tokenizer.safetensors"


def of_transformers(kind: str, folder: Path, **config: Any) -> Path:
    net = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config))
    randomized(net).save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "encodec-24khz": lambda folder: of_encodec(encodec.EncodecModel.encodec_model_24khz, folder),
    "encodec-48khz": lambda folder: of_encodec(encodec.EncodecModel.encodec_model_48khz, folder),
    "encodec-32khz": lambda folder: of_transformers(
        "Encodec",
        folder,
        sampling_rate=32000,
        num_filters=16,
        upsampling_ratios=[8, 5, 4, 4],
        target_bandwidths=[2.2],
        codebook_size=2048,
        use_causal_conv=False,
        use_conv_shortcut=False,
    ),
    **{f"dac-{name}": partial(of_dac, name) for name in RATES},
    "mimi-24khz": lambda folder: of_transformers("Mimi", folder, num_filters=16, num_hidden_layers=2),
    "moshi": of_moshi,
    **{f"snac-{name}": partial(of_snac, name) for name in SNAC},
}


@pytest.fixture(scope="module", params=MAKERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def recordings(cli: Cli) -> Path:  # noqa: F811
    """Two recordings of two rates, mono and stereo."""
    Path("recordings").mkdir()
    write_audio("recordings/a.wav", tones(SECONDS, 16_000, seed=1), 16_000)
    write_audio("recordings/b.flac", tones(SECONDS, 44_100, seed=2, channels=2), 44_100)
    return Path("recordings")


def succeeds(cli: Cli, *arguments: object) -> str:  # noqa: F811
    """What a command prints, which must succeed."""
    result = cli(*arguments)
    assert result.code == 0, result.err
    return result.out.decode() + result.err


def codes_in(path: str) -> np.ndarray[Any, Any]:
    with open_reader(path) as reader:
        return np.concatenate([codes for codes, _ in reader.packets_with_scale()], axis=2)


def test_names_are_those_of_published_checkpoints() -> None:
    assert set(MAKERS) - {"moshi"} == set(PUBLISHED)


def test_files_and_folders(cli: Cli, model: Path, recordings: Path) -> None:  # noqa: F811
    net = codec.load(model, "cpu")
    facts = json.loads(succeeds(cli, "info", model, "--json"))
    assert facts["weights_hash"] == net.weights_hash
    write_audio("own.wav", tones(SECONDS, net.sample_rate, seed=3, channels=net.channels), net.sample_rate)
    succeeds(cli, "encode", "own.wav", "own.codec", "--model", model)
    audio, _ = codec.io.audio.read_audio("own.wav")
    assert np.array_equal(codes_in("own.codec"), split_scale(net.encode(torch.from_numpy(audio)[None]))[0].numpy())
    succeeds(cli, "encode", "recordings/b.flac", "b.codec", "--model", model)
    succeeds(cli, "check", "b.codec")
    succeeds(cli, "decode", "b.codec", "b.wav", "--model", model)
    restored, rate = codec.io.audio.read_audio("b.wav")
    assert (rate, restored.shape) == (44_100, (2, round(SECONDS * 44_100)))
    assert np.abs(restored).max() > 1e-3
    succeeds(cli, "convert", model, "one.safetensors")
    assert codec.load("one.safetensors", "cpu").weights_hash == net.weights_hash
    succeeds(cli, "decode", "b.codec", "again.wav", "--model", "one.safetensors")
    assert Path("again.wav").read_bytes() == Path("b.wav").read_bytes()
    succeeds(cli, "encode", recordings, "coded", "--model", model, "--codebooks", net.codebook_choices[0])
    succeeds(cli, "decode", "coded", "decoded", "--model", model)
    assert sorted(path.name for path in Path("decoded").iterdir()) == ["a.wav", "b.wav"]


def test_arrays_of_codes(cli: Cli, model: Path, recordings: Path) -> None:  # noqa: F811
    succeeds(cli, "encode", "recordings/b.flac", "b.codec", "--model", model)
    succeeds(cli, "export-codes", "b.codec", "-o", "b.npz")
    arrays = dict(np.load("b.npz"))
    assert np.array_equal(arrays["codes"], codes_in("b.codec"))
    np.save("codes.npy", arrays["codes"])
    torch.save(
        {
            name: torch.from_numpy(array.astype(np.float32 if name == "scale" else np.int64))
            for name, array in arrays.items()
        },
        "codes.pt",
    )
    for name in ("codes.npy", "codes.pt", "b.npz"):
        succeeds(cli, "import", name, "back.codec", "--model", model, "--force")
        assert np.array_equal(codes_in("back.codec"), arrays["codes"])
        succeeds(cli, "decode", "back.codec", "back.wav", "--model", model, "--force")


def test_token_stores(cli: Cli, model: Path, recordings: Path) -> None:  # noqa: F811
    succeeds(cli, "tokenize", recordings, "--model", model, "--out", "store")
    store = TokenStore("store")
    net = codec.load(model, "cpu")
    assert [clip.codes.shape[0] for clip in store] == [net.num_codebooks] * 2
    for kind, out in (("parquet", "tokens.parquet"), ("npy", "arrays"), ("shar", "shar")):
        succeeds(cli, "tokens", "export", "store", "--to", kind, "--out", out)
        source = "arrays/clips.jsonl" if kind == "npy" else out
        succeeds(cli, "tokens", "import", source, "--out", f"from_{kind}", "--model", model)
        again = TokenStore(f"from_{kind}", net)
        assert [clip.row.seconds for clip in again] == pytest.approx([clip.row.seconds for clip in store])
        assert all(torch.equal(ours.codes, theirs.codes) for ours, theirs in zip(again, store, strict=True))


def test_evaluation(cli: Cli, model: Path, recordings: Path) -> None:  # noqa: F811
    table = succeeds(cli, "evaluate", "--data", recordings, "--model", model, "--json", "results.json")
    name = codec.load(model, "cpu").name
    assert name is not None
    assert name in table
    assert name in Path("results.json").read_text()


def test_a_pipe_equals_a_file(cli: Cli, model: Path, recordings: Path) -> None:  # noqa: F811
    """Codes of a stream of blocks are those of the file."""
    net = codec.load(model, "cpu")
    audio = torch.from_numpy(tones(SECONDS, net.sample_rate, seed=3, channels=net.channels))[None]
    encoder = codec.StreamEncoder(net)
    parts = [split_scale(encoder.push(part))[0] for part in torch.split(audio, 4801, dim=2)]
    codes = torch.cat([*parts, split_scale(encoder.flush())[0]], dim=2)
    assert torch.equal(codes, split_scale(net.encode(audio))[0])


@torch.no_grad()
def test_an_ecdc_file_of_encodec(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    from encodec.compress import compress

    torch.manual_seed(0)
    for channels, build in (
        (1, encodec.EncodecModel.encodec_model_24khz),
        (2, encodec.EncodecModel.encodec_model_48khz),
    ):
        net = randomized(build(pretrained=False))
        net.name = build.__name__.replace("model_", "")
        net.set_target_bandwidth(6.0)
        torch.save(net.state_dict(), tmp_path / "model.th")
        audio = torch.from_numpy(tones(SECONDS, net.sample_rate, seed=channels, channels=channels))
        Path("a.ecdc").write_bytes(compress(net, audio))
        succeeds(cli, "import", "a.ecdc", "--model", tmp_path / "model.th", "--force")
        codes = torch.cat([codes for codes, _ in net.encode(audio[None])], dim=2)
        assert np.array_equal(codes_in("a.codec"), codes.numpy())
        succeeds(cli, "decode", "a.codec", "a.wav", "--model", tmp_path / "model.th", "--force")
        restored, rate = codec.io.audio.read_audio("a.wav")
        expected = net.decode(net.encode(audio[None]))[0, :, : audio.shape[1]].clamp(-1, 1)
        assert (rate, restored.shape) == (net.sample_rate, tuple(audio.shape))
        assert np.abs(restored - expected.numpy()).max() < 1e-4  # 16 bits


@torch.no_grad()
def test_a_dac_file_of_the_package(cli: Cli, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    path = of_dac("16khz", tmp_path)
    net = dac.DAC.load(path)
    audio = torch.from_numpy(tones(SECONDS, 16_000, seed=5, channels=2))[None]
    file = net.compress(audiotools.AudioSignal(audio, 16_000), win_duration=5.0)
    file.save("a.dac")
    assert "note: the level was changed before encoding" in succeeds(cli, "import", "a.dac", "--model", path)
    assert np.array_equal(codes_in("a.codec"), file.codes.numpy())
    succeeds(cli, "decode", "a.codec", "a.wav", "--model", path)
    assert codec.io.audio.read_audio("a.wav")[0].shape == (2, audio.shape[2])
    net.compress(audiotools.AudioSignal(audio, 16_000), win_duration=1.0).save("b.dac")
    refused = cli("import", "b.dac", "--model", path)
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert "in windows of 34 frames that overlap" in refused.err
    assert not Path("b.codec").exists()


def test_models_lists_all_published_names(cli: Cli) -> None:  # noqa: F811
    listed = succeeds(cli, "models")
    assert all(name in listed for name in PUBLISHED)
