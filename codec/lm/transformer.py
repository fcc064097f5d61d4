"""The default language model: a transformer over steps, and if wanted a small one over the books of each step.

    column of the step before -> vectors of its codes, all books together -> Transformer over time
                                                                                     |
        heads: every book from what time knows alone <------------------------------ + -----> depth: a Transformer over
        (with a pattern that tells books apart)                                                the books of this step

The depth transformer sees the sum of the vectors chosen so far, which is the recording as far as it is decided (Lee et
al. 2022, section 3.2.2; Moshi, Défossez et al. 2024, section 3.4).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from codec.config import Config
from codec.errors import ConfigError
from codec.lm.base import Classes, CodeVectors, Column, Conditions, Pick, Prior, PriorConfig, Source
from codec.nn.attention import Memory, Transformer, TransformerState
from codec.nn.shapes import Codes, Logits

BYTES = 256


class DepthConfig(Config):
    """The transformer over the books of a step."""

    width: int = Field(128, ge=2)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    cumulative: bool = True
    """Each book sees the sum of the vectors before it; otherwise the last one, and the others through attention."""


class TransformerConfig(PriorConfig):
    """A transformer over steps, with one head per book, or with a depth transformer where `depth` is given."""

    family: Literal["transformer"] = "transformer"
    width: int = Field(256, ge=2)
    layers: int = Field(6, ge=1)
    heads: int = Field(4, ge=1)
    context: int = Field(512, ge=1, le=2**24)
    """Steps that a step can look back on, itself included."""
    dropout: float = Field(0.0, ge=0, lt=1)
    depth: DepthConfig | None = None
    text: bool = False
    """Whether it can be told a text, through attention in every layer."""


class LMState(NamedTuple):
    """Where it is in time, what it was told, and the rings in which each step decides its books."""

    time: TransformerState
    told: Tensor
    books: TransformerState | None


class Known(NamedTuple):
    """What is known of a step before its first book is decided [batch, width], and the rings to decide them in."""

    known: Tensor
    books: TransformerState | None


class TokenLM(Prior):
    """A GPT over the columns of a pattern. Raises ConfigError for a configuration that makes none."""

    config: TransformerConfig
    added: Tensor | None
    """What each code adds to the input of a step [books * (codebook_size + 1), width], known after `for_steps`."""
    first_rows: Tensor
    """Where the codes of each book begin there [books, 1]."""

    def __init__(self, config: TransformerConfig, source: Source) -> None:
        super().__init__(config, source)
        if config.depth and self.pattern.per_frame > 1:
            raise ConfigError(
                f'model.depth decides all books of a step one by one, pattern kind = "{config.pattern.kind}" does so '
                "too: take away one of them"
            )
        books, dim, width = source.books, source.dim, config.width
        classes = source.codebook_size + 1
        self.vectors = CodeVectors(source, config.vectors)
        self.listen = nn.Linear(books * dim, width, bias=False)
        self.told = Classes(source, width, std=0.5)
        self.phase = nn.Embedding(self.pattern.period, width) if self.pattern.period > 1 else None
        self.time = Transformer(
            width,
            layers=config.layers,
            heads=config.heads,
            context=config.context,
            memory=config.text,
            dropout=config.dropout,
        )
        self.text = TextEncoder(width, heads=config.heads, dropout=config.dropout) if config.text else None
        self.depth = Depth(config.depth, source, width, config.dropout) if config.depth else None
        self.heads = None if config.depth else nn.Linear(width, books * classes, bias=False)
        self.register_buffer("added", None, persistent=False)
        self.register_buffer("first_rows", classes * torch.arange(books)[:, None], persistent=False)
        if self.phase:
            nn.init.normal_(self.phase.weight, std=0.5)
        nn.init.normal_(self.listen.weight, std=(books * dim) ** -0.5)
        if self.heads:
            nn.init.normal_(self.heads.weight, std=0.02)

    def forward(self, columns: Codes, conditions: Conditions) -> Logits:
        x = self.heard(self.shifted(columns), 0, self.told(conditions))
        known = self.time(x, self.memory(conditions))
        if self.depth:
            return self.without_end(self.depth(known, self.vectors(columns)))
        assert self.heads
        logits = rearrange(
            self.heads(known), "batch steps (books code) -> batch books steps code", books=columns.shape[1]
        )
        return self.without_end(logits)

    def initial_state(self, conditions: Conditions) -> LMState:
        told = self.told(conditions)
        books = self.depth.net.initial_state(told) if self.depth else None
        return LMState(self.time.initial_state(told, self.memory(conditions)), told, books)

    def advance(self, column: Column, state: LMState) -> tuple[Known, LMState]:
        x = self.heard(column[:, :, None], state.time.seen, state.told)
        known, time = self.time.advance(x, state.time)
        return Known(known[:, 0], state.books), state._replace(time=time)

    def decide(self, context: Known, pick: Pick) -> Column:
        known, books = context
        if self.depth:
            assert books
            return self.depth.decide(known, pick, self.vectors, books)
        assert self.heads
        logits = self.heads(known).view(len(known), self.source.books, -1)  # [batch, books, classes]
        return pick(self.without_end(logits), 0)

    @torch.no_grad()
    def for_steps(self) -> Self:
        books, classes = self.source.books, self.source.codebook_size + 1
        every = torch.arange(classes, device=self.device).expand(1, books, -1)
        vectors = self.vectors.alike(every)[0].view(classes, books, -1)
        weight = self.listen.weight.view(self.config.width, books, -1)
        self.added = torch.einsum("cbd,wbd->bcw", vectors, weight).flatten(0, 1)
        if self.depth:
            self.depth.added = self.depth.listen(self.vectors(every)[0])
        return super().for_steps()

    # the parts of a step

    def heard(self, before: Codes, first: int, told: Tensor) -> Tensor:
        """Inputs [batch, steps, width] of the steps from `first` on, given the columns before each."""
        x: Tensor
        if self.added is None:
            x = self.listen(self.vectors.alike(before)) + told[:, None]
        else:
            x = F.embedding(before + self.first_rows, self.added).sum(dim=1) + told[:, None]
        if self.phase is not None:
            phases = torch.arange(first, first + before.shape[-1], device=x.device) % self.pattern.period
            x = x + self.phase(phases)
        return x

    def memory(self, conditions: Conditions) -> Memory | None:
        """The text as the layers see it."""
        return None if self.text is None else self.time.remember(*self.text(conditions.text))


class Depth(nn.Module):
    """A transformer over the books of a step: what time knows comes first, then book after book."""

    added: Tensor | None
    """What each code adds to the input of the next book [books, codebook_size + 1, width], known for steps."""

    def __init__(self, config: DepthConfig, source: Source, width: int, dropout: float) -> None:
        super().__init__()
        self.books = source.books
        self.cumulative = config.cumulative
        self.known = nn.Linear(width, config.width, bias=False)
        self.listen = nn.Linear(source.dim, config.width, bias=False)
        self.book = nn.Parameter(0.02 * torch.randn(source.books, config.width))
        self.net = Transformer(
            config.width, layers=config.layers, heads=config.heads, context=source.books, dropout=dropout
        )
        self.heads = nn.Parameter(0.02 * torch.randn(source.books, config.width, source.codebook_size + 1))
        self.register_buffer("added", None, persistent=False)
        nn.init.normal_(self.known.weight, std=width**-0.5)
        nn.init.normal_(self.listen.weight, std=source.dim**-0.5)

    def forward(self, known: Tensor, vectors: Tensor) -> Logits:
        """Logits, given what time knows [batch, steps, width] and the columns' vectors [batch, books, steps, dim]."""
        batch, steps, _ = known.shape
        above = torch.zeros_like(vectors)
        above[:, 1:] = (vectors.cumsum(dim=1) if self.cumulative else vectors)[:, :-1]
        x = self.known(known)[:, :, None] + self.listen(above).transpose(1, 2) + self.book
        x = self.net(x.flatten(0, 1)).view(batch, steps, self.books, -1)
        return torch.einsum("bsqw,qwc->bqsc", x, self.heads)

    def decide(self, context: Tensor, pick: Pick, vectors: CodeVectors, state: TransformerState) -> Column:
        """A column, book by book, given what time knows [batch, width]; in the rings of an initial state."""
        known = self.known(context)[:, None] + self.book  # [batch, books, width]
        column: list[Tensor] = []
        heard = torch.zeros_like(known[:, 0])
        for book in range(self.books):
            y, state = self.net.advance((known[:, book] + heard)[:, None], state)
            logits = y @ self.heads[book]  # [batch, 1, classes]
            if book:
                logits[..., -1] = -torch.inf
            column.append(pick(logits, book))
            if self.added is None:
                vector = self.listen(vectors(column[-1][:, :, None], book)[:, 0, 0])
            else:
                vector = F.embedding(column[-1][:, 0], self.added[book])
            heard = heard + vector if self.cumulative else vector
        return torch.cat(column, dim=1)


class TextEncoder(nn.Module):
    """Bytes [batch, bytes] to what is known of a text [batch, 1 + bytes, width], and which places are there.

    The first place is there always, so that a model that is told nothing has something to look at.
    """

    def __init__(self, width: int, *, heads: int, dropout: float, layers: int = 2) -> None:
        super().__init__()
        self.bytes = nn.Embedding(BYTES + 1, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.net = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.width = width

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        text = F.pad(text, (1, 0), value=BYTES)
        there = text >= 0
        place = torch.arange(text.shape[1], device=text.device)[:, None]
        turns = torch.logspace(0, -4, self.width // 2, device=text.device)
        position = torch.cat([(place * turns).sin(), (place * turns).cos()], dim=-1)  # Vaswani et al. 2017, section 3.5
        x = self.bytes(text.clamp(min=0)) + position
        known: Tensor = self.net(x, src_key_padding_mask=~there)
        return known, there
