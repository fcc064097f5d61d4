"""The recipe of a language model (lm.toml): every key with its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from codec.conditions import ClassKind
from codec.config import Config, Name
from codec.data.split import SplitBy
from codec.lm.pixelcnn import PixelCNNConfig
from codec.lm.transformer import TransformerConfig
from codec.training.codec.recipe import Count, Decay, OptimizerConfig, Positive, RunConfig, Share, Weight

ModelConfig: TypeAlias = Annotated[TransformerConfig | PixelCNNConfig, Field(discriminator="family")]
"""The configuration of any family; `family` is required."""


class LMDataConfig(Config):
    """The codes that a step trains on."""

    store: Path | None = None
    """The token store; --data overrides it."""
    frames: Annotated[int, Field(ge=2, lt=2**31)] = 512
    """Frames of the longest crop; shorter clips are used whole."""
    batch_size: Count = 16
    """Crops per step, of all processes together."""
    num_codebooks: Count | None = None
    """Codebooks to model, the coarsest first; all if not set."""
    conditions: tuple[ClassKind, ...] = ()
    """Kinds of conditions besides the transcript: speaker, label, language."""
    held_out: float = Field(0.02, gt=0, lt=1)
    """Share held out for validation, of the clips without a split; the same clips as a codec with this share."""
    split_by: SplitBy = "file"
    """As a codec's."""


class LMLossConfig(Config):
    """The cross-entropy of the codebooks, and its targets."""

    codebook_weights: tuple[Weight, ...] | None = None
    """Relative weight of each codebook; equal if not set."""
    soft: Positive | None = None
    """Temperature of soft targets; hard targets if not set. See `crops.sample_soft_codes`."""
    stochastic: Positive | None = None
    """Temperature to sample input codes near the stored ones; the stored codes if not set."""
    condition_dropout: Share = 0.1
    """Probability to drop each condition, and all of them together, for classifier-free guidance."""

    @model_validator(mode="after")
    def check_something_trains(self) -> Self:
        """Check that a codebook has a weight."""
        if self.codebook_weights is not None and not sum(self.codebook_weights):
            raise ValueError("codebook_weights are all 0: raise one, or leave them out")
        return self


class LMOptimizerConfig(OptimizerConfig):
    """As a codec's; weight decay applies to matrices only."""

    lr: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Weight = 0.1


class LMRunConfig(RunConfig):
    """The run of a language model."""

    expected: Positive | None = None
    """Bits per code of the validation clips that this recipe reached; printed at the start."""
    samples: int = Field(4, ge=0, le=64)
    """Clips to generate at each validation."""


class LMRecipe(Config):
    """The recipe of a language model."""

    kind: Literal["lm"]
    name: Name
    model: ModelConfig
    data: LMDataConfig = LMDataConfig()
    losses: LMLossConfig = LMLossConfig()
    optimizer: LMOptimizerConfig = LMOptimizerConfig()
    train: LMRunConfig = LMRunConfig()

    @property
    def text(self) -> bool:
        """Whether the model is conditioned on transcripts."""
        return bool(getattr(self.model, "text", False))
