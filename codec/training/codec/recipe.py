"""The recipe of a codec (codec.toml): every key with its default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from codec.config import Config, Name
from codec.data.split import SplitBy
from codec.models import DEFAULT_CONFIG, ModelConfig
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
    """Check that the lower bound comes first."""
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound comes first: write [{bounds[1]:g}, {bounds[0]:g}]")
    return bounds


Range = Annotated[tuple[Decibels, Decibels], AfterValidator(ordered)]


class DataConfig(Config):
    """The audio that a step trains on."""

    folder: Path | None = None
    """A folder of audio or a manifest; --data overrides it."""
    crop: Seconds = 1.5
    """Seconds of each crop."""
    batch_size: Count = 8
    """Crops per step, of all processes together."""
    weights: dict[str, Share] = Field({})
    """Shares of the crops by set (first-level folder, or the manifest's column); the other sets share the rest."""
    balance: Share = 0.7
    """Sets without a weight are drawn in proportion to hours ** balance: 1 by their hours, 0 equally often."""
    gain_db: Range = (-12.0, 6.0)
    """Range of the random gain in dB; crops that would clip get less."""
    level_db: Range | None = None
    """Range of the level that each crop is scaled to, RMS in dB below full scale, instead of a gain."""
    mix: Share = 0.0
    """Share of the crops that are the sum of two draws."""
    tones: Share = 0.0
    """Share of the crops that are synthetic: tones, chords, DTMF, beeps, clicks, bells and noise at all levels."""
    quiet: Share = 0.0
    """Share of the other crops that are scaled to a level of -60 to -20 dBFS RMS instead of the random gain."""
    held_out: float = Field(0.02, gt=0, lt=1)
    """Share held out for validation, of the audio without a split."""
    split_by: SplitBy = "file"
    """What a split keeps together where no speaker is known; "folder" if each piece or speaker has its own folder."""
    init_seconds: Seconds = 2000.0
    """Seconds of audio for the initialization by PCA and k-means."""
    num_workers: int = Field(2, ge=0, le=1024)
    """Worker processes that read crops, per training process; 0 reads them in the training process."""

    @model_validator(mode="after")
    def check_weights(self) -> Self:
        """Check that the shares add up to 1 at most."""
        if sum(self.weights.values()) > 1 + 1e-9:
            raise ValueError(
                f"data.weights add up to {sum(self.weights.values()):g}: they are shares of all crops, so 1 at most"
            )
        return self


class LossConfig(Config):
    """Weight of every loss by name; 0 switches a loss off."""

    mel: Weight = 1.0
    complex_stft: Weight = 0.0
    noise_to_mask: Weight = 3.0
    pesq_like: Weight = 1.5
    stoi_like: Weight = 4.0
    periodicity: Weight = 20.0
    """Repetition of the waveform from hop to hop, beyond that of the reference."""
    level: Weight = 1.0
    """Difference of the energy in every band and segment of twelve hops."""
    average_level: Weight = 0.0
    """Difference of the energy of a whole crop, at all frequencies and in wide bands."""
    modulation: Weight = 10.0
    """Difference of how the energy is spread within a hop."""
    coloration: Weight = 0.0
    """Ripple of the average spectrum, for decoders that draw noise."""
    idempotence: Weight = 2.0
    """Distance of a re-encoded crop's latents from the codebook entries it was decoded from; see train.reencoded."""
    commitment: Weight = 4.0
    codebook: Weight = 1.0
    adversarial: Weight = 0.1
    feature_matching: Weight = 0.5
    balance: bool = False
    """Loss balancer (EnCodec): the weights of the audio losses are shares of the gradient, whatever their scales."""

    @model_validator(mode="after")
    def check_something_trains(self) -> Self:
        """Check that there is a reconstruction loss before the discriminators join."""
        if self.mel == self.complex_stft == self.noise_to_mask == 0:
            raise ValueError(
                "losses.mel, losses.complex_stft and losses.noise_to_mask are all 0, so no loss compares output "
                "and input: raise one"
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
    """Maximal norm of the gradient of all weights."""
    ema_decay: Share = 0.999
    """Decay of the moving average of the weights; the averaged model is saved and validated."""


class DiscriminatorConfig(Config):
    """The discriminators, and when they join training."""

    start: int | None = Field(None, ge=0)
    """Step at which the discriminators join; never if not set."""
    update_every: Count = 2
    """Steps between updates of the discriminators; their losses train the model in every step."""
    lr: Positive = 3e-4
    """Learning rate; follows the model's schedule, after a warm-up of its own."""
    windows: tuple[Window, ...] = Field((2048, 1024, 512), min_length=1)
    channels: Count = 16
    crop: Seconds = 0.75
    """Seconds of each crop that the discriminators see, because they cost more than all other parts."""


class RunConfig(Config):
    """Length, precision and intervals of a run."""

    steps: Count = 20000
    seed: int = Field(0, ge=0, lt=2**63)
    precision: str = Field("auto", pattern="^(auto|float32|bfloat16|float16)$")
    """Of the networks; codebooks, transforms and losses are always float32. "auto" is bfloat16 where that is fast."""
    accumulate: Count = 1
    """Micro-batches per step and process (gradient accumulation): the same training in less memory."""
    log_every: Count = 50
    validate_every: Count = 1000
    save_every: Count = 500


class TrainConfig(RunConfig):
    """The run of a codec."""

    start_from: str | None = None
    """A model of any family to start from, by name or path; it gives [model] too, and replaces `init_seconds`."""
    decoder_only: bool = False
    """Train the decoder alone, so that every recording keeps the codes that `start_from` gives it."""
    checkpoint_activations: bool = False
    """Activation checkpointing: compute the networks' blocks again in the backward pass, which saves memory."""
    sharding: Literal["none", "full"] = "none"
    """Of the model and its optimizer state over several processes; "full" is FSDP."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    quantizer_dropout: Share = 0.5
    """Share of the crops that train with a random number of codebooks."""
    reencoded: Share = 0.15
    """Share of the crops that are encoded and decoded one to four times first, against loss over generations."""

    @model_validator(mode="after")
    def check_decoder_only(self) -> Self:
        """Check that the encoder and the codebooks that stay as they are come from a model."""
        if self.decoder_only and self.start_from is None:
            raise ValueError("decoder_only keeps the encoder and the codebooks of a model: name it in start_from")
        return self

    @model_validator(mode="after")
    def check_precision_of_shards(self) -> Self:
        """Check the precision of sharded training, because gradient scaling does not work with shards."""
        if (self.sharding, self.precision) == ("full", "float16"):
            raise ValueError('sharding = "full" does not go with precision = "float16": set "bfloat16"')
        return self


class Recipe(Config):
    """The recipe of a codec."""

    name: Name
    model: ModelConfig = DEFAULT_CONFIG
    data: DataConfig = DataConfig()
    losses: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def check_crops(self) -> Self:
        """Check that crops are longer than half of the longest window, because their ends are mirrored."""
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
