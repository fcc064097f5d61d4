"""A page with a tiny model, written once for all processes of a run; skipped without the WebAssembly build."""

import json
import os
import subprocess
import sys
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
from tests.helpers.signals import synthetic_recording
from tests.tiny import CONFIG

ROOT = Path(__file__).parents[2]


@cache
def voice(rate: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The synthetic voice with music [time], 5.5 s."""
    audio: np.ndarray[tuple[int], np.dtype[np.float32]] = resample(synthetic_recording(), synth.RATE, rate)[0]
    return audio.astype(np.float32)


def start_from_audio(path: Path) -> None:
    """Write a model whose networks are silent, so that its closed-form parts alone code the voice."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CausalCodec(CONFIG.model_copy(update={"codebook_size": 256, "hop": 160}))
        model.init_from_audio(torch.from_numpy(voice(CONFIG.sample_rate))[None, None])
    save_model(path, model, training={})


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `codec page` writes, and the model's file tiny.safetensors beside it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    if not all((web.cache_folder() / file.name).is_file() for file in web.RUNTIME_FILES.values()):
        pytest.skip("onnxruntime-web is not in the cache: run codec page once")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, model = base / "page", base / "tiny.safetensors"
    with locks.held(base / "page.lock", wait=True):
        if not (folder / "package.json").exists():
            start_from_audio(model)
            # in a process of its own, because torch.export does not follow the checks of shapes that the tests use
            command = [sys.executable, "-m", "codec", "page", str(folder), "--model", str(model)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            assert done.returncode == 0, done.stderr
            (folder / "package.json").write_text(json.dumps({"type": "module"}))  # for node
    return folder


@pytest.fixture(scope="session")
def model(page: Path) -> StepCodec:
    found = load_model(page.with_name("tiny.safetensors"))
    assert isinstance(found, StepCodec)
    return found
