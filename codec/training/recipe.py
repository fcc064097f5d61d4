"""What a recipe (codec.toml) may say, with every default."""

from __future__ import annotations

from pydantic import Field

from codec.config import Config
from codec.models.causal import CausalConfig


class DataConfig(Config):
    """Which audio a step sees."""

    crop: float = 1.5
    """Seconds of each crop."""
    batch: int = 12
    balance: float = Field(0.7, ge=0, le=1)
    """Sets (first-level folders) are drawn in proportion to hours ** balance: 1 as they come, 0 all alike."""
    gain_db: tuple[float, float] = (-12.0, 6.0)
    """Range of the random gain, in dB; crops that would clip get less."""
    held_out: float = Field(0.02, gt=0, lt=1)
    """Share of the files kept for validation, when the data has no train and valid folders."""
    fit_seconds: float = 2000.0
    """Audio for the closed-form start."""


class LossConfig(Config):
    """Weight of every loss by name; 0 switches one off."""

    mel: float = 1.0
    phase: float = 1.0
    commitment: float = 1.0
    codebook: float = 1.0
    adversarial: float = 1.0
    features: float = 2.0


class OptimiserConfig(Config):
    """AdamW with warm-up and a cosine to `final` times the rate."""

    rate: float = 1e-3
    final: float = 0.02
    warmup: int = 200
    betas: tuple[float, float] = (0.8, 0.99)
    decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient of all weights."""
    average: float = 0.999
    """Decay of the moving average of the weights, which is what is saved and validated."""


class AdversaryConfig(Config):
    """The discriminators, and when they join."""

    start: int | None = None
    """Step at which they join; never when absent."""
    rate: float = 5e-4
    windows: tuple[int, ...] = (2048, 1024, 512)
    channels: int = 16


class TrainConfig(Config):
    """How long, how often, how exactly."""

    steps: int = 20000
    seed: int = 0
    precision: str = Field("auto", pattern="^(auto|float32|bfloat16)$")
    """Of the networks; codebooks, transforms and losses are always float32. "auto" is bfloat16 where it is fast."""
    quantizer_dropout: float = Field(0.5, ge=0, le=1)
    """Share of the items that train with a random number of books."""
    log_every: int = 50
    validate_every: int = 1000
    save_every: int = 500


class Recipe(Config):
    """A whole codec training."""

    name: str
    model: CausalConfig = CausalConfig()
    data: DataConfig = DataConfig()
    losses: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    train: TrainConfig = TrainConfig()
