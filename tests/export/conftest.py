"""Exported models and a page, each written once for all processes of a run, because an export takes many seconds."""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.checkpoint import load_model, save_model
from codec.export import page as web
from codec.io import locks, synth
from codec.io.audio import resample
from codec.models.base import StepCodec
from codec.models.causal import CausalCodec
from tests.helpers import processes
from tests.helpers.signals import synthetic_recording
from tests.tiny import CONFIG


@cache
def voice(rate: int, seconds: float = 3.5) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The first seconds of the synthetic voice with music [time]."""
    audio: np.ndarray[tuple[int], np.dtype[np.float32]] = resample(synthetic_recording(), synth.RATE, rate)[0]
    return audio[: round(rate * seconds)].astype(np.float32)


def save_start(path: Path) -> None:
    """Write a model whose closed-form parts code the voice; what its networks add is small, and not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CausalCodec(CONFIG.model_copy(update={"codebook_size": 256, "hop": 160}))
        model.init_from_audio(torch.from_numpy(voice(CONFIG.sample_rate, 5.5))[None, None])
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.01)
    save_model(path, model, training={})


def codec_command(*arguments: object) -> str:
    """What `codec ARGUMENTS` says; in a process without the checks of shapes, which torch.export does not follow."""
    done = processes.run("import sys; from codec.cli.main import run; run(sys.argv[1:])", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`made_once(name, make)` gives the folder that `make(folder)` fills in the first process of a run that asks."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder = base / name
        with locks.held(base / f"{name}.lock", wait=True):
            if not folder.exists():
                part = base / f"{name}.part"
                part.mkdir()
                make(part)
                part.rename(folder)
        return folder

    return folder_of


@pytest.fixture(scope="session")
def exported(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder with a small model and its graphs; not to be written to."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    def make(folder: Path) -> None:
        save_start(folder / "tiny.safetensors")
        # 4 signals of 150 frames; 1 and all 3 codebooks in a batch, and all of them one by one
        expected = f"; {4 * 150 * (1 + 3 + 3)} codes are those of torch, audio within "
        assert expected in codec_command("export", folder / "tiny.safetensors", "--onnx", folder)

    return made_once("exported", make)


@pytest.fixture(scope="session")
def page(exported: Path, made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The folder that `codec page` writes for this model."""
    if not all((web.cache_folder() / file.name).is_file() for file in web.RUNTIME_FILES.values()):
        pytest.skip("onnxruntime-web is not in the cache: run codec page once")

    def make(folder: Path) -> None:
        codec_command("page", folder / "page", "--onnx", exported)
        (folder / "page" / "package.json").write_text(json.dumps({"type": "module"}))  # for node

    return made_once("page", make) / "page"


@pytest.fixture(scope="session")
def model(exported: Path) -> StepCodec:
    found = load_model(exported / "tiny.safetensors", "cpu")
    assert isinstance(found, StepCodec)
    return found
