"""codec page: the folder that it writes, where ONNX Runtime comes from, and the page's codec in node beside torch."""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codec import pretrained
from codec.cli.main import run
from codec.compression import header_of
from codec.errors import InputNotFound, MissingDependency, StorageError, UsageError
from codec.export import page as web
from codec.io import entropy
from codec.io.bitstream import Reader, Writer
from codec.io.entropy_files import weights_hash_of
from codec.models.base import StepCodec
from tests.test_examples import entropy_coded

RUNNER = Path(__file__).with_name("run_page.mjs")
CONTENT = {
    "ort.wasm.bundle.min.mjs": b"a script",
    "ort-wasm-simd-threaded.wasm": b"a program",
    "ort.webgpu.bundle.min.mjs": b"a script for GPUs",
    "ort-wasm-simd-threaded.asyncify.wasm": b"a program for GPUs",
}
EXPECTED = dict(zip(("ort.js", "ort.wasm", "ort-webgpu.js", "ort-webgpu.wasm"), CONTENT.values(), strict=True))


def archive(content: dict[str, bytes]) -> bytes:
    """An archive as npm's."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(f"package/dist/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """The archive of a small runtime, pinned instead of the real one, and an empty cache."""
    data = archive(CONTENT)
    files = {
        name: web.RuntimeFile(file.name, hashlib.sha256(CONTENT[file.name]).hexdigest())
        for name, file in web.RUNTIME_FILES.items()
    }
    monkeypatch.setattr(web, "RUNTIME_FILES", files)
    monkeypatch.setattr(web, "INTEGRITY", base64.b64encode(hashlib.sha512(data).digest()).decode())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")  # where nothing answers
    return data


@pytest.fixture
def registry(pinned: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The archive on a server."""
    path = tmp_path / "www" / web.RUNTIME / "-" / f"{web.RUNTIME}-{web.VERSION}.tgz"
    path.parent.mkdir(parents=True)
    path.write_bytes(pinned)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "www"))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
    yield path
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    folder = tmp_path / "graphs"
    folder.mkdir()
    write_graphs(folder, 64 * "0")
    return folder


def write_graphs(folder: Path, weights_hash: str) -> None:
    """Files with the metadata of exported ones."""
    (folder / web.SHARED).write_bytes(b"weights of both")
    about = {"weights_hash": weights_hash, "shared": {"sha256": hashlib.sha256(b"weights of both").hexdigest()}}
    for name in web.GRAPHS:
        (folder / name).write_text(f"{name} {json.dumps(about)}")


def test_the_runtime_is_fetched_once(registry: Path) -> None:
    assert web.runtime_files() == EXPECTED
    registry.unlink()
    assert web.runtime_files() == EXPECTED
    (web.cache_folder() / "ort-wasm-simd-threaded.wasm").write_bytes(b"another program")
    with pytest.raises(UsageError, match=r"is not of onnxruntime-web .* remove the file to have it fetched again"):
        web.runtime_files()


def test_an_altered_archive_is_refused(registry: Path) -> None:
    registry.write_bytes(archive(CONTENT | {"ort-wasm-simd-threaded.wasm": b"another program"}))
    with pytest.raises(MissingDependency, match="another SHA-512"):
        web.runtime_files()
    assert not web.cache_folder().exists()


def test_without_a_network(pinned: bytes, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match=r"cannot be fetched .* pass --ort onnxruntime-web-[\d.]+\.tgz"):
        web.runtime_files()
    package = tmp_path / "node_modules" / web.RUNTIME
    (package / "dist").mkdir(parents=True)
    for name, content in CONTENT.items():
        (package / "dist" / name).write_bytes(content)
    (tmp_path / "a.tgz").write_bytes(pinned)
    for source in (package, package / "dist", tmp_path / "a.tgz"):
        assert web.runtime_files(source) == EXPECTED


def test_wrong_runtimes(pinned: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(archive({"ort.js": b""}))
    (tmp_path / "b.tgz").write_bytes(b"no archive")
    for name in ("a.tgz", "b.tgz"):
        with pytest.raises(UsageError, match="is not an archive of onnxruntime-web"):
            web.runtime_files(tmp_path / name)
    with pytest.raises(InputNotFound, match="give the folder or the archive of npm's package"):
        web.runtime_files(tmp_path / "missing")


def test_command(pinned: bytes, graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tgz").write_bytes(pinned)
    options = ["page", str(tmp_path / "demo"), "--onnx", str(graphs), "--ort", str(tmp_path / "a.tgz")]
    for more, status in (
        ([], 0),
        ([], StorageError.exit_code),
        (["--force"], 0),
        (["--model", "x"], UsageError.exit_code),
    ):
        with pytest.raises(SystemExit) as ended:
            run([*options, *more])
        assert (ended.value.code or 0) == status
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        f"{tmp_path / 'demo'}: 17 files, 0.1 MB; open http://127.0.0.1:8000 after `python -m http"
    )
    assert said[1].endswith("exists: pass --force to replace it")
    assert said[3] == "codec: --model and --onnx both name the codec of the page: give one of them"
    content = (graphs / "encoder.onnx").read_bytes()
    assert gzip.decompress((tmp_path / "demo" / "encoder.gz").read_bytes()) == content[::2] + content[1::2]
    assert (tmp_path / "demo" / "ort.wasm").read_bytes() == b"a program"


def test_refusals(pinned: bytes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give either a model or a folder"):
        web.write_page(tmp_path / "page")
    with pytest.raises(InputNotFound, match=r"encoder\.onnx cannot be read .* codec export MODEL --onnx"):
        web.write_page(tmp_path / "page", graphs=tmp_path)
    write_graphs(tmp_path, 64 * "0")
    content = (tmp_path / "encoder.onnx").read_text()
    for damaged in (content.replace(64 * "0", 64 * "1"), content.replace('"sha256"', '"other"'), "nothing"):
        (tmp_path / "encoder.onnx").write_text(damaged)
        with pytest.raises(UsageError, match="are not of one model: write them again with codec export"):
            web.write_page(tmp_path / "page", graphs=tmp_path)
    (tmp_path / "encoder.onnx").write_text(content)
    (tmp_path / "shared.bin").write_bytes(b"other weights")
    with pytest.raises(UsageError, match="are not of one model: write them again with codec export"):
        web.write_page(tmp_path / "page", graphs=tmp_path)
    assert not (tmp_path / "page").exists()


def test_the_network_of_the_entropy_coder_is_in_the_page(pinned: bytes, graphs: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(pinned)
    shipped = pretrained.WEIGHTS / "general-24k.entropy.safetensors"
    write_graphs(graphs, str(weights_hash_of(shipped)))
    web.write_page(tmp_path / "page", graphs=graphs, runtime=tmp_path / "a.tgz")
    assert (tmp_path / "page" / web.NETWORK).read_bytes() == shipped.read_bytes()


def test_files_of_the_page() -> None:
    """Every file that a file names is there, and none names another server."""
    files = {name: content.decode() for name, content in web.page_files().items()}
    assert sorted(files) == [
        "audio.js", "index.html", "model.js", "page.js", "picture.js", "read_codec.js", "style.css", "worker.js",
        "write_codec.js",
    ]  # fmt: skip
    named = {
        name for text in files.values() for name in re.findall(r'["/]([a-z_-]+\.(?:js|css|wasm|gz|safetensors))"', text)
    }
    assert named == {*files, *web.PACKED.values(), *web.RUNTIME_FILES, web.NETWORK} - {"index.html"}
    assert [name for name, text in files.items() if re.search(r"//[\w-]+\.(?!0)\w+", text.replace("///", ""))] == []
    assert "default-src 'none'" in files["index.html"]


def run_node(script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    runner = shutil.which("node")
    if runner is None:
        pytest.skip("node is not installed")
    # --liftoff-only: without the optimizing compiler, which takes longer than a test runs
    command = [runner, "--liftoff-only", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def node(page: Path, folder: Path, audio: torch.Tensor, *, frames: int, codebooks: int) -> None:
    folder.mkdir()
    (folder / "audio.f32").write_bytes(audio.numpy().tobytes())
    done = run_node(RUNNER, page, folder, len(audio), frames, codebooks)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "codebooks"), [(1, 3), (300, 2)])
def test_node_gives_the_codes_of_torch(
    page: Path, model: StepCodec, tmp_path: Path, frames: int, codebooks: int
) -> None:
    """A voice with music, silence, full scale and a faint voice, in WebAssembly, as the browser runs it."""
    from codec.export.onnx import check_signals

    signals = torch.cat(list(check_signals(model).values()))  # [rows, time]
    node(page, tmp_path / "run", signals, frames=frames, codebooks=codebooks)
    codes = model.encode(signals[:, None])[..., : signals.shape[1] // model.frame_spec.hop]
    found = np.fromfile(tmp_path / "run/codes.i32", np.int32).reshape(codes.shape)
    assert (found != codes.numpy()).any(axis=1).sum() <= 1  # a frame may be a near-tie
    used = torch.from_numpy(found[:, :codebooks].astype(np.int64))
    expected, _ = model.decode_step(used, model.decoder_state(len(used)))
    decoded = np.fromfile(tmp_path / "run/decoded.f32", np.float32).reshape(expected.shape)
    assert np.abs(decoded - expected.numpy()).max() < 1e-4


@pytest.mark.slow
def test_example_in_plain_javascript(page: Path, exported: Path, model: StepCodec, tmp_path: Path) -> None:
    """Two channels at another rate, of fewer codebooks, as torch decodes them; other weights are refused."""
    audio = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 1, 8000)).astype(np.float32))
    codes = model.encode(audio, num_codebooks=2)
    for name, weights in (("a", model.weights_hash), ("b", "0" * 64)):
        header = header_of(model, 16_000, channels=2, num_codebooks=2)
        with (tmp_path / f"{name}.codec").open("wb") as file:
            writer = Writer(file, type(header)(**vars(header) | {"weights_hash": weights}), coder=0)
            writer.write(codes.numpy())
            writer.close(time=15_001)
    script = RUNNER.parents[2] / "docs" / "examples" / "onnx_decode.mjs"

    def run_script(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
        return run_node(script, folder, tmp_path / source, tmp_path / "out.wav", ORT=(page / "ort.js").as_uri())

    done = run_script(exported, "a.codec")
    assert done.returncode == 0, done.stderr
    decoded, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert (decoded.shape, rate) == ((7501, 2), 8000)
    expected = model.decode(codes, length=7501)[:, 0].clamp(-1, 1).T
    np.testing.assert_allclose(decoded, expected.numpy(), atol=2e-4)
    assert re.match(
        r"\S+ was made by .* \(weights 0{12}\), and .* export the model", run_script(exported, "b.codec").stderr
    )
    shutil.copy(exported / "decoder.onnx", tmp_path)
    (tmp_path / "shared.bin").write_bytes(b"")
    (tmp_path / "c.codec").write_bytes((tmp_path / "a.codec").read_bytes()[:-100])
    entropy_coded(tmp_path / "d.codec", entropy.MODEL, kind="few", rows=1, codebooks=2, frames=30)
    for folder, source, problem in (
        (tmp_path, "a.codec", r"\S+decoder\.onnx is damaged or not of codec export \(shared\.bin is .*\)"),
        (tmp_path / "none", "a.codec", r"\S+decoder\.onnx is damaged or not of codec export \(ENOENT.*\)"),
        (exported, "none.codec", r"\S+none\.codec cannot be read \(ENOENT.*\)"),
        (exported, "c.codec", r"\S+c\.codec cannot be read \((damaged at byte \d+|truncated)\)"),
        (exported, "d.codec", r"\S+ cannot be read \(codes by coder 2, .*\): give its file NAME\.entropy\.safetensors"),
    ):
        failed = run_script(folder, source)
        assert failed.returncode == 1
        assert re.fullmatch(problem, failed.stderr.strip()), failed.stderr


@pytest.mark.slow
def test_files_that_javascript_writes_equal_ours(page: Path, model: StepCodec, tmp_path: Path) -> None:
    """Byte for byte, with an index of several entries and a copy of the header."""
    hop, frames = model.frame_spec.hop, 3301
    audio = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, frames * hop)).astype(np.float32))
    node(page, tmp_path / "run", audio, frames=1000, codebooks=2)
    codes = np.fromfile(tmp_path / "run/codes.i32", np.int32).reshape(2, 3, frames)
    expected = io.BytesIO()
    writer = Writer(expected, header_of(model, model.sample_rate, channels=2, num_codebooks=2, packet=1.0), coder=0)
    writer.write(codes[:, :2].astype(np.int64))
    writer.close(time=(frames - 1) * hop)
    assert (tmp_path / "run/file.codec").read_bytes() == expected.getvalue()
    with (tmp_path / "run/file.codec").open("rb") as file:
        assert sum(codes.shape[2] for codes in Reader(file, label="file.codec").packets()) == frames


@pytest.mark.slow
def test_wrong_graphs_in_node(page: Path, exported: Path, tmp_path: Path) -> None:
    """One line for a graph of another model, a truncated one, one that is not of a codec, and a damaged file."""
    site = tmp_path / "site"
    shutil.copytree(page, site)
    graph = (exported / "encoder.onnx").read_bytes()
    hashes = re.findall(rb'"weights_hash": "([0-9a-f]{64})"', graph)
    assert len(hashes) == 1
    cases = {
        "are of different models": graph.replace(hashes[0], b"0" * 64),
        "is truncated or not an ONNX file": graph[:-10],
        "has no metadata of a codec": b"",
    }
    (site / "encoder.gz").write_bytes((page / "encoder.gz").read_bytes()[:-10])
    with pytest.raises(AssertionError, match=r"encoder\.gz is damaged: write the folder again with codec page"):
        node(site, tmp_path / "damaged", torch.zeros(1, 160), frames=1, codebooks=1)
    for problem, content in cases.items():
        (site / "encoder.gz").write_bytes(web.packed(content))
        with pytest.raises(AssertionError, match=problem):
            node(site, tmp_path / problem, torch.zeros(1, 160), frames=1, codebooks=1)
    (site / "encoder.gz").write_bytes(web.packed(graph))
    (site / "shared.gz").write_bytes(web.packed(b""))
    with pytest.raises(
        AssertionError, match=r"encoder\.onnx and shared\.bin are of different models: write the folder"
    ):
        node(site, tmp_path / "shared", torch.zeros(1, 160), frames=1, codebooks=1)


@pytest.mark.slow
def test_the_speed_is_measured(page: Path) -> None:
    done = run_node(RUNNER.parents[2] / "tools" / "bench_page.mjs", page, 1)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\d+) frames? a call: encode [\d.]+ .* real-time factor [\d.]+$", done.stdout, re.MULTILINE)
    assert rows == ["1", "50"]
