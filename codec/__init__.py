"""A neural audio codec: encode recordings to tokens, decode them, and generate audio with token language models.

    import codec

    model = codec.load("general-24k")
    codes = model.encode(audio)  # [batch, 1, time] at model.sample_rate -> int64 [batch, codebooks, frames]
    audio = model.decode(codes)

    codec.encode_file("song.flac", "song.codec", bitrate=6)  # and codec.compress(bytes) -> bytes in memory
    codec.decode_file("song.codec", "song.wav")
    second = codec.open("song.codec")[44_100:88_200]  # any part, [channels, time]

    for block in codec.generate(label="7"):  # [1, 1, time], streamed
        speaker.play(block)

Names are imported on first use, so that `import codec` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codec.api import compress as compress
    from codec.api import decode_file as decode_file
    from codec.api import decompress as decompress
    from codec.api import encode_file as encode_file
    from codec.api import evaluate as evaluate
    from codec.codes import Codes as Codes
    from codec.generation import generate as generate
    from codec.generation import infill as infill
    from codec.lm.filters import Sampling as Sampling
    from codec.models.base import Codec as Codec
    from codec.pretrained import load as load
    from codec.pretrained import load_lm as load_lm
    from codec.reading import open as open  # noqa: A004 (used as codec.open)
    from codec.streams import StreamDecoder as StreamDecoder
    from codec.streams import StreamEncoder as StreamEncoder

__version__ = "0.2.0"
__all__ = [
    "Codec",
    "Codes",
    "Sampling",
    "StreamDecoder",
    "StreamEncoder",
    "__version__",
    "compress",
    "decode_file",
    "decompress",
    "encode_file",
    "evaluate",
    "generate",
    "infill",
    "load",
    "load_lm",
    "open",
]

_HOMES = {
    "Codec": "codec.models.base",
    "Codes": "codec.codes",
    "Sampling": "codec.lm.filters",
    "StreamDecoder": "codec.streams",
    "StreamEncoder": "codec.streams",
    "compress": "codec.api",
    "decode_file": "codec.api",
    "decompress": "codec.api",
    "encode_file": "codec.api",
    "evaluate": "codec.api",
    "generate": "codec.generation",
    "infill": "codec.generation",
    "load": "codec.pretrained",
    "load_lm": "codec.pretrained",
    "open": "codec.reading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'codec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
