"""Tags of recordings: title, artist, ..., and a cover picture; read and written by mutagen where it is installed.

The texts of chunks that mutagen does not know (INFO of WAV, NAME and AUTH of AIFF, info of CAF) are read and written by
libsndfile.

Names are those of Vorbis comments in lower case ("title", "artist", "album", "date", "tracknumber", "genre",
"comment"); a name may occur several times. In a .codec file, tags are the body of a packet of their own:

    v  texts; for each: t name, t text
    t  media type of the cover picture, empty without one
    b  cover picture
"""

import base64
import io
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import soundfile

from codec.errors import CodecError, ConfigError, StorageError
from codec.io.fields import Fields, sized, varint

MAX_TEXT = MAX_COVER = 1 << 16  # bytes
MAX_TEXTS = 1024
MAX_BYTES = MAX_TEXT + MAX_COVER + 20 * (MAX_TEXTS + 2) + 256  # of the packet's body

_FRONT = 3  # type of a front cover in FLAC and ID3
_32_BIT = ("AIFF", "WAV", "WAVEX")
_32_BIT_LIMIT = 2**32 - 2 * MAX_BYTES
_LEFT_OUT = {"encoder", "metadata_block_picture", "coverart", "software"}  # of the source's file, not of the recording
# Names that libsndfile gives to the texts of a file, and the containers in which it writes them beside mutagen's.
_STRINGS = ("title", "artist", "album", "date", "tracknumber", "genre", "comment", "copyright", "license")
_WITH_STRINGS = ("AIFF", "CAF", "RF64", "WAV", "WAVEX")
_OF_MUTAGEN = ("AIFF", "FLAC", "MP3", "OGG", "WAV", "WAVEX")  # containers in which mutagen writes tags
_ID3 = {
    "TIT2": "title",
    "TPE1": "artist",
    "TALB": "album",
    "TDRC": "date",
    "TRCK": "tracknumber",
    "TCON": "genre",
    "TPE2": "albumartist",
    "TCOM": "composer",
    "TPOS": "discnumber",
    "TCOP": "copyright",
    "TPUB": "organization",
    "TSRC": "isrc",
    "TBPM": "bpm",
    "TEXT": "lyricist",
    "TLAN": "language",
}
_ID3_OF = {name: frame for frame, name in _ID3.items()}

Text = tuple[str, str]


class Cover(NamedTuple):
    """A picture."""

    media_type: str
    """Such as "image/jpeg"."""
    data: bytes


@dataclass(frozen=True)
class Tags:
    """Names and texts in their order, and a cover; false without any. Raises ConfigError beyond 64 KiB of either."""

    texts: tuple[Text, ...] = ()
    cover: Cover | None = None

    def __post_init__(self) -> None:
        if len(self.texts) > MAX_TEXTS or sum(map(_size, self.texts)) > MAX_TEXT:
            raise ConfigError(f"a .codec file holds {MAX_TEXTS} tags of {MAX_TEXT} bytes in all: leave some out")
        if self.cover and (not self.cover.data or not self.cover.media_type or _cover_size(self.cover) > MAX_COVER):
            raise ConfigError(f"a cover picture has 1 to {MAX_COVER} bytes and a media type: make it smaller")

    def __bool__(self) -> bool:
        return bool(self.texts or self.cover)

    def to_bytes(self) -> bytes:
        """The body of the packet."""
        texts = b"".join(sized(name.encode()) + sized(text.encode()) for name, text in self.texts)
        media_type, data = self.cover or ("", b"")
        return varint(len(self.texts)) + texts + sized(media_type.encode()) + sized(data)

    @classmethod
    def from_bytes(cls, body: bytes) -> "Tags":
        """The inverse of `to_bytes`. Raises ValueError and ConfigError."""
        fields = Fields(body)
        count = fields.varint()
        if count > MAX_TEXTS:
            raise ValueError(f"{count} tags")
        texts = tuple((fields.text(), fields.text()) for _ in range(count))
        cover = Cover(fields.text(), fields.content())
        return cls(texts, cover if cover.data else None)

    def by_name(self) -> dict[str, list[str]]:
        """The texts of each name."""
        found: dict[str, list[str]] = {}
        for name, text in self.texts:
            found.setdefault(name, []).append(text)
        return found


def _size(text: Text) -> int:
    return sum(len(part.encode()) for part in text)


def _cover_size(cover: Cover) -> int:
    return len(cover.media_type.encode()) + len(cover.data)


NO_TAGS = Tags()


Found = tuple[Tags, tuple[str, ...]]
"""Tags, and what of a file's tags a .codec file cannot hold."""


def read(file: BinaryIO, *, container: str = "", strings: Iterable[Text] = ()) -> Found:
    """The tags of an audio file; none without mutagen, or if they are damaged.

    `container` is libsndfile's name of the format, `strings` are the texts that
    libsndfile found; they are added where their names are new.
    """
    try:
        import mutagen  # noqa: F401
    except ImportError:
        return NO_TAGS, ()
    texts: list[Text] = []
    covers: list[tuple[int, Cover]] = []
    with suppress(Exception):  # mutagen raises what its parsers raise, and tags must not cost the recording
        texts, covers = _found(file, container)
    if container not in ("FLAC", "MP3", "OGG"):  # whose tags mutagen has found
        known = {name for name, _ in texts}
        texts += [(name, text) for name, text in strings if name not in known]
    return bounded(texts, covers)


def read_wav_header(header: bytes) -> Found:
    """The tags in the chunks of a WAV stream before its samples; `header` ends with the name and size of `data`."""
    size = struct.pack("<I", len(header) - 8)
    file = io.BytesIO(header[:4] + size + header[8:-4] + bytes(4))  # a file without samples
    strings: Iterable[Text] = ()
    with suppress(soundfile.LibsndfileError), soundfile.SoundFile(file) as opened:
        strings = opened.copy_metadata().items()
    return read(file, container="WAV", strings=strings)


def bounded(found: Iterable[Text], covers: list[tuple[int, Cover]]) -> Found:
    """Texts and pictures with their ID3 types, as far as a .codec file holds them."""
    texts = [(name, text) for name, text in found if text and name not in _LEFT_OUT]
    kept: list[Text] = []
    left = MAX_TEXT
    for text in texts:
        if len(kept) < MAX_TEXTS and _is_text(text) and _size(text) <= left:
            kept.append(text)
            left -= _size(text)
    notes = [f"{len(texts) - len(kept)} tags are left out: a .codec file holds {MAX_TEXT} bytes of text"]
    fitting = [(kind, cover) for kind, cover in covers if cover.media_type and 0 < _cover_size(cover) <= MAX_COVER]
    cover = min(fitting, key=lambda one: one[0] != _FRONT)[1] if fitting else None
    notes = notes if len(kept) < len(texts) else []
    if covers and cover is None:
        notes.append(f"the cover picture is left out: a .codec file holds one of {MAX_COVER} bytes")
    return Tags(tuple(kept), cover), tuple(notes)


def _is_text(text: Text) -> bool:
    with suppress(UnicodeEncodeError):  # a lone surrogate
        return _size(text) > 0
    return False


def _found(file: BinaryIO, container: str) -> tuple[list[Text], list[tuple[int, Cover]]]:
    """All texts and pictures of a file that mutagen reads. Raises whatever mutagen raises."""
    import mutagen
    from mutagen.flac import FLAC
    from mutagen.id3 import ID3
    from mutagen.mp3 import MP3
    from mutagen.ogg import OggFileType

    file.seek(0)
    # mutagen knows MP3 by a tag or by a suffix, and a pipe has no name
    found = MP3(file) if container == "MP3" else mutagen.File(file)
    tags = getattr(found, "tags", None)
    if isinstance(tags, ID3):
        pictures = [(int(frame.type), Cover(frame.mime, frame.data)) for frame in tags.getall("APIC")]
        return list(_texts_of_id3(tags)), pictures
    if isinstance(found, FLAC | OggFileType):
        pictures = [(int(one.type), Cover(one.mime, one.data)) for one in _pictures(found)]
        return [(name.lower(), text) for name, text in list.__iter__(tags or [])], pictures
    return [], []


def _texts_of_id3(tags: Any) -> Iterator[Text]:
    for frame in tags.values():
        match frame.FrameID:
            case "TXXX":
                yield from ((frame.desc.lower(), text) for text in frame.text)
            case "COMM":
                name = "comment" if frame.desc in ("", "ID3v1 Comment") else frame.desc.lower()
                yield from ((name, text) for text in frame.text)
            case "TCON":
                yield from (("genre", genre) for genre in frame.genres)
            case known if known in _ID3:
                yield from ((_ID3[known], str(text)) for text in frame.text)


def _pictures(found: Any) -> Iterator[Any]:
    from mutagen.flac import Picture

    yield from getattr(found, "pictures", ())
    for coded in (found.tags or {}).get("metadata_block_picture", ()):
        yield Picture(base64.b64decode(coded))


def set_strings(file: soundfile.SoundFile, tags: Tags) -> None:
    """Let libsndfile write the texts for which its format has chunks; before the first sample."""
    if file.format not in _WITH_STRINGS:
        return
    for name, texts in tags.by_name().items():
        if name in _STRINGS:
            setattr(file, name, "; ".join(texts).replace("\0", " "))


def write(file: BinaryIO, tags: Tags, *, container: str, label: str) -> tuple[str, ...]:
    """Put tags into a complete audio file that is open for reading and writing; return notes on what it cannot hold.

    `container` is libsndfile's name of the format.
    Raises StorageError.
    """
    size = file.seek(0, 2)
    if container not in _OF_MUTAGEN or (container in _32_BIT and size >= _32_BIT_LIMIT):
        return _not_restored(tags, container)
    try:
        import mutagen
        from mutagen.flac import FLAC
        from mutagen.mp3 import MP3
        from mutagen.ogg import OggFileType
    except ImportError:
        return ("tags are not restored without mutagen: pip install '.[tags]' in the project's folder",)
    file.seek(0)
    try:
        # mutagen knows MP3 by a tag or by a suffix, and this file has neither
        found = MP3(file) if container == "MP3" else mutagen.File(file)
        if isinstance(found, FLAC | OggFileType):
            _to_comments(found, tags)
        else:
            _to_id3(found, tags)
        file.seek(0)
        found.save(file)
    except CodecError:
        raise
    except Exception as error:  # mutagen raises what its parsers raise
        raise StorageError(f"{label}: its tags cannot be written ({error}): write .wav, or another folder") from error
    return ()


def _not_restored(tags: Tags, container: str) -> tuple[str, ...]:
    """What a file without ID3 tags and comments cannot hold."""
    kept = _STRINGS if container in _WITH_STRINGS else ()
    missing = [name for name in tags.by_name() if name not in kept] + ["the cover picture"] * bool(tags.cover)
    if not missing:
        return ()
    what = "tags are" if not kept else f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'}"
    return (f"{what} not restored: .flac, .ogg, .mp3, .wav and .aiff files up to 4 GiB hold them",)


def _to_comments(found: Any, tags: Tags) -> None:
    from mutagen.flac import Picture

    if found.tags is None:
        found.add_tags()
    for name, text in tags.texts:
        found.tags.append((_comment_name(name), text))
    if tags.cover:
        picture = Picture()
        picture.type, picture.mime, picture.data = _FRONT, tags.cover.media_type, tags.cover.data
        if hasattr(found, "add_picture"):
            found.add_picture(picture)
        else:
            found.tags.append(("metadata_block_picture", base64.b64encode(picture.write()).decode()))


def _comment_name(name: str) -> str:
    """A name with the characters of Vorbis comments: printable ASCII without "="."""
    return "".join(one if " " <= one <= "}" and one != "=" else "_" for one in name) or "_"


def _to_id3(found: Any, tags: Tags) -> None:
    from mutagen import id3

    if found.tags is None:
        found.add_tags()
    for name, texts in tags.by_name().items():
        if name == "comment":
            found.tags.add(id3.COMM(encoding=3, lang="XXX", desc="", text=texts))
        elif frame := _ID3_OF.get(name):
            found.tags.add(getattr(id3, frame)(encoding=3, text=texts))
        else:
            found.tags.add(id3.TXXX(encoding=3, desc=name, text=texts))
    if tags.cover:
        found.tags.add(id3.APIC(encoding=3, mime=tags.cover.media_type, type=_FRONT, desc="", data=tags.cover.data))
