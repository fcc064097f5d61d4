"""What a recipe of a language model (lm.toml) may say, with every default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from codec.conditions import ClassKind
from codec.config import Config
from codec.lm.pixelcnn import PixelCNNConfig
from codec.lm.transformer import TransformerConfig
from codec.training.codec.recipe import Count, Decay, OptimizerConfig, Positive, RunConfig, Share, Weight

ModelConfig: TypeAlias = Annotated[TransformerConfig | PixelCNNConfig, Field(discriminator="family")]
"""Of any family, which has to be named."""


class LMDataConfig(Config):
    """Which codes a step sees."""

    store: Path | None = None
    """The token store, unless --data says."""
    frames: Annotated[int, Field(ge=2, lt=2**31)] = 512
    """Frames of the longest crop; shorter clips are taken whole."""
    batch_size: Count = 16
    """Crops of each step, over all processes."""
    num_codebooks: Count | None = None
    """The first so many codebooks of the store, or all."""
    classes: tuple[ClassKind, ...] = ()
    """What the model is told of each clip."""
    held_out: float = Field(0.02, gt=0, lt=1)
    """Share kept for validation, of the clips that are of no split."""


class LMLossConfig(Config):
    """What is asked of the predictions."""

    codebook_weights: tuple[Weight, ...] | None = None
    """How much each codebook counts, or all alike; their sum does not matter."""
    soft: Positive | None = None
    """Temperature of soft targets, or the stored codes alone; see `lm_data.soften`."""
    stochastic: Positive | None = None
    """Temperature at which codes are drawn anew, or the stored ones; see `lm_data.soften`."""
    condition_dropout: Share = 0.1
    """How often each kind of condition is left out, and all of them together; what guidance needs."""

    @model_validator(mode="after")
    def check_something_trains(self) -> Self:
        """There is a codebook that counts."""
        if self.codebook_weights is not None and not sum(self.codebook_weights):
            raise ValueError("codebook_weights are all 0: raise one, or leave them out")
        return self


class LMOptimizerConfig(OptimizerConfig):
    """As a codec's; the weight decay is of matrices alone."""

    lr: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: Weight = 0.1


class LMRunConfig(RunConfig):
    """The run of a language model's training."""

    expected: Positive | None = None
    """Bits per code of the validation clips that the recipe was measured to end with; told before it begins."""
    samples: int = Field(4, ge=0, le=64)
    """Clips to generate at each validation."""


class LMRecipe(Config):
    """A whole training of a language model."""

    kind: Literal["lm"]
    name: str
    model: ModelConfig
    data: LMDataConfig = LMDataConfig()
    losses: LMLossConfig = LMLossConfig()
    optimizer: LMOptimizerConfig = LMOptimizerConfig()
    train: LMRunConfig = LMRunConfig()

    @property
    def text(self) -> bool:
        """Whether transcripts are told."""
        return bool(getattr(self.model, "text", False))
