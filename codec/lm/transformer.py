"""The default language model: a transformer over steps, optionally with a small one over the codebooks of each step.

    tokens of the step before -> embeddings of all codebooks, concatenated -> temporal transformer
                                                                                     |
        LM heads: all codebooks at once <--------------------------------------------+-----> depth transformer:
        (with a pattern that separates codebooks)                                            codebook by codebook

The depth transformer receives the sum of the embeddings sampled so far, which is the latent as far as it is known
(RQ-Transformer, Lee et al. 2022, section 3.2.2; Moshi, Défossez et al. 2024, section 3.4).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor, nn

from codec.config import Config
from codec.errors import ConfigError
from codec.lm.base import CodecLM, CodecLMConfig, CodeEmbedding, SampleFn, Size, StepTokens
from codec.lm.conditioning import ClassConditioner, CodebookSpec, Conditioning
from codec.nn.attention import CrossAttentionKV, Transformer, TransformerState, reset_rows
from codec.nn.shapes import Codes, Logits

BYTES = 256
TABLE_PER_PARAMETER = 4  # elements of a table of tokens; a table that is larger than the model by more is not made


class DepthConfig(Config):
    """The transformer over the codebooks of a step."""

    width: int = Field(128, ge=2, le=2**16)
    layers: Size = 2
    heads: Size = 4
    cumulative: bool = True
    """Whether each codebook receives the sum of the embeddings before it; if not, the last one alone."""


class TransformerConfig(CodecLMConfig):
    """A transformer over steps, with one head per codebook, or with a depth transformer if `depth` is given."""

    family: Literal["transformer"] = "transformer"
    width: int = Field(256, ge=2, le=2**16)
    layers: Size = 6
    heads: Size = 4
    context: int = Field(512, ge=1, le=2**24)
    """Steps that a step attends to, itself included."""
    dropout: float = Field(0.0, ge=0, lt=1)
    depth: DepthConfig | None = None
    text: bool = False
    """Whether the model can be conditioned on a text, by cross-attention in every layer."""


class LMState(NamedTuple):
    """State of generation: temporal transformer, class conditioning [batch, width], and a cache for depth."""

    temporal: TransformerState
    conditioning: Tensor
    depth: TransformerState | None


class StepHidden(NamedTuple):
    """Output of the temporal transformer for one step [batch, width], and an initial state of the depth transformer."""

    hidden: Tensor
    depth: TransformerState | None


class TextEncoder(nn.Module):
    """Bytes [batch, bytes] to encodings [batch, 1 + bytes, width] and their mask, False on padding.

    A start token comes first, so that cross-attention has something to attend to without a text.
    """

    def __init__(self, width: int, *, heads: int, dropout: float, layers: int = 2) -> None:
        super().__init__()
        self.byte_embedding = nn.Embedding(BYTES + 1, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.width = width

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        text = F.pad(text, (1, 0), value=BYTES)
        mask = text >= 0
        places = torch.arange(text.shape[1], device=text.device)[:, None]
        frequencies = torch.logspace(0, -4, self.width // 2, device=text.device)
        angles = places * frequencies
        position = torch.cat([angles.sin(), angles.cos()], dim=-1)  # Vaswani et al. 2017, section 3.5
        x = self.byte_embedding(text.clamp(min=0)) + position
        encoded: Tensor = self.encoder(x, src_key_padding_mask=~mask)
        return encoded, mask


class Depth(nn.Module):
    """A transformer over the codebooks of one step, conditioned on the output of the temporal transformer."""

    token_table: Tensor | None
    """`token_proj` of every code's embedding [codebooks, codebook_size + 1, width], after `prepare_for_inference`."""

    def __init__(self, config: DepthConfig, source: CodebookSpec, width: int, dropout: float) -> None:
        super().__init__()
        self.num_codebooks = source.num_codebooks
        self.cumulative = config.cumulative
        self.hidden_proj = nn.Linear(width, config.width, bias=False)
        self.token_proj = nn.Linear(source.dim, config.width, bias=False)
        self.codebook_embedding = nn.Parameter(0.02 * torch.randn(source.num_codebooks, config.width))
        self.transformer = Transformer(
            config.width, layers=config.layers, heads=config.heads, context=source.num_codebooks, dropout=dropout
        )
        self.lm_heads = nn.Parameter(0.02 * torch.randn(source.num_codebooks, config.width, source.codebook_size + 1))
        self.register_buffer("token_table", None, persistent=False)
        nn.init.normal_(self.hidden_proj.weight, std=width**-0.5)
        nn.init.normal_(self.token_proj.weight, std=source.dim**-0.5)

    def forward(self, hidden: Tensor, vectors: Tensor) -> Logits:
        """Logits from the temporal output [batch, steps, width] and token vectors [batch, codebooks, steps, dim]."""
        batch, steps, _ = hidden.shape
        before = torch.zeros_like(vectors)
        before[:, 1:] = (vectors.cumsum(dim=1) if self.cumulative else vectors)[:, :-1]
        x = self.hidden_proj(hidden)[:, :, None] + self.token_proj(before).transpose(1, 2) + self.codebook_embedding
        x = self.transformer(x.flatten(0, 1)).view(batch, steps, self.num_codebooks, -1)
        return torch.einsum("bsqw,qwc->bqsc", x, self.lm_heads)

    def decode_step(
        self, hidden: Tensor, sample_fn: SampleFn, vectors: CodeEmbedding, state: TransformerState
    ) -> StepTokens:
        """Sample the tokens of a step, codebook by codebook, given the temporal output [batch, width]."""
        hidden = self.hidden_proj(hidden)[:, None] + self.codebook_embedding  # [batch, codebooks, width]
        step_tokens: list[Tensor] = []
        before = torch.zeros_like(hidden[:, 0])  # the tokens of the codebooks before
        for codebook in range(self.num_codebooks):
            y, state = self.transformer.forward_step((hidden[:, codebook] + before)[:, None], state)
            logits = y @ self.lm_heads[codebook]  # [batch, 1, codebook_size + 1]
            if codebook:
                logits[..., -1] = -torch.inf
            step_tokens.append(sample_fn(logits, codebook))
            if self.token_table is None:
                embedded = self.token_proj(vectors(step_tokens[-1][:, :, None], codebook)[:, 0, 0])
            else:
                embedded = F.embedding(step_tokens[-1][:, 0], self.token_table[codebook])
            before = before + embedded if self.cumulative else embedded
        return torch.cat(step_tokens, dim=1)


class TransformerLM(CodecLM):
    """A GPT over the steps of a pattern. Raises ConfigError for a configuration that contradicts itself."""

    config: TransformerConfig
    token_table: Tensor | None
    """What each token adds to the input of a step [codebooks * (codebook_size + 1), width], after
    `prepare_for_inference`."""
    table_offsets: Tensor
    """First row of each codebook in `token_table` [codebooks, 1]."""

    def __init__(self, config: TransformerConfig, source: CodebookSpec) -> None:
        super().__init__(config, source)
        if config.depth and self.pattern.per_frame > 1:
            raise ConfigError(
                f'model.depth and pattern kind = "{config.pattern.kind}" both decide the codebooks of a frame one by '
                "one: remove one of them"
            )
        num_codebooks, dim, width = source.num_codebooks, source.dim, config.width
        codebook_classes = source.codebook_size + 1
        self.vectors = CodeEmbedding(source, config.vectors)
        self.token_proj = nn.Linear(num_codebooks * dim, width, bias=False)
        self.class_conditioner = ClassConditioner(source, width, std=0.5)
        self.phase_embedding = nn.Embedding(self.pattern.period, width) if self.pattern.period > 1 else None
        self.temporal = Transformer(
            width,
            layers=config.layers,
            heads=config.heads,
            context=config.context,
            memory=config.text,
            dropout=config.dropout,
        )
        self.text_encoder = TextEncoder(width, heads=config.heads, dropout=config.dropout) if config.text else None
        self.depth = Depth(config.depth, source, width, config.dropout) if config.depth else None
        self.lm_heads = None if config.depth else nn.Linear(width, num_codebooks * codebook_classes, bias=False)
        self.register_buffer("token_table", None, persistent=False)
        self.register_buffer("table_offsets", codebook_classes * torch.arange(num_codebooks)[:, None], persistent=False)
        if self.phase_embedding:
            nn.init.normal_(self.phase_embedding.weight, std=0.5)
        nn.init.normal_(self.token_proj.weight, std=(num_codebooks * dim) ** -0.5)
        if self.lm_heads:
            nn.init.normal_(self.lm_heads.weight, std=0.02)

    def forward(self, tokens: Codes, conditioning: Conditioning) -> Logits:
        positions = torch.arange(tokens.shape[2], device=tokens.device)[None]
        x = self.embed(self.shifted(tokens), positions, self.class_conditioner(conditioning))
        hidden = self.temporal(x, self.encode_text(conditioning))
        if self.depth:
            return self.mask_end(self.depth(hidden, self.vectors(tokens)))
        assert self.lm_heads
        logits = rearrange(
            self.lm_heads(hidden),
            "batch steps (codebooks code) -> batch codebooks steps code",
            codebooks=tokens.shape[1],
        )
        return self.mask_end(logits)

    def initial_state(self, conditioning: Conditioning) -> LMState:
        vector = self.class_conditioner(conditioning)
        depth = self.depth.transformer.initial_state(vector) if self.depth else None
        return LMState(self.temporal.initial_state(vector, self.encode_text(conditioning)), vector, depth)

    def reset_rows(self, state: LMState, mask: Bool[Tensor, " batch"], conditioning: Conditioning) -> LMState:
        fresh = self.initial_state(conditioning)
        return LMState(
            reset_rows(state.temporal, mask, fresh.temporal),
            torch.where(mask[:, None], fresh.conditioning, state.conditioning),
            state.depth,  # an initial state between steps
        )

    def forward_step(self, step_tokens: StepTokens, state: LMState) -> tuple[StepHidden, LMState]:
        x = self.embed(step_tokens[:, :, None], state.temporal.position[:, None], state.conditioning)
        hidden, temporal = self.temporal.forward_step(x, state.temporal)
        return StepHidden(hidden[:, 0], state.depth), state._replace(temporal=temporal)

    def decode_step(self, hidden: StepHidden, sample_fn: SampleFn) -> StepTokens:
        x, depth = hidden
        if self.depth:
            assert depth
            return self.depth.decode_step(x, sample_fn, self.vectors, depth)
        assert self.lm_heads
        logits = self.lm_heads(x).view(len(x), self.source.num_codebooks, -1)
        return sample_fn(self.mask_end(logits), 0)

    @torch.no_grad()
    def prepare_for_inference(self) -> Self:
        num_codebooks, codebook_classes = self.source.num_codebooks, self.source.codebook_size + 1
        every_token = torch.arange(codebook_classes, device=self.device).expand(1, num_codebooks, -1)
        vectors = self.vectors.concat_normalized(every_token)[0].view(codebook_classes, num_codebooks, -1)
        weight = self.token_proj.weight.view(self.config.width, num_codebooks, -1)
        most = TABLE_PER_PARAMETER * sum(parameter.numel() for parameter in self.parameters())
        if every_token.numel() * self.config.width <= most:
            self.token_table = torch.einsum("cbd,wbd->bcw", vectors, weight).flatten(0, 1)
        if self.depth and every_token.numel() * self.depth.token_proj.out_features <= most:
            self.depth.token_table = self.depth.token_proj(self.vectors(every_token)[0])
        return super().prepare_for_inference()

    # the parts of a step

    def embed(self, before: Codes, positions: Tensor, conditioning: Tensor) -> Tensor:
        """Inputs [batch, steps, width] at `positions` [batch or 1, steps], from the tokens of the step before each."""
        x: Tensor
        if self.token_table is None:
            x = self.token_proj(self.vectors.concat_normalized(before)) + conditioning[:, None]
        else:
            x = F.embedding(before + self.table_offsets, self.token_table).sum(dim=1) + conditioning[:, None]
        if self.phase_embedding is not None:
            x = x + self.phase_embedding(positions % self.pattern.period)
        return x

    def encode_text(self, conditioning: Conditioning) -> CrossAttentionKV | None:
        """Keys and values of the text for cross-attention; None for a model without text."""
        if self.text_encoder is None:
            return None
        return self.temporal.encode_memory(*self.text_encoder(conditioning.text))
