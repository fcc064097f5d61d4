"""The interface of every language model of codes, whatever its network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from codec.config import Config
from codec.errors import UsageError
from codec.lm.conditioning import CodebookSpec, Conditioning, encode_conditions
from codec.lm.patterns import Pattern, PatternConfig
from codec.nn.linear import HalfLinear, replace_linears
from codec.nn.shapes import Codes, Logits
from codec.nn.streaming import State

TEMPERATURES = 1e-3, 1e3  # lowest and highest whose quotients float32 can hold
MAX_GUIDANCE = 1e3

Size = Annotated[int, Field(ge=1, le=2**16)]

StepTokens: TypeAlias = Int[Tensor, "batch codebooks"]
Hidden: TypeAlias = Any
"""What `forward_step` hands to `decode_step`; each family has its own."""
SampleFn: TypeAlias = Callable[[Tensor, int], Tensor]
"""From logits [batch, n, codebook_size + 1] of n codebooks, and the index of the first of them, to codes [batch, n]."""


class CodecLMConfig(Config):
    """Keys that the configuration of every family has."""

    family: str
    pattern: PatternConfig = PatternConfig()
    vectors: Literal["codebook", "learned"] = "codebook"
    """How codes are embedded: by the codec's own codebook vectors, or by learned ones."""
    guidance: float = Field(1.0, ge=0, le=MAX_GUIDANCE)
    """Default scale of classifier-free guidance in generation; 1 disables it."""
    temperature: float = Field(1.0, ge=TEMPERATURES[0], le=TEMPERATURES[1])
    """Default sampling temperature in generation."""


class CodeEmbedding(nn.Module):
    """Embed codes by the codec's codebook vectors, which are frozen, or by learned ones; special tokens are learned.

    Frozen codebook vectors are the input of RQ-Transformer (Lee et al. 2022, section 3.2). They are scaled by the RMS
    length of the first codebook's, so that sums over codebooks keep their proportions.
    """

    entries: Tensor
    scale: Tensor
    offsets: Tensor

    def __init__(self, source: CodebookSpec, kind: Literal["codebook", "learned"]) -> None:
        super().__init__()
        shape = source.num_codebooks, source.codebook_size, source.dim
        self.num_codebooks, self.codebook_size, self.dim = shape
        if kind == "learned":
            self.entries = nn.Parameter(torch.randn(shape))
        else:
            self.register_buffer("entries", torch.randn(shape))
        # Random, because the norm of a zero vector has no gradient.
        self.special_token = nn.Parameter(torch.randn(source.num_codebooks, source.dim))
        self.register_buffer("scale", torch.ones(source.num_codebooks))
        self.register_buffer(
            "offsets", self.codebook_size * torch.arange(self.num_codebooks)[:, None], persistent=False
        )

    @torch.no_grad()
    def init_from_codec(self, codebook_vectors: Tensor) -> None:
        """Copy the codec's `Quantizer.vectors` [codebooks or more, codebook_size, dim] to the entries."""
        vectors = codebook_vectors[: self.num_codebooks].float()
        lengths = vectors.square().sum(dim=-1).mean(dim=-1).sqrt()  # [codebooks]
        lengths = torch.where(lengths > 0, lengths, 1.0)
        self.entries.copy_(vectors / lengths[0] * self.dim**0.5)
        self.scale.copy_(lengths / lengths[0])
        self.special_token.mul_(self.scale[:, None])

    def forward(self, tokens: Codes, first: int = 0) -> Float[Tensor, "batch codebooks steps dim"]:
        """Vectors of tokens [batch, codebooks, steps], whose first codebook is `first`."""
        last = first + tokens.shape[1]
        rows = tokens.clamp(max=self.codebook_size - 1) + self.offsets[first:last]
        vectors = F.embedding(rows, self.entries.flatten(0, 1))
        special = (tokens == self.codebook_size)[..., None]
        return torch.where(special, self.special_token[first:last, None], vectors)

    def concat_normalized(self, tokens: Codes) -> Float[Tensor, "batch steps features"]:
        """Vectors of all codebooks, each divided by its codebook's scale, concatenated."""
        vectors: Tensor = self(tokens)
        return (vectors / self.scale[:, None, None]).transpose(1, 2).flatten(2)


class CodecLM(nn.Module):
    """A language model of codes. It sees a recording as tokens [batch, codebooks, steps], laid out by its `pattern`.

    Token `codebook_size` is the special token: an empty cell of the pattern in the input, and the end of the recording
    in the logits of codebook 0. A family implements the abstract methods; `sampling.generate_frames` drives them.
    """

    name: str | None = None
    weights_hash: str | None = None
    path: Path | None = None
    """The file that it was loaded from."""
    codec_path: str | None = None
    """Name or path of the codec that it was trained with."""
    vectors: CodeEmbedding
    end_mask: Tensor

    def __init__(self, config: CodecLMConfig, source: CodebookSpec) -> None:
        super().__init__()
        self.config = config
        self.source = source
        self.pattern = Pattern(config.pattern, source.num_codebooks)
        self.special_token = source.codebook_size
        end_mask = torch.zeros(source.num_codebooks, source.codebook_size + 1)
        end_mask[1:, -1] = -torch.inf
        self.register_buffer("end_mask", end_mask, persistent=False)

    @abstractmethod
    def forward(self, tokens: Codes, conditioning: Conditioning) -> Logits:
        """Logits [batch, codebooks, steps, codebook_size + 1] of every cell, given the steps before it.

        Families that decode the codebooks of a step one by one also condition on the codebooks before. The logit of the
        end is -inf in all codebooks but the first.
        """

    @abstractmethod
    def initial_state(self, conditioning: Conditioning) -> State:
        """The state before the first step."""

    @abstractmethod
    def reset_rows(self, state: State, mask: Bool[Tensor, " batch"], conditioning: Conditioning) -> State:
        """The state with the rows in `mask` as in `initial_state(conditioning)`; the others continue."""

    @abstractmethod
    def forward_step(self, step_tokens: StepTokens, state: State) -> tuple[Hidden, State]:
        """Run the network on the tokens of the step before (special tokens before the first step).

        The given state may be overwritten: continue with the returned one.
        """

    @abstractmethod
    def decode_step(self, hidden: Hidden, sample_fn: SampleFn) -> StepTokens:
        """Tokens of the next step. `sample_fn` is called once for all codebooks, or once for each in turn."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def takes_text(self) -> bool:
        """Whether the model can be conditioned on a text."""
        return bool(getattr(self.config, "text", False))

    def mask_end(self, logits: Logits) -> Logits:
        """Logits [batch, codebooks, ..., codebook_size + 1] with the end at -inf in all codebooks but the first."""
        mask = self.end_mask.to(logits.dtype)  # [codebooks, codebook_size + 1]
        return logits + (mask if logits.ndim == 3 else mask[:, None])

    def prepare_for_inference(self) -> Self:
        """Pack the weights of linear layers for products with few rows; they cannot be changed or trained afterwards.

        With fp16 weights, as in a shipped model, a step takes a quarter of the time.
        """

        def packed(linear: nn.Linear) -> nn.Linear:
            if HalfLinear.fits(linear.weight):
                return HalfLinear(linear)
            linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t(), requires_grad=False)
            return linear

        replace_linears(self, packed)
        self.register_load_state_dict_pre_hook(refuse_to_load)  # type: ignore[no-untyped-call]
        return self

    def shifted(self, tokens: Codes) -> Codes:
        """Input of every step: the tokens of the step before, and special tokens at the first."""
        return F.pad(tokens[..., :-1], (1, 0), value=self.special_token)

    def conditioning(self, rows: Sequence[Mapping[str, str]]) -> Conditioning:
        """Conditioning of a batch, one mapping per row: {"label": "7"}, or {} for unconditional.

        Raises UsageError for a kind or a name that the model does not know.
        """
        return encode_conditions(rows, self.source.classes, text=self.takes_text).to(self.device)


def refuse_to_load(model: nn.Module, *_: object) -> None:
    """Raise UsageError, because packed weights do not follow a state dict."""
    raise UsageError("cannot load weights: this model was packed for inference; build a new one")
