"""The words of the tree are those of the field (docs/glossary.md), in US spelling."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".md", ".toml", ".sh", ".yml", ".html", ".js", ".mjs", ".css", ".cff"}
HISTORY = {"docs/lab-notes.md", "CHANGELOG.md"}  # which keep the words of their time
THIS = "tests/test_language.py"

# Words that a reader of EnCodec, DAC, Moshi or nanochat would have to translate, each with what to write instead.
# They match in prose and in identifiers, because an underscore does not count as a letter here.
WORDS = {
    r"told|untold|(?<!\.)(?<!def )tell(s|ing)?(?!\()": "conditional, unconditional, says, what it is",
    "heard|hear(s|ing)?": "decoded, embedded, prompt_audio",
    "anew": "again",
    "so many|so few": "N",
    "those (that|which|who|in|from|with|above|below)": "those + a noun",
    "million numbers|(weights|numbers) of [0-9]+ bits": "million parameters; fp16 weights",
    "remember(s|ed)?|nobody|at hand|in the place of": "keep, store; no one; given; instead of",
    "who(m)?ever": "anyone who",
    "for ever": "forever, without end",
    "learnt|spelt|burnt": "trained on; the US form",
    "learner(s)?|lesson(s)?|taught|by heart": "TrainState, train_data, overfit_one_batch",
    "a training(?! (run|step|loop|state|set|split|crop|batch|process|loss|pass|task|speaker|clip))": "a training run",
    "processor(s)?": "CPU",
    "as it comes": "streamed",
    "go(es|ing)? on|went on": "resume, continue",
    "book(s)?": "codebook, num_codebooks",
    "hole(s)?": "special_token",
    "judge(s|d|ment|ments)?|judging|judgement(s)?": "discriminator; score, evaluate, assess",
    "adversary|adversaries": "discriminator",
    "player(s)?": "TrainState",
    "frame_math|book_count|repetition_share": "frame_spec, num_codebooks, repetition_threshold",
    "for_steps|restart_below|joint_model": "prepare_for_inference, dead_code_threshold, ddp_model",
    "lapped": "MDCT",
    "optimise(r|d)?|optimisation": "optimizer",
    "(?<!there )(is|are|was|were|be|being) no(?! (longer|more|less|fewer|worse|better|later|earlier|other))": "is not",
    "neighbour|colour|behaviour|licence|favour|honour|centre|grey": "the US form",
}
PATTERN = re.compile(rf"(?<![a-z])(?:{'|'.join(WORDS)})(?![a-z])")  # of lower-case text, which is searched faster

# Lines that keep such a word: file, a part of the line, reason.
KEPT = [
    ("codec/checkpoint.py", '"num_codebooks": "books"', "the name in the hash of stored weights"),
    ("codec/config.py", '"adversary": "discriminator"', "a key of release 0.1.0, named in the error for it"),
    ("codec/config.py", '"model.books": "model.num_codebooks"', "a key of release 0.1.0, named in the error for it"),
    ("codec/config.py", '"optimiser": "optimizer"', "a key of release 0.1.0, named in the error for it"),
    ("codec/evaluation/classifier.py", '"learnt_from"', "a metadata key of release 0.1.0"),
    ("codec/data/token_store.py", "FORMAT_1_KEYS = ", "keys of token stores of release 0.1.0"),
    ("tests/data/test_token_store.py", "Format 1 had the keys", "keys of token stores of release 0.1.0"),
    ("tests/data/test_token_store.py", 'old = metadata | {"format": 1', "keys of token stores of release 0.1.0"),
    ("tests/data/test_token_store.py", '("num_codebooks", "books")', "keys of token stores of release 0.1.0"),
    ("tests/data/test_token_store.py", 'old["frame_math"]', "keys of token stores of release 0.1.0"),
    ("tests/datasets/miniatures.py", ".book.tsv", "a file name of LibriTTS"),
]


def room(name: str) -> str:
    """The folder of a file, at most two levels deep; all recipes are one room."""
    folders = name.split("/")[:-1]
    return "/".join(folders[:1] if folders[:1] == ["recipes"] else folders[:2]) or "."


def text_files() -> list[str]:
    """The path of every text file of the tree that is not history."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in ("codec", "docs", "findings", "recipes", "tests", "tools"):
        paths += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return [name for name in names if name not in HISTORY and name != THIS]


TEXTS = text_files()
ROOMS = sorted({room(name) for name in TEXTS})


@cache
def findings(name: str) -> list[tuple[int, str, str]]:
    """Line number, word and line of every unwanted word of a file."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    found = [(number, match[0]) for number, line in enumerate(lines) for match in PATTERN.finditer(line.lower())]
    return [(number + 1, word, lines[number].strip()) for number, word in found]


def is_kept(name: str, line: str) -> bool:
    return any(name == file and part in line for file, part, _ in KEPT)


def test_every_text_is_read() -> None:
    assert len(TEXTS) >= 200


@pytest.mark.parametrize("name", ROOMS)
def test_words_are_those_of_the_field(name: str) -> None:
    wrong = [
        f"{file}:{number}: {word!r} in: {line[:120]}"
        for file in TEXTS
        if room(file) == name
        for number, word, line in findings(file)
        if not is_kept(file, line)
    ]
    assert wrong == []


def test_each_kept_line_is_needed() -> None:
    unused = [(file, part) for file, part, _ in KEPT if not any(part in line for _, _, line in findings(file))]
    assert unused == []


@pytest.mark.parametrize(
    "text",
    [
        "what it is told",
        "heard_audio",
        "so many codes",
        "is no number",
        "a training of",
        "num_books = 3",
        "as it Comes",
    ],
)
def test_unwanted_words_are_found(text: str) -> None:
    assert PATTERN.search(text.lower())


@pytest.mark.parametrize(
    "text", ["there is no GPU", "is not a number", "a training run", "codebooks", "the whole file", "is no longer"]
)
def test_usual_words_are_not_found(text: str) -> None:
    assert not PATTERN.search(text.lower())


@pytest.mark.slow
def test_spelling() -> None:
    """Typing errors and British forms, by codespell's dictionaries; exceptions are in pyproject.toml."""
    pytest.importorskip("codespell_lib")
    result = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *TEXTS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.returncode) == ("", 0), result.stderr
