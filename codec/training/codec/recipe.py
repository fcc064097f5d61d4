"""What a recipe (codec.toml) may say, with every default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from codec.config import Config
from codec.models.causal import CausalConfig
from codec.training.codec.losses import SCALES

Count = Annotated[int, Field(ge=1, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]
Decibels = Annotated[float, Field(ge=-200, le=200)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Window = Annotated[int, Field(ge=16, le=2**16, multiple_of=4)]  # samples; each hop is a quarter window


def ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds, if the lower one comes first."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound comes first: write [{bounds[1]:g}, {bounds[0]:g}]")
    return bounds


Range = Annotated[tuple[Decibels, Decibels], AfterValidator(ordered)]


class DataConfig(Config):
    """Which audio a step sees."""

    folder: Path | None = None
    """Where the audio lies, a folder or a manifest, unless --data says."""
    crop: Seconds = 1.5
    """Seconds of each crop."""
    batch_size: Count = 8
    """Crops of each step, over all processes."""
    weights: dict[str, Share] = Field({})
    """Shares of the crops by set (first-level folder, or as the manifest says); the other sets share what is left."""
    balance: Share = 0.7
    """Sets without a weight are drawn in proportion to hours ** balance: 1 as they come, 0 all alike."""
    gain_db: Range = (-12.0, 6.0)
    """Range of the random gain, in dB; crops that would clip get less."""
    level_db: Range | None = None
    """Instead of a gain: range of the level that each crop is brought to, RMS in dB below full scale."""
    mix: Share = 0.0
    """Share of the crops that are the sum of two draws."""
    tones: Share = 0.0
    """Share of the crops that are synthetic: tones, chords, DTMF, beeps, clicks, bells, noise; loud to very quiet."""
    faint: Share = 0.0
    """Share of the other crops that are brought to a level of -60 to -20 dBFS RMS instead of the usual gain."""
    held_out: float = Field(0.02, gt=0, lt=1)
    """Share kept for validation, of the audio that no folder or manifest says to be train or valid."""
    split_by: Literal["file", "folder"] = "file"
    """What is kept whole on one side where no speaker is known; "folder" where a piece or a speaker has its own."""
    init_seconds: Seconds = 2000.0
    """Audio for the closed-form start."""
    num_workers: int = Field(2, ge=0, le=1024)
    """Processes that read crops for each training process; 0 has it read them itself."""

    @model_validator(mode="after")
    def check_weights(self) -> Self:
        """Shares of one whole."""
        if sum(self.weights.values()) > 1 + 1e-9:
            raise ValueError(
                f"data.weights add up to {sum(self.weights.values()):g}: they are shares of all crops, so 1 at most"
            )
        return self


class LossConfig(Config):
    """Weight of every loss by name; 0 switches one off."""

    mel: Weight = 1.0
    complex_stft: Weight = 0.0
    noise_to_mask: Weight = 3.0
    pesq_like: Weight = 1.5
    stoi_like: Weight = 4.0
    periodicity: Weight = 20.0
    """Of what repeats itself every hop, beyond what the reference does."""
    level: Weight = 1.0
    """Of the energy of every band."""
    modulation: Weight = 10.0
    """Of how the energy is spread over the places within a hop."""
    idempotence: Weight = 2.0
    """Distance of a re-encoded crop's latents from the entries it was decoded from; see train.reencoded."""
    commitment: Weight = 4.0
    codebook: Weight = 1.0
    adversarial: Weight = 0.1
    feature_matching: Weight = 0.5
    balance: bool = False
    """Make the weights of all losses of the decoded audio shares of its gradient, whatever the losses' own scales."""

    @model_validator(mode="after")
    def check_something_trains(self) -> Self:
        """There is a loss whether or not the discriminators have joined."""
        if self.mel == self.complex_stft == self.noise_to_mask == 0:
            raise ValueError(
                "losses.mel, losses.complex_stft and losses.noise_to_mask are all 0, so no loss compares the output with the input: raise one"
            )
        return self


class OptimizerConfig(Config):
    """AdamW with warm-up and a cosine decay to `lr * lr_min_ratio`."""

    lr: Positive = 1e-3
    lr_min_ratio: Share = 0.02
    warmup: Count = 200
    betas: tuple[Decay, Decay] = (0.8, 0.99)
    weight_decay: Weight = 0.01
    grad_clip: Positive = 1.0
    """Largest norm of the gradient of all weights."""
    ema_decay: Share = 0.999
    """Decay of the moving average of the weights, which is what is saved and validated."""


class DiscriminatorConfig(Config):
    """The discriminators, and when they join."""

    start: int | None = Field(None, ge=0)
    """Step at which they join; never when absent."""
    update_every: Count = 2
    """Steps from one training of theirs to the next; what they say moves the model in all."""
    lr: Positive = 3e-4
    """Follows the model's schedule, after a warm-up of its own."""
    windows: tuple[Window, ...] = Field((2048, 1024, 512), min_length=1)
    channels: Count = 16
    crop: Seconds = 0.75
    """Seconds of each crop that they see; they cost more than everything else."""


class RunConfig(Config):
    """How long, how often, how exactly: what every training is asked."""

    steps: Count = 20000
    seed: int = Field(0, ge=0, lt=2**63)
    precision: str = Field("auto", pattern="^(auto|float32|bfloat16|float16)$")
    """Of the networks; codebooks, transforms and losses are always float32. "auto" is bfloat16 where it is fast."""
    accumulate: Count = 1
    """Parts that each process takes its share of a batch in: the same training in less memory."""
    log_every: Count = 50
    validate_every: Count = 1000
    save_every: Count = 500


class TrainConfig(RunConfig):
    """The run of a codec's training."""

    start_from: str | None = None
    """A model to go on from, by name or path, instead of the closed-form start: of the same [model], but for search."""
    checkpoint_activations: bool = False
    """Compute what is within a network's blocks again in the backward pass: the same training in less memory."""
    sharding: Literal["none", "full"] = "none"
    """Where several processes train, "full" leaves each only a part of the model and of what its optimizer keeps."""
    compile: bool = False
    """Run the networks through torch.compile."""
    quantizer_dropout: Share = 0.5
    """Share of the items that train with a random number of codebooks."""
    reencoded: Share = 0.15
    """Share of the crops that are coded and decoded once to four times first, so that generations stay alike."""

    @model_validator(mode="after")
    def check_precision_of_shards(self) -> Self:
        """Shards have no common scale of gradients."""
        if (self.sharding, self.precision) == ("full", "float16"):
            raise ValueError('sharding = "full" does not go with precision = "float16": set "bfloat16"')
        return self


class Recipe(Config):
    """A whole codec training."""

    name: str
    model: CausalConfig = CausalConfig()
    data: DataConfig = DataConfig()
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def check_crops(self) -> Self:
        """Crops hold more than half of the longest window, which is mirrored at their ends."""
        windows = {"data": max(window for _, window in SCALES)}
        if self.discriminator.start is not None:
            windows["discriminator"] = max(self.discriminator.windows)
        for table, window in windows.items():
            crop, shortest = getattr(self, table).crop, window / 2 / self.model.sample_rate
            if round(crop * self.model.sample_rate) <= window // 2:
                raise ValueError(
                    f"{table}.crop = {crop} s is too short for windows of {window} samples at "
                    f"{self.model.sample_rate} Hz: make it longer than {shortest:.3f} s"
                )
        return self
