"""Rules of the project: import layers, dependencies, and the commands of the README."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import codec

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "codec"
README = ROOT / "README.md"
SCALING = ROOT / "docs" / "scaling.md"


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def layers() -> list[list[str]]:
    """The names of each layer, lowest first, from docs/architecture.md."""
    (block,) = re.findall(r"<!-- layers -->\n```\n(.*?)```\n<!-- /layers -->", ARCHITECTURE, re.DOTALL)
    lines = [line.split() for line in block.splitlines()]
    assert [line[0] for line in lines] == [str(number) for number in range(1, len(lines) + 1)]
    return [line[1:] for line in lines]


LOOKAHEAD = ("codec.training.codec.dry_run", "causal")  # a report's word for a model without lookahead
LAYERS = layers()  # a module imports only from its own layer or lower ones; a package is in one layer
WITHOUT_TORCH = (
    "errors",
    "config",
    "frames",
    "io.audio",
    "io.level",
    "io.loudness",
    "io.bitstream",
    "io.synth",
    "checkpoint",
    "pretrained",
    "data.clips",
    "cli.main",
    "datasets.prepare",
    "datasets.recipes",
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def text_of(module: str) -> str:
    return MODULES[module].read_text("utf-8")


@cache
def nodes(module: str) -> list[ast.AST]:
    """Every node of a module's syntax tree; the first is the tree itself."""
    return list(ast.walk(ast.parse(text_of(module))))


def statements(block: ast.AST) -> Iterator[ast.AST]:
    """Every statement below a module, class or function, without the parts of expressions."""
    for name in ("body", "orelse", "handlers", "finalbody", "cases"):
        for statement in getattr(block, name, ()):
            yield statement
            yield from statements(statement)


@cache
def imports(module: str) -> list[str]:
    """Imports of a module, also inside functions: modules of codec, and top-level names of other packages."""
    found = []
    for node in statements(ast.parse(text_of(module))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: write the whole name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name.split(".")[0] == "codec" and name not in MODULES:
                name = name.rpartition(".")[0]
            found.append(name if name in MODULES else name.split(".")[0])
    return found


def layer(module: str) -> int:
    part = module.split(".")[1]
    (number,) = [number for number, parts in enumerate(LAYERS) if part in parts]
    return number


def test_modules_import_only_from_lower_layers() -> None:
    inner = [module for module in MODULES if module != "codec"]
    assert len(inner) >= 29
    steps = [(module, name) for module in inner for name in imports(module) if name in MODULES and name != "codec"]
    assert len(steps) >= 80
    assert [f"{module} imports {name}" for module, name in steps if layer(name) > layer(module)] == []


def test_codec_families_are_named_in_models_alone() -> None:
    """A further family needs no change outside `codec.models`."""
    shared = {"codec.models.base", "codec.models.convert"}
    families = [module for module in MODULES if module.startswith("codec.models.") and module not in shared]
    assert "codec.models.causal" in families
    classes = {
        node.name
        for module in families
        for node in nodes(module)
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Codec", "Config"))
    }
    assert classes >= {"CausalCodec", "CausalConfig"}
    keys = {module.rpartition(".")[2] for module in families}
    uses = []
    for module in MODULES:
        if module == "codec.models" or module.startswith("codec.models."):
            continue
        uses += [f"{module} imports {name}" for name in imports(module) if name in families]
        for node in nodes(module) if any(name in text_of(module) for name in classes | keys) else ():
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) if name in classes:
                    uses.append(f"{module} names {name}")
                case ast.Constant(value=str(text)) if text in keys and (module, text) != LOOKAHEAD:
                    uses.append(f"{module} has the string {text!r}")
    assert uses == []


def test_library_does_not_print() -> None:
    calls = [
        f"{module}:{node.lineno}"
        for module in MODULES
        if "print" in text_of(module)
        for node in nodes(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_dependencies_equal_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}

    needed = names(project["dependencies"])
    extras = set().union(
        *(
            names(project["optional-dependencies"][extra])
            for extra in ("train", "eval", "cluster", "hub", "onnx", "parquet", "shar", "tags", "transformers")
        )
    )
    imported = {name for module in MODULES for name in imports(module) if name not in MODULES}
    imported -= sys.stdlib_module_names
    imported -= {"pydantic_core", "_typeshed", "PIL"}  # installed with pydantic, mypy and tensorboard
    assert needed - imported == set()
    assert imported - needed - extras == set()


def test_the_comparisons_have_their_packages() -> None:
    """What tests/peers and the benchmark import is in the extra `peers`, or installed by .ci/peers, at one release."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["peers"]
    script = (ROOT / ".ci/peers").read_text("utf-8")
    assert 'pip install ".[dev,peers]"' in script
    beside = re.search(r"^pip install --no-deps (.*)$", script, re.MULTILINE)
    assert beside
    assert f"$ {beside[0]}\n" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    pinned = {name for name in [*extra, *beside[1].split()] if "==" in name}
    modules = {"descript-audio-codec": "dac", "descript-audiotools": "audiotools"}
    installed = {modules.get(name, name) for name in (requirement.split("==")[0] for requirement in pinned)}
    text = "\n".join(
        path.read_text("utf-8") for path in [*(ROOT / "tests/peers").glob("*.py"), ROOT / "tools/bench_peers.py"]
    )
    imported = set(re.findall(r"(?:^ +from |importorskip\(\")(\w+)", text, re.MULTILINE))
    assert {"dac", "encodec", "moshi", "rustymimi", "snac", "transformers"} <= imported <= installed
    measured = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    for requirement in ("descript-audio-codec==1.0.0", "encodec==0.1.1", "moshi==0.2.13", "snac==1.2.1"):
        assert requirement in pinned
        assert requirement.replace("==", " ") in measured


def test_public_names() -> None:
    from codec.api import compress, decode_file, decompress, encode_file, evaluate
    from codec.codes import Codes
    from codec.generation import generate, infill
    from codec.lm.filters import Sampling
    from codec.models.base import Codec
    from codec.pretrained import load, load_lm
    from codec.reading import open as open_
    from codec.streams import StreamDecoder, StreamEncoder

    assert (codec.load, codec.Codec) == (load, Codec)
    assert (codec.generate, codec.infill, codec.load_lm) == (generate, infill, load_lm)
    assert (codec.Sampling, codec.Codes, codec.evaluate) == (Sampling, Codes, evaluate)
    assert (codec.compress, codec.decompress) == (compress, decompress)
    assert (codec.encode_file, codec.decode_file) == (encode_file, decode_file)
    assert (codec.StreamEncoder, codec.StreamDecoder) == (StreamEncoder, StreamDecoder)
    assert codec.open is open_
    assert dir(codec) == sorted(codec.__all__)
    functions = {"load", "load_lm", "open", "compress", "decompress", "encode_file", "decode_file", "evaluate"}
    functions |= {"generate", "infill"}
    classes = {"Codec", "Codes", "Sampling", "StreamDecoder", "StreamEncoder"}
    assert set(codec.__all__) == functions | classes | {"__version__"}
    with pytest.raises(AttributeError, match="loud"):
        codec.loud  # noqa: B018


IMPORT_EACH = """
import importlib, sys
HEAVY = {"torch", "librosa", "torchaudio"}
for module in sys.argv[1:]:
    importlib.import_module(module)
    if heavy := HEAVY & set(sys.modules):
        sys.exit(f"{module} imports {heavy}")
sys.modules["codec.pretrained"].shipped()
sys.exit(f"listing the models imports {heavy}" if (heavy := HEAVY & set(sys.modules)) else 0)
"""


@pytest.mark.slow
def test_imports_without_torch() -> None:
    modules = ["codec", *(f"codec.{name}" for name in WITHOUT_TORCH)]
    result = subprocess.run([sys.executable, "-c", IMPORT_EACH, *modules], cwd=ROOT, capture_output=True, text=True)
    assert (result.stderr, result.returncode) == ("", 0)


START = """
import json, sys
def packages(): return sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names)
before = packages()
import codec
found = [packages()]
from codec.cli.main import run
try: run(["--help"])
finally: sys.stderr.write(json.dumps([before, *found, packages()]))
"""


@pytest.mark.slow
def test_the_command_starts_without_what_computes() -> None:
    """NumPy, pydantic and torch take longer to import than a help page to print."""
    done = subprocess.run([sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after_import, after_help = map(set, json.loads(done.stderr))
    assert after_import - before == {"codec"}
    assert after_help >= {"rich", "typer"}
    assert after_help & {"numpy", "pydantic", "torch"} == set()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table of docs/architecture.md whose first heading this is."""
    (body,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", ARCHITECTURE, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]


def test_every_room_has_one_layer_and_one_row() -> None:
    named = [name for names in LAYERS for name in names]
    assert len(named) == len(set(named))
    rooms = {module.split(".")[1] for module in MODULES if module != "codec"}
    assert set(named) == rooms
    described = [name for first, _ in rows("room") for name in re.findall(r"`(\w+)`", first)]
    assert len(described) == len(set(described))
    assert set(described) == rooms - {"__main__"}


def test_jobs_name_few_existing_files() -> None:
    jobs = rows("job")
    assert len(jobs) >= 7
    for job, path in jobs:
        files = re.findall(r"`([\w/]+)`", path)
        assert 2 <= len(files) <= (12 if job.startswith("train") else 6), job
        assert [file for file in files if not (PACKAGE / f"{file}.py").is_file()] == [], job


def test_citation_has_the_version() -> None:
    assert f"\nversion: {codec.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


# The README


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 150


def test_readme_commands_are_run_by_ci() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2  # other examples are ```console or ```python
    script = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    commands = [line for block in blocks for line in block.splitlines()]
    assert [command for command in commands if command not in script] == []


def test_nightly_tests_have_what_all_tests_have() -> None:
    """Without an extra, or the programs of `.ci/browser`, tests are skipped."""
    script, workflow = ((ROOT / path).read_text("utf-8") for path in (".ci/run", ".github/workflows/ci.yml"))
    (extras,) = set(re.findall(r'pip install "\.\[(.*?)\]" && pytest', script))
    assert "\n.ci/browser\n" in script
    assert f'- run: pip install ".[{extras}]" && .ci/browser && pytest -m nightly\n' in workflow


def test_batch_size_divides_by_processes_in_docs() -> None:
    launches = re.findall(r"^\$ torchrun .*", SCALING.read_text("utf-8"), re.MULTILINE)
    assert len(launches) == 2
    for launch in launches:
        numbers = {
            name: int(number)
            for name, number in re.findall(r"(nnodes|nproc-per-node|data\.batch_size)[ =](\d+)", launch)
        }
        assert numbers["data.batch_size"] % (numbers.get("nnodes", 1) * numbers["nproc-per-node"]) == 0, launch
