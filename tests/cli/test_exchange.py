"""codec import, codec export-codes"""

from pathlib import Path

import numpy as np
import pytest

from codec.cli.main import run


def test_import_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (2, 8, 100))
    np.save(tmp_path / "a.npy", codes)
    for arguments in (
        ["import", str(tmp_path / "a.npy"), "--model", "digits-8k"],
        ["export-codes", str(tmp_path / "a.codec"), "-o", str(tmp_path / "b.npy")],
    ):
        with pytest.raises(SystemExit) as raised:
            run(arguments)
        assert raised.value.code in (0, None)
        assert "2 × 8 codebooks × 100 frames" in capsys.readouterr().err
    assert np.array_equal(np.load(tmp_path / "b.npy"), codes)
    with pytest.raises(SystemExit) as raised:
        run(["export-codes", str(tmp_path / "a.codec"), "-o", str(tmp_path / "b.wav")])
    assert raised.value.code == 2
    assert "name an .npy or .npz file" in capsys.readouterr().err
    assert not (tmp_path / "b.wav").exists()
