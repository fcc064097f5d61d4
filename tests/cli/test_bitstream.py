"""codec check, and what damage does to codec decode."""

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codec.io import storage
from tests.cli.conftest import Cli


@pytest.fixture
def coded(cli: Cli) -> Path:
    """Four seconds in four packets and one frame more."""
    soundfile.write("long.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 8000 * 4), 8000)
    cli("encode", "long.wav", "--packet", 1)
    return Path("long.codec")


def alter(path: Path, *packets: int) -> None:
    data = bytearray(path.read_bytes())
    places = [found.start() for found in re.finditer(b"\xf5\xc3", data)]
    for number in packets:
        data[places[number] + 20] ^= 1
    path.write_bytes(data)


def test_check(cli: Cli, coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("check", coded)
    assert (result.code, result.out.decode(), result.err) == (0, "long.codec: intact, 4.000 s, 5 packets\n", "")
    Path("set/deep").mkdir(parents=True)
    Path("set/deep/good.codec").write_bytes(coded.read_bytes())
    Path("set/bad.codec").write_bytes(coded.read_bytes())
    alter(Path("set/bad.codec"), 1, 3)
    result = cli("check", "set", coded)
    bad = result.out.decode().splitlines()
    assert result.code == 5
    assert [line.split(":")[0] for line in bad] == [
        *["set/bad.codec"] * 2,
        bad[2].split(":")[0],
        "set/deep/good.codec",
        "long.codec",
    ]
    assert "byte" in bad[0]
    assert "packet 1: the checksum does not match" in bad[0]
    assert "packet 3: the checksum does not match" in bad[1]
    assert bad[2].startswith("set/bad.codec is damaged at byte ")
    assert "lost are 0.990 to 2.000 s, 2.990 to 4.000 s, the rest" in bad[2]
    with coded.open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        assert cli("check", "-").out.startswith(b"standard input: intact")


def test_check_of_what_is_not_there(cli: Cli, coded: Path) -> None:
    Path("empty").mkdir()
    Path("text.codec").write_text("no codes, but more than eight bytes")
    assert cli("check", "empty").code == 3
    assert cli("check", "missing.codec").code == 3
    assert cli("check", "text.codec").code == 4
    assert cli("check").code == 2
    result = cli("check", "missing.codec", coded)
    assert (result.code, result.out.decode()) == (3, "long.codec: intact, 4.000 s, 5 packets\n")
    assert result.err.startswith("codec: missing.codec cannot be read")


@pytest.mark.slow
def test_decode_of_a_damaged_file(cli: Cli, coded: Path) -> None:
    alter(coded, 2)
    result = cli("decode", coded, "out.wav")
    assert result.code == 5
    assert "packet 2: the checksum does not match" in result.err
    assert "lost are 1.990 to 3.000 s" in result.err
    assert soundfile.info("out.wav").frames == 32_000
    assert cli("decode", coded, "conceal.wav", "--conceal").code == 5
    assert Path("conceal.wav").read_bytes() != Path("out.wav").read_bytes()
    refused = cli("decode", coded, "strict.wav", "--strict")
    assert refused.code == 5
    assert "first 1.990 s are intact" in refused.err
    assert not Path("strict.wav").exists()


@pytest.mark.slow
def test_verify(cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("encode", recording, "good.codec", "--verify").code == 0
    write = storage._Output.write

    def altered(file: storage._Output, data: bytes) -> int:
        middle, data = len(data) // 2, bytes(data)
        return write(file, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])

    monkeypatch.setattr(storage._Output, "write", altered)
    result = cli("encode", recording, "bad.codec", "--verify")
    assert result.code == 8
    assert "bad.codec was not written as it was encoded" in result.err
    assert not Path("bad.codec").exists()
