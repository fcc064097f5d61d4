"""Layout that LibriSpeech and LibriTTS share: PART/SPEAKER/CHAPTER/ with recordings and one file of transcripts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Layout

DEFAULT = ("train-clean-100", "dev-clean", "test-clean")
SPLITS = {"train": "train", "dev": "valid", "test": "test"}

Transcripts = Callable[[Sequence[str]], dict[str, str]]
"""Lines of a file of transcripts -> transcript by recording."""


def archives(root: str, resource: int, known: Mapping[str, tuple[int, str]]) -> dict[str, Archive]:
    """Archives at OpenSLR by part, from their sizes and SHA-256 checksums."""
    return {
        part: Archive(
            f"http://www.openslr.org/resources/{resource}/{part}.tar.gz",
            holds=f"{root}/{part}",
            size=size,
            sha256=sha256,
        )
        for part, (size, sha256) in known.items()
    }


def layout(root: str, *, audio: str, transcripts: str, read: Transcripts) -> Layout:
    """Clips of a corpus in `root`, by the file name patterns of recordings and transcripts.

    A part's name begins with its split; no speaker is in two splits. Names that begin with a dot are skipped, because
    LibriTTS has the ._ files of macOS.
    """

    def clips(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
        for part in parts:
            split = SPLITS[part.split("-")[0]]
            for chapter in sorted((folder / root / part).glob("*/*/")):
                files = [path for path in chapter.glob(transcripts) if path.name[0] != "."]
                texts = read([line for path in files for line in path.read_text("utf-8").splitlines()])
                speaker = chapter.parent.name
                for path in sorted(path for path in chapter.glob(audio) if path.name[0] != "."):
                    text = texts.get(path.stem)
                    yield Clip(path, path.name, set=part, split=split, speaker=speaker, transcript=text)

    return clips
