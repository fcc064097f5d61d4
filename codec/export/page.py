"""Write a static web page in which a codec runs: microphone or file, codec, loudspeaker.

The folder needs a file server and no network: the page's own files (`codec/export/browser`), the two graphs of
`codec.export.onnx`, and two builds of ONNX Runtime, for WebAssembly (14 MB) and WebGPU (27 MB). These are not part of
this package: they are taken from npm's package onnxruntime-web at a pinned version, and compared with its hashes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import tarfile
import tempfile
import zlib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.request import urlopen

from codec.errors import InputNotFound, MissingDependency, UsageError
from codec.io import entropy_files
from codec.io.storage import atomic_output, refuse_existing, storing

if TYPE_CHECKING:
    from codec.models.base import Codec

RUNTIME = "onnxruntime-web"
VERSION = "1.30.0"
REGISTRY = "https://registry.npmjs.org"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""SHA-512 of the package's archive, in base64, as the registry states it."""
ARCHIVE_BYTES = 64_000_000  # more than the archive has
TIMEOUT = 60.0  # seconds without a byte
GRAPHS = ("encoder.onnx", "decoder.onnx")
SHARED = "shared.bin"
PACKED = {name: f"{Path(name).stem}.gz" for name in (*GRAPHS, SHARED)}
"""What the page loads, by the name of what `packed` makes it of."""
READER = "read_codec.js"
NETWORK = "entropy.safetensors"
"""The network by which the page reads payload coder 2; empty for a codec without one."""


class RuntimeFile(NamedTuple):
    """A file of the package onnxruntime-web."""

    name: str
    """In the folder dist of the package."""
    sha256: str


# By the name in the page. A .js for a .mjs, because not every file server knows that a .mjs is JavaScript.
RUNTIME_FILES = {
    "ort.js": RuntimeFile(
        "ort.wasm.bundle.min.mjs", "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"
    ),
    "ort.wasm": RuntimeFile(
        "ort-wasm-simd-threaded.wasm", "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
    "ort-webgpu.js": RuntimeFile(
        "ort.webgpu.bundle.min.mjs", "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2"
    ),
    "ort-webgpu.wasm": RuntimeFile(
        "ort-wasm-simd-threaded.asyncify.wasm", "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"
    ),
}


def write_page(
    folder: str | Path,
    *,
    model: Codec | None = None,
    graphs: str | Path | None = None,
    runtime: str | Path | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Write the page to a folder: name and size in bytes of each file.

    The codec is either `model`, which is exported and verified, or `graphs`, a folder written by `codec export --onnx`.
    `runtime` is the package onnxruntime-web, as a folder or as the archive that `npm pack` writes; without it, the
    archive is fetched once from npm's registry (or the one that the variable npm_config_registry names) and cached.

    Raises:
        UsageError: not one codec, a codec of several channels, or `runtime` is another version.
        InputNotFound: `graphs` or `runtime` lacks a file.
        MissingDependency: the runtime cannot be fetched, or a package of the extra `onnx` is missing.
        StorageError: the folder cannot be written to, or has such files and `force` is off.
        CodecError: ONNX Runtime does not compute what torch does.
    """
    if (model is None) == (graphs is None):
        raise UsageError("a page has one codec: give either a model or a folder of exported graphs")
    if model is not None and model.channels != 1:
        raise UsageError(
            f"this model codes {model.channels} channels together; the page runs models that code each alone"
        )
    folder = Path(folder)
    files = page_files()
    targets = *files, *PACKED.values(), *RUNTIME_FILES, NETWORK
    refuse_existing(*(folder / name for name in targets), force=force)
    exported = {} if graphs is None else _exported(Path(graphs))
    weights_hash = _weights_hash(exported) if model is None else model.weights_hash
    files |= runtime_files(runtime) | {NETWORK: _network(weights_hash)}
    exported = exported if model is None else _written(model)
    files |= {PACKED[name]: packed(content) for name, content in exported.items()}
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_output(folder / name, force=force) as file:
            file.write(content)
    return {name: len(files[name]) for name in sorted(files)}


def packed(content: bytes) -> bytes:
    """gzip of the bytes at even places and then of those at odd ones, which model.js puts together again.

    Of fp16 weights, one half has signs and exponents, the other the end of the mantissa, mostly zeros in rounded
    weights; nothing repeats, so Huffman codes alone are as small as a search for repetitions and take less time.
    """
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits=31, memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)
    return compressor.compress(content[::2] + content[1::2]) + compressor.flush()


def _written(model: Codec) -> dict[str, bytes]:
    from codec.export.onnx import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, folder)
        return _exported(Path(folder))


def page_files() -> dict[str, bytes]:
    """The page's own files, by name."""
    package = Path(str(resources.files("codec")))
    found = {path.name: path.read_bytes() for path in (package / "export" / "browser").iterdir() if path.is_file()}
    if READER not in found:  # it is added when the wheel is built
        found[READER] = (package.parent / "docs" / "examples" / "read_codec.mjs").read_bytes()
    return found


def _exported(folder: Path) -> dict[str, bytes]:
    try:
        return {name: (folder / name).read_bytes() for name in (*GRAPHS, SHARED)}
    except OSError as error:
        raise InputNotFound(
            f"{error.filename} cannot be read ({error.strerror}): write it with codec export MODEL --onnx {folder}"
        ) from error


def _weights_hash(files: dict[str, bytes]) -> str:
    """The weights of exported graphs, by their metadata, which are text at the end of each file."""
    hashes = [_stated("weights_hash", files[name]) for name in GRAPHS]
    parts = {_stated("sha256", files[name]) for name in GRAPHS}
    if None in hashes or len(set(hashes)) > 1 or parts != {hashlib.sha256(files[SHARED]).hexdigest()}:
        raise UsageError(
            f"{GRAPHS[0]}, {GRAPHS[1]} and {SHARED} are not of one model: write them again with codec export MODEL "
            "--onnx DIR --force"
        )
    return str(hashes[0])


def _stated(key: str, graph: bytes) -> str | None:
    """A hash in the metadata of a graph."""
    found = re.findall(rb'"%s": "([0-9a-f]{64})"' % key.encode(), graph)
    return found[0].decode() if len(found) == 1 else None


def _network(weights_hash: str | None) -> bytes:
    paths = entropy_files.files_for(weights_hash) if weights_hash else []
    found = (path.read_bytes() for path in paths if entropy_files.weights_hash_of(path) == weights_hash)
    return next(found, b"")


def runtime_files(source: str | Path | None = None) -> dict[str, bytes]:
    """The files of ONNX Runtime, by their names in the page; `source` as `runtime` of `write_page`."""
    if source is not None:
        return _checked(_members(Path(source)), str(source))
    cache = cache_folder()
    if not all((cache / file.name).is_file() for file in RUNTIME_FILES.values()):
        _fill(cache)
    return _checked({file.name: (cache / file.name).read_bytes() for file in RUNTIME_FILES.values()}, str(cache))


def cache_folder() -> Path:
    """Where the fetched runtime is kept."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "codec" / f"{RUNTIME}-{VERSION}"


def _fill(cache: Path) -> None:
    members = _unpacked(_fetch(), f"the archive of {RUNTIME} {VERSION}")
    with storing(cache, instead="set XDG_CACHE_HOME"):
        cache.mkdir(parents=True, exist_ok=True)
    for name, content in members.items():
        with atomic_output(cache / name, force=True) as file:
            file.write(content)


def _fetch() -> bytes:
    """The archive of the pinned version."""
    settings = (os.environ.get(name) for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"))  # npm reads both
    registry = next(filter(None, settings), REGISTRY).rstrip("/")
    url = f"{registry}/{RUNTIME}/-/{RUNTIME}-{VERSION}.tgz"
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            archive: bytes = answer.read(ARCHIVE_BYTES)
        problem = "" if hashlib.sha512(archive).digest() == base64.b64decode(INTEGRITY) else "it has another SHA-512"
    except (OSError, ValueError) as error:  # no network, a status of HTTP, a registry that is not a URL
        problem = str(error)
    if problem:
        raise MissingDependency(
            f"{url} cannot be fetched ({problem}): go online once, or run `npm pack {RUNTIME}@{VERSION}` elsewhere and "
            f"pass --ort {RUNTIME}-{VERSION}.tgz"
        )
    return archive


def _members(source: Path) -> dict[str, bytes]:
    """The runtime's files in a folder of the package or in its archive, by their names in the package."""
    try:
        if source.is_file():
            return _unpacked(source.read_bytes(), str(source))
        folder = source / "dist" if (source / "dist").is_dir() else source
        return {file.name: (folder / file.name).read_bytes() for file in RUNTIME_FILES.values()}
    except OSError as error:
        raise InputNotFound(
            f"{error.filename} cannot be read ({error.strerror}): give the folder or the archive of npm's package "
            f"{RUNTIME}@{VERSION}"
        ) from error


def _unpacked(archive: bytes, label: str) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            found = {file.name: tar.extractfile(f"package/dist/{file.name}") for file in RUNTIME_FILES.values()}
            return {name: member.read() for name, member in found.items() if member is not None}
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise UsageError(
            f"{label} is not an archive of {RUNTIME} {VERSION} ({error}): write it with npm pack"
        ) from error


def _checked(members: dict[str, bytes], label: str) -> dict[str, bytes]:
    for file in RUNTIME_FILES.values():
        if hashlib.sha256(members.get(file.name, b"")).hexdigest() != file.sha256:
            raise UsageError(
                f"{file.name} in {label} is not of {RUNTIME} {VERSION}: install that version with npm, or remove the "
                "file to have it fetched again"
            )
    return {name: members[file.name] for name, file in RUNTIME_FILES.items()}
