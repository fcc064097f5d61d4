"""The default language model: a transformer over steps, and if wanted a small one over the codebooks of each step.

    column of the step before -> vectors of its codes, all codebooks together -> Transformer over time
                                                                                     |
        heads: every codebook from what time knows alone <------------------------------ + -----> depth: a Transformer over
        (with a pattern that tells codebooks apart)                                                the codebooks of this step

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
from codec.lm.base import (
    ClassConditioner,
    CodebookSpec,
    CodecLM,
    CodecLMConfig,
    CodeEmbedding,
    Conditioning,
    SampleFn,
    StepTokens,
)
from codec.nn.attention import Memory, Transformer, TransformerState
from codec.nn.shapes import Codes, Logits

BYTES = 256


class DepthConfig(Config):
    """The transformer over the codebooks of a step."""

    width: int = Field(128, ge=2)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    cumulative: bool = True
    """Each codebook sees the sum of the vectors before it; otherwise the last one, and the others through attention."""


class TransformerConfig(CodecLMConfig):
    """A transformer over steps, with one head per codebook, or with a depth transformer where `depth` is given."""

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
    """Where it is in time, what it was told, and the rings in which each step decides its codebooks."""

    time: TransformerState
    told: Tensor
    num_codebooks: TransformerState | None


class Known(NamedTuple):
    """What is known of a step before its first codebook is decided [batch, width], and the rings to decide them in."""

    known: Tensor
    num_codebooks: TransformerState | None


class TokenLM(CodecLM):
    """A GPT over the columns of a pattern. Raises ConfigError for a configuration that makes none."""

    config: TransformerConfig
    added: Tensor | None
    """What each code adds to the input of a step [codebooks * (codebook_size + 1), width], known after `for_steps`."""
    first_rows: Tensor
    """Where the codes of each codebook begin there [codebooks, 1]."""

    def __init__(self, config: TransformerConfig, source: CodebookSpec) -> None:
        super().__init__(config, source)
        if config.depth and self.pattern.per_frame > 1:
            raise ConfigError(
                f'model.depth decides all codebooks of a step one by one, pattern kind = "{config.pattern.kind}" does so '
                "too: take away one of them"
            )
        num_codebooks, dim, width = source.num_codebooks, source.dim, config.width
        classes = source.codebook_size + 1
        self.vectors = CodeEmbedding(source, config.vectors)
        self.listen = nn.Linear(num_codebooks * dim, width, bias=False)
        self.told = ClassConditioner(source, width, std=0.5)
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
        self.heads = None if config.depth else nn.Linear(width, num_codebooks * classes, bias=False)
        self.register_buffer("added", None, persistent=False)
        self.register_buffer("first_rows", classes * torch.arange(num_codebooks)[:, None], persistent=False)
        if self.phase:
            nn.init.normal_(self.phase.weight, std=0.5)
        nn.init.normal_(self.listen.weight, std=(num_codebooks * dim) ** -0.5)
        if self.heads:
            nn.init.normal_(self.heads.weight, std=0.02)

    def forward(self, columns: Codes, conditions: Conditioning) -> Logits:
        x = self.heard(self.shifted(columns), 0, self.told(conditions))
        known = self.time(x, self.memory(conditions))
        if self.depth:
            return self.without_end(self.depth(known, self.vectors(columns)))
        assert self.heads
        logits = rearrange(
            self.heads(known),
            "batch steps (codebooks code) -> batch codebooks steps code",
            num_codebooks=columns.shape[1],
        )
        return self.without_end(logits)

    def initial_state(self, conditions: Conditioning) -> LMState:
        told = self.told(conditions)
        num_codebooks = self.depth.net.initial_state(told) if self.depth else None
        return LMState(self.time.initial_state(told, self.memory(conditions)), told, num_codebooks)

    def forward_step(self, column: StepTokens, state: LMState) -> tuple[Known, LMState]:
        x = self.heard(column[:, :, None], state.time.seen, state.told)
        known, time = self.time.forward_step(x, state.time)
        return Known(known[:, 0], state.num_codebooks), state._replace(time=time)

    def decode_step(self, context: Known, sample_fn: SampleFn) -> StepTokens:
        known, num_codebooks = context
        if self.depth:
            assert num_codebooks
            return self.depth.decode_step(known, sample_fn, self.vectors, num_codebooks)
        assert self.heads
        logits = self.heads(known).view(len(known), self.source.num_codebooks, -1)  # [batch, codebooks, classes]
        return sample_fn(self.without_end(logits), 0)

    @torch.no_grad()
    def prepare_for_inference(self) -> Self:
        num_codebooks, classes = self.source.num_codebooks, self.source.codebook_size + 1
        every = torch.arange(classes, device=self.device).expand(1, num_codebooks, -1)
        vectors = self.vectors.alike(every)[0].view(classes, num_codebooks, -1)
        weight = self.listen.weight.view(self.config.width, num_codebooks, -1)
        self.added = torch.einsum("cbd,wbd->bcw", vectors, weight).flatten(0, 1)
        if self.depth:
            self.depth.added = self.depth.listen(self.vectors(every)[0])
        return super().prepare_for_inference()

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

    def memory(self, conditions: Conditioning) -> Memory | None:
        """The text as the layers see it."""
        return None if self.text is None else self.time.remember(*self.text(conditions.text))


class Depth(nn.Module):
    """A transformer over the codebooks of a step: what time knows comes first, then codebook after codebook."""

    added: Tensor | None
    """What each code adds to the input of the next codebook [codebooks, codebook_size + 1, width], known for steps."""

    def __init__(self, config: DepthConfig, source: CodebookSpec, width: int, dropout: float) -> None:
        super().__init__()
        self.num_codebooks = source.num_codebooks
        self.cumulative = config.cumulative
        self.known = nn.Linear(width, config.width, bias=False)
        self.listen = nn.Linear(source.dim, config.width, bias=False)
        self.codebook = nn.Parameter(0.02 * torch.randn(source.num_codebooks, config.width))
        self.net = Transformer(
            config.width, layers=config.layers, heads=config.heads, context=source.num_codebooks, dropout=dropout
        )
        self.heads = nn.Parameter(0.02 * torch.randn(source.num_codebooks, config.width, source.codebook_size + 1))
        self.register_buffer("added", None, persistent=False)
        nn.init.normal_(self.known.weight, std=width**-0.5)
        nn.init.normal_(self.listen.weight, std=source.dim**-0.5)

    def forward(self, known: Tensor, vectors: Tensor) -> Logits:
        """Logits, given what time knows [batch, steps, width] and the columns' vectors [batch, codebooks, steps, dim]."""
        batch, steps, _ = known.shape
        above = torch.zeros_like(vectors)
        above[:, 1:] = (vectors.cumsum(dim=1) if self.cumulative else vectors)[:, :-1]
        x = self.known(known)[:, :, None] + self.listen(above).transpose(1, 2) + self.codebook
        x = self.net(x.flatten(0, 1)).view(batch, steps, self.num_codebooks, -1)
        return torch.einsum("bsqw,qwc->bqsc", x, self.heads)

    def decode_step(
        self, context: Tensor, sample_fn: SampleFn, vectors: CodeEmbedding, state: TransformerState
    ) -> StepTokens:
        """A column, codebook by codebook, given what time knows [batch, width]; in the rings of an initial state."""
        known = self.known(context)[:, None] + self.codebook  # [batch, codebooks, width]
        column: list[Tensor] = []
        heard = torch.zeros_like(known[:, 0])
        for codebook in range(self.num_codebooks):
            y, state = self.net.forward_step((known[:, codebook] + heard)[:, None], state)
            logits = y @ self.heads[codebook]  # [batch, 1, classes]
            if codebook:
                logits[..., -1] = -torch.inf
            column.append(sample_fn(logits, codebook))
            if self.added is None:
                vector = self.listen(vectors(column[-1][:, :, None], codebook)[:, 0, 0])
            else:
                vector = F.embedding(column[-1][:, 0], self.added[codebook])
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
