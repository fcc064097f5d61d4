"""A codec family that exercises what the causal one does not: stereo, lookahead, a scale per segment, few prefixes."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from codec import models
from codec.models.base import BlockCodec, CodecConfig, Context, ReceptiveField
from codec.nn.quantize.residual import ResidualVQ


class TrialConfig(CodecConfig):
    """8 kHz, 5 ms frames, four codebooks of 16, a scale for every five frames."""

    family: Literal["trial"] = "trial"
    sample_rate: Annotated[int, Field(ge=1)] = 8000
    hop: Annotated[int, Field(ge=1)] = 40
    num_codebooks: Annotated[int, Field(ge=1)] = 4
    codebook_size: Annotated[int, Field(ge=2)] = 16
    dim: int = 8


class TrialCodec(BlockCodec):
    """Strided convolutions that see one frame to either side, twice."""

    channels = 2
    segment_frames = 5

    def __init__(self, config: TrialConfig) -> None:
        super().__init__(config, decoder_delay=0)
        dim, hop = config.dim, config.hop
        self.dim = dim
        self.encoder = nn.Sequential(
            nn.Conv1d(2, dim, 3 * hop, stride=hop, padding=hop), nn.Tanh(), nn.Conv1d(dim, dim, 3, padding=1)
        )
        self.quantizer = ResidualVQ(dim, config.num_codebooks, config.codebook_size)
        self.decoder = nn.Sequential(
            nn.Conv1d(dim, dim, 3, padding=1), nn.Tanh(), nn.ConvTranspose1d(dim, 2, 3 * hop, stride=hop, padding=hop)
        )

    @property
    def codebook_choices(self) -> tuple[int, ...]:
        return (1, 2, 4)

    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Context(2, 2), Context(2, 2))

    def analyze(self, audio: Tensor) -> Tensor:
        if audio.shape[-1] == 0:
            return audio.new_zeros(len(audio), self.dim, 0)
        latents: Tensor = self.encoder(audio)
        return latents

    def synthesize(self, latents: Tensor) -> Tensor:
        audio: Tensor = self.decoder(latents)
        return audio

    def scale_of(self, audio: Tensor) -> Tensor:
        """Root mean square of each segment."""
        segment = self.segment_frames * self.frame_spec.hop
        frames = audio.shape[-1] // self.frame_spec.hop
        power = F.pad(audio, (0, -audio.shape[-1] % segment)).square().mean(dim=1)  # [batch, time]
        scale = power.view(len(audio), power.shape[1] // segment, segment).mean(dim=2).sqrt() + 1e-3
        return scale.repeat_interleave(self.segment_frames, dim=1)[:, :frames]


FAMILY = {"trial": (TrialConfig, TrialCodec)}
"""Tests add it to `codec.models.FAMILIES`."""


def trial_model(seed: int = 0) -> TrialCodec:
    """An untrained model with a hash, ready for use."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build("trial", {}) if "trial" in models.FAMILIES else TrialCodec(TrialConfig())
        assert isinstance(model, TrialCodec)
        model.init_from_audio(0.1 * torch.randn(4, 2, 8000))
    model.name, model.weights_hash = "trial", "7" * 64
    return model.eval()
