"""A tiny configuration of every family of another project: 8 kHz, four codebooks of 16."""

from typing import Any

from codec.models.base import CodecConfig
from codec.models.dac import DACConfig
from codec.models.encodec import EnCodecConfig, EnCodecSegmentsConfig
from codec.models.mimi import MimiConfig
from codec.models.snac import SNACConfig

CODEBOOKS: dict[str, Any] = {"sample_rate": 8000, "num_codebooks": 4, "codebook_size": 16}
SEANET: dict[str, Any] = {"hop": 40, "ratios": (5, 4, 2), "filters": 4, "dim": 8, "lstm_layers": 1, **CODEBOOKS}
RATES: dict[str, Any] = {"encoder_rates": (2, 4, 5), "decoder_rates": (5, 4, 2), "encoder_dim": 4, "decoder_dim": 32}
TRANSFORMER: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "hidden": 16, "context": 10}

TINY: dict[str, CodecConfig] = {
    "dac": DACConfig(hop=40, codebook_dim=4, **RATES, **CODEBOOKS),
    "encodec": EnCodecConfig(**SEANET),
    "encodec_segments": EnCodecSegmentsConfig(segment=800, segment_stride=760, **SEANET),
    "mimi": MimiConfig(hop=80, rates=(2, 4, 5), filters=4, codebook_dim=8, **TRANSFORMER, **CODEBOOKS),
    "snac": SNACConfig(
        sample_rate=8000,
        hop=160,
        encoder_rates=(2, 4, 5),
        decoder_rates=(5, 4, 2),
        encoder_dim=4,
        decoder_dim=32,
        codebook_size=16,
        codebook_dim=4,
        strides=(4, 2, 1),
        num_codebooks=7,
        noise=False,  # because it hides how the loss falls
    ),
}
