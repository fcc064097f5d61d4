"""A neural audio codec: recordings to tokens and back, and new ones from language models of tokens.

    import codec

    model = codec.load("general-24k")
    codes = model.encode(audio)  # [batch, 1, time] at model.config.sample_rate -> int64 [batch, books, frames]
    audio = model.decode(codes)

    for block in codec.generate(label="7"):  # [1, 1, time], while it is being made
        speaker.play(block)

Names are imported when first used, so that `import codec` alone stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codec.generation import generate as generate
    from codec.generation import infill as infill
    from codec.hub import load as load
    from codec.hub import load_lm as load_lm
    from codec.lm.sampling import Sampling as Sampling
    from codec.models.base import Codec as Codec
    from codec.sessions import StreamDecoder as StreamDecoder
    from codec.sessions import StreamEncoder as StreamEncoder

__version__ = "0.2.0"
__all__ = [
    "Codec",
    "Sampling",
    "StreamDecoder",
    "StreamEncoder",
    "__version__",
    "generate",
    "infill",
    "load",
    "load_lm",
]

_HOMES = {
    "Codec": "codec.models.base",
    "Sampling": "codec.lm.sampling",
    "StreamDecoder": "codec.sessions",
    "StreamEncoder": "codec.sessions",
    "generate": "codec.generation",
    "infill": "codec.generation",
    "load": "codec.hub",
    "load_lm": "codec.hub",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'codec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
