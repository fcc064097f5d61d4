"""What a language model is conditioned on: classes by name, and text."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from codec.config import Config
from codec.errors import UsageError
from codec.io.level import HIGHEST_DB, LOWEST_DB, Level, stored_level
from codec.models.base import CodebookSize, NumCodebooks


class CodebookSpec(Config):
    """The codes that a language model is trained on: which codec made them, how many codebooks, and their classes.

    `dim` is the size of the vectors that the codes stand for. `classes` lists the names of every kind, for example
    {"label": ("yes", "no"), "speaker": (…)}. `level_db` is the level in dBFS (`codec.io.level`) or `loudness` that in
    LUFS (`codec.io.loudness`) to which recordings were normalized before they were encoded; None if they were not.
    """

    codec: str
    weights_hash: str
    num_codebooks: NumCodebooks
    codebook_size: CodebookSize
    dim: int = Field(ge=1, le=2**16)
    classes: dict[str, tuple[str, ...]] = Field({})
    level_db: float | None = Field(None, ge=LOWEST_DB, le=HIGHEST_DB)
    loudness: float | None = Field(None, ge=LOWEST_DB, le=HIGHEST_DB)

    @property
    def level(self) -> Level | None:
        """The level to which recordings were normalized; None if they were not."""
        return stored_level(vars(self))


class Conditioning(NamedTuple):
    """The conditioning of a batch, as numbers.

    `classes` holds indices into the names of each kind, in the order of `CodebookSpec.classes`; -1 is unconditional.
    `text` is UTF-8, padded with -1; a row without a byte is unconditional.
    """

    classes: Int[Tensor, "batch kinds"]
    text: Int[Tensor, "batch bytes"]

    def to(self, device: torch.device) -> Conditioning:
        """The same on another device."""
        return Conditioning(self.classes.to(device), self.text.to(device))

    def rows(self, first: int, last: int) -> Conditioning:
        """The rows from `first` to before `last`."""
        return Conditioning(self.classes[first:last], self.text[first:last])


class ClassConditioner(nn.ModuleList):
    """Embeddings of classes, summed over kinds: for every kind one of each name, and a last one for unconditional."""

    def __init__(self, source: CodebookSpec, width: int, *, std: float) -> None:
        super().__init__(nn.Embedding(len(names) + 1, width) for names in source.classes.values())
        self.width = width
        for weight in self.parameters():
            nn.init.normal_(weight, std=std)

    def forward(self, conditioning: Conditioning) -> Float[Tensor, "batch width"]:
        classes = conditioning.classes
        total = torch.zeros(classes.shape[0], self.width, device=classes.device)
        for kind, embedding in enumerate(self):
            assert isinstance(embedding, nn.Embedding)
            total = total + embedding(classes[:, kind] % embedding.num_embeddings)  # -1 is the last
        return total


def encode_conditions(
    rows: Sequence[Mapping[str, str]], classes: Mapping[str, Sequence[str]], *, text: bool
) -> Conditioning:
    """Conditions by name to numbers: one mapping per row, {"label": "7", "text": "yes"}, or {} for unconditional.

    `classes` lists the names of every kind; `text` says whether the model takes a text. Raises UsageError for a kind or
    a name that the model does not know.
    """
    if not rows:
        raise UsageError("there are no rows to condition: pass {} for an unconditional row")
    kinds = list(classes)
    numbers = torch.full((len(rows), len(kinds)), -1)
    texts = []
    for row, conditions in enumerate(rows):
        for kind, name in conditions.items():
            if kind == "text" and text:
                continue
            if kind not in kinds:
                known = ", ".join([*kinds, *(["text"] if text else [])])
                takes = f"it takes {known}" if known else "it is unconditional"
                raise UsageError(f"this model takes no {kind}; {takes}")
            names = classes[kind]
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1) if len(name) > 2 else []
                shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
                hint = f"did you mean {close[0]}? It" if close else "it"
                raise UsageError(f"this model knows no {kind} {name}: {hint} knows {shown}")
            numbers[row, kinds.index(kind)] = names.index(name)
        try:
            texts.append(torch.tensor(list(conditions.get("text", "").encode()), dtype=torch.int64))
        except UnicodeEncodeError as error:
            raise UsageError(f"the text cannot be encoded as UTF-8 ({error.reason}): pass another text") from error
    longest = max(map(len, texts), default=0)
    return Conditioning(numbers, torch.stack([F.pad(one, (0, longest - len(one)), value=-1) for one in texts]))
