"""README, docs/ and the READMEs of recipes: Python examples run, links resolve, options and recipe keys exist."""

import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
import torch
from pydantic import BaseModel

import codec
from codec import compression, generation, pretrained
from codec.checkpoint import save_model
from codec.io import synth
from codec.training.codec.recipe import Recipe
from codec.training.lm.recipe import LMRecipe
from tests.helpers import processes
from tests.helpers.commands import all_commands
from tests.helpers.language_models import tiny_lm
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

HISTORY = ("CHANGELOG.md", "docs/lab-notes.md")  # they keep old names

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = {"step": "50", "name": "train/loss", "value": "1.5"}


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Start line and text of each fenced block in a language."""
    text = page.read_text("utf-8")
    return [(text.count("\n", 0, block.start(2)), block[2]) for block in FENCE.finditer(text) if block[1] == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


# Python


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that examples read: recordings, a training run, and tiny models instead of the shipped ones."""
    weights, folder = tmp_path / "weights", tmp_path / "here"
    for path in (weights, folder / "runs" / "mine"):
        path.mkdir(parents=True)
    model = tiny_model()
    for name in ("general-24k", "digits-8k"):
        save_model(weights / f"{name}.safetensors", model, training={})
    source = {"codec": model.name, "weights_hash": model.weights_hash, "codebook_size": 20, "dim": 8}
    lm = tiny_lm(3, source=source | {"classes": {"label": [*"0123456789"], "speaker": ["theo"]}})
    monkeypatch.setattr(pretrained, "WEIGHTS", weights)
    monkeypatch.setattr(pretrained, "load_lm", lambda name="digits-8k-lm", device="cpu": lm)
    monkeypatch.setattr(pretrained, "codec_of", lambda lm, name=None, device="cpu": model)
    monkeypatch.setattr(generation, "MAX_SECONDS", 1.0)
    monkeypatch.chdir(folder)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (11_201, 2)).astype(np.float32)
    for name in ("voice.wav", "in.wav", "in.flac"):
        soundfile.write(name, noise, 16_000)
    (folder / "runs" / "mine" / "metrics.csv").write_text(",".join(ROW) + "\n" + ",".join(ROW.values()) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_examples_run(page: Path, here: None) -> None:
    """Run the blocks of a page in order, in one namespace; a traceback names the page and its line."""
    namespace: dict[str, Any] = {}
    for line, text in blocks(page, "python"):
        exec(compile("\n" * line + text, str(page), "exec"), namespace)


def test_pages_with_python_examples() -> None:
    found = {name for name, page in zip(NAMES, PAGES, strict=True) if blocks(page, "python")}
    assert found >= {"README.md", "docs/tokens.md", "docs/streaming.md", "docs/file-format.md", "docs/generate.md"}


def test_example_of_the_file_format() -> None:
    page = ROOT / "docs" / "file-format.md"
    (table,) = (text for _, text in blocks(page, "") if "magic" in text)
    rows = [re.fullmatch(r" *(\d+)  ((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: {2,}.*)?", line) for line in table.splitlines()]
    expected = b""
    for row in rows:
        assert row
        assert int(row[1]) == len(expected)
        expected += bytes.fromhex(row[2])
    namespace: dict[str, Any] = {}
    exec("".join(text for _, text in blocks(page, "python")), namespace)
    assert namespace["file"].getvalue() == expected
    assert f"These {len(expected)} bytes are" in page.read_text("utf-8")


@pytest.mark.slow
def test_api_reference_is_current() -> None:
    code = "import runpy; runpy.run_path('tools/api_reference.py', run_name='__main__')"
    result = processes.run(code, "--check")
    assert result.returncode == 0, result.stderr


def test_api_page_names_everything_public() -> None:
    """Every name of the package and every public member of its classes, with all parameters."""
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(?:codec\.)?(\w+)(.*?)` \|", page, re.MULTILINE))
    checked = 0
    for kind in (codec, codec.Codec, codec.Codes, codec.StreamEncoder, codec.StreamDecoder):
        names = codec.__all__ if kind is codec else vars(kind)
        for name in names:
            member = getattr(kind, name)
            if name.startswith("_") or not (callable(member) or isinstance(member, property)):
                continue
            checked += 1
            assert name in rows, f"{kind.__name__}.{name}"
            assert inspect.getdoc(member), f"{kind.__name__}.{name} has no docstring"
    assert checked >= 40


# Links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_and_images_exist() -> None:
    links = [(page, *match) for page in PAGES for match in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", prose(page))]
    links = [link for link in links if "://" not in link[1]]
    assert len(links) >= 80
    broken = []
    for page, target, anchor in links:
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(f"{page.relative_to(ROOT)}: {target}{'#' * bool(anchor)}{anchor}")
    assert broken == []


def test_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    missing = [name for name in NAMES if name.startswith("docs/") and f"({name}" not in readme]
    assert missing == []


# The command line


def command_options() -> dict[str, set[str]]:
    """The options of each command."""
    return {
        name: {text for option in command.params for text in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
        for name, command in all_commands().items()
    }


def codec_commands(text: str) -> Iterator[list[str]]:
    """The arguments of each `codec` command in shell text."""
    for line in text.replace("\\\n", " ").splitlines():
        part: list[str] = []
        for word in [*shlex.split(line, comments=True), "|"]:
            if word not in ("|", "&&"):
                part.append(word)
                continue
            if "codec" in part and (part[0] == "codec" or part[part.index("codec") - 1] == "-m"):
                yield part[part.index("codec") + 1 :]
            part = []


def console(page: Path) -> list[str]:
    """The commands of a page's console blocks: lines after "$ ", with continuation lines."""
    text = "\n".join(text for _, text in blocks(page, "console"))
    return re.findall(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE)


def shell(page: Path) -> str:
    """The bash blocks of a page and the commands of its console blocks."""
    return "\n".join([*(text for _, text in blocks(page, "bash")), *console(page)])


def inline(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def test_commands_and_options_exist() -> None:
    known = command_options()
    checked, wrong = 0, []
    for name, page in zip(NAMES, PAGES, strict=True):
        if name in HISTORY:
            continue
        commands = [*codec_commands(shell(page))]
        commands += [text.split()[1:] for text in inline(page) if text.startswith("codec ") and "'" not in text]
        for words in commands:
            pair = " ".join(words[:2])
            command = pair if pair in known else (words or [""])[0]
            options = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
            checked += 1
            if command.startswith("--"):
                continue
            if command not in known:
                wrong.append(f"{name}: codec {command}")
                continue
            wrong += [f"{name}: codec {command} {option}" for option in options if option not in known[command]]
    assert checked >= 60
    assert wrong == []


def test_options_in_prose_exist() -> None:
    known = set().union(*command_options().values()) | {"--version"}
    pages = [page for name, page in zip(NAMES, PAGES, strict=True) if name.startswith("docs/") and "lab-" not in name]
    found = [(page.name, text) for page in pages for text in inline(page) if re.match(r"--[a-z]", text)]
    assert len(found) >= 20
    assert [each for each in found if re.split(r"[ =]", each[1])[0] not in known] == []


def keys(annotation: Any, prefix: str = "") -> set[str]:
    """Dotted names of all keys of a configuration, including all members of unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return {prefix + name for name, _ in fields}.union(
            *(keys(field.annotation, f"{prefix}{name}.") for name, field in fields)
        )
    return set().union(*(keys(each, prefix) for each in get_args(annotation)))


def test_recipe_keys_exist() -> None:
    known = keys(Recipe) | keys(LMRecipe)
    assert {"train.steps", "model.pattern.kind", "data.batch_size"} <= known
    pages = [page for name, page in zip(NAMES, PAGES, strict=True) if name not in HISTORY]
    found = [(page, key) for page in pages for key in re.findall(r"--set '?([a-z][\w.]*)=", page.read_text("utf-8"))]
    tables = "|".join(sorted(Recipe.model_fields))
    set_or_named = re.compile(rf"'?((?:{tables})(?:\.\w+)*) ?=.*|((?:{tables})(?<!model)\.[\w.]+)")
    for page in pages:
        matches = (set_or_named.fullmatch(text) for text in inline(page))
        found += [(page, match[1] or match[2]) for match in matches if match]
    assert len(found) >= 30
    assert [f"{page.relative_to(ROOT)}: {key}" for page, key in found if key not in known] == []


# Commands, run (`pytest -m nightly tests/test_docs.py`)

NOT_RUN = {
    r"pip install|pre-commit|pytest|ruff|\.ci/|python3 -m venv": "sets up or checks a development environment",
    r"codec prepare (?!general)\w|ljspeech": "downloads a dataset",
    r"torchaudio:": "needs a dataset that was downloaded, and torchaudio",
    r"torchrun|--engine ray": "needs several processes, GPUs or machines",
    r"dac-44khz|encodec-24khz|hf:": "downloads a model",
    r"weights_24khz|encodec_24khz|mimi\.safetensors|dac\.safetensors|xcodec2": "needs a model of another project",
    r"arecord|microphone": "needs a microphone",
    r"codec page|http\.server": "downloads ONNX Runtime for browsers, and serves until it is stopped",
    r"(python|node) tools/": "takes minutes; tests/test_tools.py runs the tools on small data",
}
IF_INSTALLED = {"opusenc": "--baseline opus", "c2enc": "codec2:", "jq": "jq "}
TRAINED = {  # training runs that a page uses but does not train
    "README.md": {"music": "digits-8k-lm"},
    "docs/compress.md": {"mine": "general-24k"},
    "docs/generate.md": {"music": "digits-8k-lm", "digits-lm": "digits-8k-lm"},
}
# Training stops after two steps; few samples are scored by one classifier, which takes
# minutes to train; outputs are replaced, because pages show alternatives. What stops reading ends an endless
# stream, whose status then is not zero.
PREAMBLE = r"""
set -o pipefail
codec() {
  command=$1
  case "$*" in
    train*--dry-run*|train*--overfit-batch*) "$PYTHON" -m codec "$@" ;;
    train*/lm*) "$PYTHON" -m codec "$@" --steps 2 ;;
    train*--resume*) "$PYTHON" -m codec "$@" --steps 3 --set data.init_seconds=20 ;;
    train*) "$PYTHON" -m codec "$@" --steps 2 --set data.init_seconds=20 ;;
    evaluate-lm*) "$PYTHON" -m codec "$@" --samples 20 --classifier "$CLASSIFIER" ;;
    encode*|decode*|generate*|sample*|tokenize*) shift; "$PYTHON" -m codec "$command" --force "$@" ;;
    *) "$PYTHON" -m codec "$@" ;;
  esac
}
aplay() { head -c 100000 > /dev/null; }
python() {
  case "$1" in
    */gpt.py) "$PYTHON" "$@" --steps 2 ;;
    *) "$PYTHON" "$@" ;;
  esac
}
"""


def write_parquet(path: Path, recordings: list[Path]) -> None:
    """A file of a Hugging Face dataset."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    audio = [{"bytes": recording.read_bytes(), "path": recording.name} for recording in recordings]
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"audio": audio}), path)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, generated by the shipped language model, under every name that the pages use."""
    folder = tmp_path_factory.mktemp("examples")
    recordings = folder / "recordings"
    splits = {"george": "train", "theo": "valid"}
    for split in splits.values():
        (recordings / split).mkdir(parents=True)
        for number in range(2):  # not in the manifest; long enough for the crops of the recipes
            soundfile.write(recordings / split / f"sample-{number}.flac", synth.synthesize().T, synth.RATE)
    model = pretrained.load_lm("digits-8k-lm")
    rows = []
    for label, (speaker, split) in itertools.product("0123456789", splits.items()):
        audio = torch.cat(list(generation.generate(model, label=label, speaker=speaker, seed=0)), dim=2)
        path = f"{split}/{label}.flac"
        soundfile.write(recordings / path, audio[0, 0].numpy(), 8000)
        rows.append({"path": path, "label": label, "speaker": speaker, "transcript": label, "split": split})
    (recordings / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = shutil.ignore_patterns("[2-9].flac", "manifest.jsonl")
    for name in ("albums/one", "other_recordings", "corpus", "valid", "speech", "LibriSpeech/test-clean/1/2"):
        shutil.copytree(recordings, folder / name, ignore=few)
    shutil.copytree(recordings, folder / "DIR")
    (folder / "DIR" / "manifest.jsonl").rename(folder / "DIR" / "four.jsonl")
    soundfile.write(folder / "talk.flac", synth.synthesize().T, synth.RATE)
    content = "".join(json.dumps(row | {"path": f"recordings/{row['path']}"}) + "\n" for row in rows)
    (folder / "corpus.jsonl").write_text(content)
    write_parquet(folder / "librispeech_asr/clean/train.parquet", [recordings / row["path"] for row in rows])
    for name in ("talk", "more", "song"):
        soundfile.write(folder / f"{name}.wav", synth.synthesize().T, synth.RATE)
    compression.compress(folder / "more.wav", folder / "song.codec", model="digits-8k", device="cpu")
    for name in ("beginning", "damaged"):
        soundfile.write(folder / f"{name}.wav", *soundfile.read(recordings / "valid" / "7.flac"))
    (folder / "codes.jsonl").touch()
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in NAMES if console(ROOT / name) and "recipes/" not in name])
def test_console_commands_run(name: str, examples: Path, tmp_path: Path) -> None:
    """Run the commands of a page in order, in one folder, with the shipped models; training stops after two steps."""
    folder = tmp_path / "page"
    shutil.copytree(examples, folder, symlinks=True)
    for run, model in TRAINED.get(name, {}).items():
        (folder / "runs" / run).mkdir(parents=True)
        shutil.copy(pretrained.find(model), folder / "runs" / run / "model.safetensors")
    classifier = examples.with_name("classifier.safetensors")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "CLASSIFIER": str(classifier)}
    for command in console(ROOT / name):
        if any(re.search(pattern, command) for pattern in NOT_RUN):
            continue
        if any(part in command and not shutil.which(program) for program, part in IF_INSTALLED.items()):
            continue
        ends_early = "set +o pipefail\n" if "| aplay" in command else ""
        result = subprocess.run(
            ["bash", "-c", PREAMBLE + ends_early + command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{name}: {command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
