"""Bad checkpoints and codes of other projects: one line, the exit status of its class, and no output."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from codec.io.bitstream import open_reader
from codec.published import cached
from tests.cli.conftest import Cli
from tests.helpers.hub import serve
from tests.test_published import FILES, NAME, REPOSITORY, own_cache, use  # noqa: F401 (a fixture for every test)
from tests.tiny import tiny_model

ENCODEC = {"quantizer.vq.layers.0._codebook.embed": torch.zeros(4, 4)}
SNAC = {"sampling_rate": 24000, "encoder_rates": [2, 4, 8, 8], "vq_strides": [4, 2, 1]}


@pytest.fixture
def folder(cli: Cli) -> Iterator[Path]:
    """A folder of transformers that can be loaded."""
    path = Path("dac")
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    yield path
    assert not [
        found for found in Path().rglob("*") if found.suffix in (".codec", ".tmp", ".part") or found.name[0] == "."
    ]


def refused(cli: Cli, code: int, says: str, *arguments: object) -> None:
    """The command fails with the status and one line."""
    result = cli(*arguments)
    assert (result.code, result.out, result.err.count("\n")) == (code, b"", 1), result
    assert result.err.startswith("codec: ")
    assert says in result.err


def test_a_checkpoint_of_another_family(cli: Cli, folder: Path, recording: Path) -> None:
    torch.save(ENCODEC, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(SNAC))
    says = "has the tensors of EnCodec, but it comes with the configuration of SNAC: download both again"
    for arguments in (["encode", recording, "out.codec"], ["evaluate", "--data", recording], ["info", folder]):
        model = [] if arguments[0] == "info" else ["--model", folder]
        refused(cli, 6, says, *arguments, *model)
    refused(cli, 6, says, "convert", folder, "one.safetensors")
    assert not Path("one.safetensors").exists()


@pytest.mark.parametrize("size", [0, 7, 100, 2000, -1])
def test_a_truncated_checkpoint(cli: Cli, folder: Path, recording: Path, size: int) -> None:
    (folder / "model.safetensors").write_bytes(FILES["model.safetensors"][:size])
    refused(cli, 6, "is not a complete", "encode", recording, "out.codec", "--model", folder)


def test_missing_and_wrong_tensors(cli: Cli, folder: Path, recording: Path) -> None:
    tensors: dict[str, Any] = load(FILES["model.safetensors"])
    name = next(name for name in tensors if name.endswith("conv1.weight"))
    for content, says in (
        ({key: tensor for key, tensor in tensors.items() if key != name}, "missing: "),
        (tensors | {"other.weight": torch.zeros(2)}, "not part of such a model: other.weight"),
        (tensors | {name: torch.zeros(1, 1, 1)}, "does not fit its own configuration: size mismatch"),
        ({"a": torch.zeros(1)}, "is not a checkpoint of a known codec family: give one of "),
        (tiny_model().state_dict(), ", or a model file of codec with the metadata that it was written with"),
    ):
        (folder / "model.safetensors").write_bytes(save(content))
        refused(cli, 6, says, "tokenize", recording.parent, "--out", "store", "--model", folder)
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("code", "says", "served"),
    [
        (8, "arrived with other content than the hub states, and was removed: fetch it again", {"lie": True}),
        (6, "needs a login: accept its terms on the hub, then set HF_TOKEN", {"status": 401}),
        (6, "needs a login: accept its terms on the hub, then set HF_TOKEN", {"status": 403}),
        (6, "does not exist on the hub: check the name", {"status": 401, "code": "RepoNotFound"}),
        (6, "does not exist on the hub: check the name", {"status": 404, "code": "RepoNotFound"}),
        (6, "is not in its repository any more: give the path of its file", {"status": 404, "code": "EntryNotFound"}),
        (6, "cannot be reached: go online once, or give the path of its file", {"status": 500, "code": "none"}),
        (6, "cannot be reached: go online once, or give the path of its file", None),
    ],
    ids=["hash", "gated", "gated for this token", "private", "no repository", "no file", "out of order", "offline"],
)
def test_a_hub_that_does_not_give_the_file(
    cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str, served: dict[str, Any] | None
) -> None:
    with nullcontext("http://127.0.0.1:9") if served is None else serve(REPOSITORY, FILES, **served) as url:
        use(url, monkeypatch)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
        refused(cli, code, says, "encode", recording, "out.codec", "--model", NAME)
    assert not Path("out.codec").exists()
    assert cached(NAME) is None


def test_channels_and_rates_of_a_recording_are_kept(cli: Cli, folder: Path, recording: Path) -> None:
    """Stereo at 16 kHz by a model that is mono: each channel is coded alone."""
    (folder / "config.json").write_text(json.dumps(json.loads(FILES["config.json"]) | {"sampling_rate": 44100}))
    result = cli("encode", recording, "two.codec", "--model", folder)
    assert (result.code, result.err.count("\n")) == (0, 2)
    assert ": 0.70 s, 2 channels, " in result.err
    assert "note: in.wav: 16 kHz, resampled to 44.1 kHz: nothing above 8 kHz\n" in result.err
    with open_reader("two.codec") as reader:
        header = reader.header
        assert (header.channels, header.model_channels, header.source_rate) == (2, 1, 16_000)
        assert header.sample_rate == 44_100
    Path("two.codec").unlink()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.slow
def test_codes_that_are_not_what_their_name_says(cli: Cli, folder: Path) -> None:
    contents = {
        "text.dac": (5, "is damaged at byte 0", b"text"),
        "empty.dac": (5, "is damaged at byte 0", b""),
        "text.ecdc": (5, "does not begin as an .ecdc file", b"text"),
        "text.npy": (5, "is damaged at byte 0", b"text"),
        "text.pt": (5, "is damaged at byte 0", b"text"),
    }
    for name, (code, says, content) in contents.items():
        Path(name).write_bytes(content)
        refused(cli, code, says, "import", name, "--model", folder)
    for name in ("harmful.dac", "harmful.pt"):
        with Path(name).open("wb") as file:
            if name.endswith(".dac"):
                np.save(file, np.array({"codes": Harmful()}, dtype=object))
            else:
                torch.save({"codes": Harmful()}, file)
        refused(cli, 4, "not executed", "import", name, "--model", folder)
    torch.save({"state_dict": Harmful()}, "harmful.pth")
    refused(cli, 6, "not executed", "info", "harmful.pth")
    assert not Path("executed").exists()
    np.save("high.npy", np.full((2, 5), 16))
    refused(cli, 4, "codebooks of dac have 16 entries: pass its model", "import", "high.npy", "--model", folder)
    np.save("more.npy", np.zeros((3, 5), int))
    refused(cli, 4, "has 1 rows of 3 codebooks", "import", "more.npy", "--model", folder)
