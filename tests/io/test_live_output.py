"""Samples on standard output: sizes in the header where standard output is a regular file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

CODE = """
import numpy as np
from codec.io.audio import LiveOutput
with LiveOutput(rate=8000, channels=1) as sink:
    for _ in range(3):
        sink.write(np.full((1, 1000), 0.5, np.float32))
"""
ROOT = Path(__file__).parents[2]


def run(command: str) -> bytes:
    whole = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, check=True)
    return whole.stdout


@pytest.mark.slow
def test_a_regular_file_gets_its_true_sizes(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE)
    python = f"PYTHONPATH=. {sys.executable} {tmp_path}/code.py"
    run(f"{python} > {tmp_path}/out.wav")
    data = (tmp_path / "out.wav").read_bytes()
    assert len(data) == 44 + 6000
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    assert int.from_bytes(data[40:44], "little") == 6000
    assert soundfile.info(tmp_path / "out.wav").frames == 3000
    assert np.allclose(soundfile.read(tmp_path / "out.wav")[0], 0.5)

    piped = run(f"{python} | cat")
    assert piped[44:] == data[44:]
    assert int.from_bytes(piped[40:44], "little") == 2**32 - 1  # up to the end

    (tmp_path / "appended").write_bytes(b"before")
    run(f"{python} >> {tmp_path}/appended")
    assert (tmp_path / "appended").read_bytes() == b"before" + piped
