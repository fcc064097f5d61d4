"""Codecs of this package as models of transformers: importing this file registers them there.

    from codec.export.transformers import CodecModel, feature_extractor

    model = codec.load("general-24k")
    CodecModel.of(model).save_pretrained("folder")
    feature_extractor(model).save_pretrained("folder")

    AutoModel.from_pretrained("folder")  # or AutoModelForAudioTokenization, AutoFeatureExtractor

The conventions are those of `EncodecModel` and its feature extractor: `input_values` [batch, channels, time] with a
`padding_mask` [batch, time] of ones and zeros, `audio_codes` [batch, codebooks, frames]. `codec.load` takes the folder
too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec import models
from codec.errors import UsageError
from codec.foreign import OWN_MODEL_TYPE
from codec.models.base import Codec, Encoded, split_scale

models.check_transformers()  # before transformers is imported

import transformers  # noqa: E402
from transformers.modeling_utils import PreTrainedAudioTokenizerBase  # noqa: E402
from transformers.utils import ModelOutput  # noqa: E402


class CodecModelConfig(transformers.PreTrainedConfig):  # type: ignore[misc]
    """What `codec.models.build` takes, and the sizes under the names that transformers uses."""

    model_type = OWN_MODEL_TYPE

    def __init__(
        self, family: str = models.DEFAULT_CONFIG.family, codec: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.family = family
        self.codec = dict(codec or {})
        """The configuration of the family."""
        for name in ("sampling_rate", "hop_length", "num_codebooks", "codebook_size", "audio_channels"):
            setattr(self, name, kwargs.pop(name, None))
        super().__init__(**kwargs)


@dataclass
class CodecEncoderOutput(ModelOutput):  # type: ignore[misc]
    """The result of `CodecModel.encode`."""

    audio_codes: Tensor | None = None
    """int64 [batch, codebooks, frames]; frames after the end of an item hold codes of silence."""
    audio_codes_mask: Tensor | None = None
    """int64 [batch, frames], 1 for the frames of an item; only with a `padding_mask`."""
    audio_scales: Tensor | None = None
    """float32 [batch, frames], only of models with a scale."""


@dataclass
class CodecDecoderOutput(ModelOutput):  # type: ignore[misc]
    """The result of `CodecModel.decode`."""

    audio_values: Tensor | None = None
    """float32 [batch, channels, time]."""


@dataclass
class CodecOutput(ModelOutput):  # type: ignore[misc]
    """The result of `CodecModel.forward`."""

    audio_codes: Tensor | None = None
    audio_values: Tensor | None = None


class CodecModel(PreTrainedAudioTokenizerBase):  # type: ignore[misc]
    """A codec of this package; `model.codec` is the codec itself."""

    config_class = CodecModelConfig
    base_model_prefix = "codec_model"
    main_input_name = "input_values"
    input_modalities = "audio"

    def __init__(self, config: CodecModelConfig, codec: Codec | None = None) -> None:
        super().__init__(config)
        if codec is None:
            with torch.device("cpu"):  # transformers builds on the meta device, where tables would have no values
                codec = models.build(config.family, config.codec)
        self.codec = codec
        self._tables = dict(self.named_non_persistent_buffers())
        self.post_init()

    @classmethod
    def of(cls, codec: Codec) -> CodecModel:
        """The model of a codec, which it shares."""
        config = CodecModelConfig(
            family=codec.config.family,
            codec=codec.config.model_dump(mode="json"),
            sampling_rate=codec.sample_rate,
            hop_length=codec.frame_spec.hop,
            num_codebooks=codec.num_codebooks,
            codebook_size=codec.codebook_size,
            audio_channels=codec.channels,
        )
        model: CodecModel = cls(config, codec).eval()
        return model

    @classmethod
    def from_pretrained(cls, folder: str | Path, *arguments: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers. Raises UsageError for a type other than float32: codes would differ."""
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        if dtype not in (None, "auto", "float32", torch.float32):
            raise UsageError(f"this model computes in float32, not {dtype}: its codes would differ")
        loaded = super().from_pretrained(folder, *arguments, dtype=torch.float32, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._restore_tables()
        return loaded

    def _restore_tables(self) -> None:
        """Put back the tables that are computed, not stored, which `from_pretrained` replaces by empty ones."""
        for name, table in self._tables.items():
            owner, _, own = name.rpartition(".")
            module = self.get_submodule(owner)
            module.register_buffer(own, table.to(self.device), persistent=False)
        self._tables.clear()

    def _init_weights(self, module: Any) -> None:
        """Does nothing, because the codec has initialized its own."""

    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        num_codebooks: int | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """A `CodecEncoderOutput`: codes of audio [batch, channels, time], of the first `num_codebooks` codebooks.

        With a `padding_mask` [batch, time], or [batch, 1, time], each item gets the codes that it gets alone. Raises as
        `Codec.encode`, and UsageError for an item that is padded at its begin.
        """
        lengths = None if padding_mask is None else _lengths(padding_mask)
        codes, scale = split_scale(self.codec.encode(input_values, num_codebooks=num_codebooks, lengths=lengths))
        output = CodecEncoderOutput(codes, self._frame_mask(lengths, codes), scale)
        return output if self._as_dict(return_dict) else output.to_tuple()

    def decode(
        self,
        audio_codes: Tensor,
        audio_scales: Tensor | None = None,
        padding_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """A `CodecDecoderOutput`: audio [batch, channels, time] of codes [batch, codebooks, frames].

        With the `padding_mask` of the audio that was encoded, the audio is as long as that, and silent after the end of
        each item. Raises as `Codec.decode`.
        """
        encoded = audio_codes if audio_scales is None else Encoded(audio_codes, audio_scales)
        lengths = None if padding_mask is None else _lengths(padding_mask)
        audio = self.codec.decode(encoded, lengths=lengths)
        if padding_mask is not None:
            audio = torch.nn.functional.pad(audio, (0, padding_mask.shape[-1] - audio.shape[-1]))
        output = CodecDecoderOutput(audio)
        return output if self._as_dict(return_dict) else output.to_tuple()

    def forward(
        self, input_values: Tensor, padding_mask: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> Any:
        """A `CodecOutput`: codes of audio, and the audio of the codes, as long as the input."""
        encoded = self.encode(input_values, padding_mask, return_dict=True, **kwargs)
        decoded = self.decode(encoded.audio_codes, encoded.audio_scales, padding_mask, return_dict=True)
        output = CodecOutput(encoded.audio_codes, decoded.audio_values[..., : input_values.shape[-1]])
        return output if self._as_dict(return_dict) else output.to_tuple()

    def _frame_mask(self, lengths: list[int] | None, codes: Tensor) -> Tensor | None:
        if lengths is None:
            return None
        frames = torch.tensor([self.codec.frame_spec.frames(time) for time in lengths], device=codes.device)
        return (torch.arange(codes.shape[2], device=codes.device) < frames[:, None]).long()

    def _as_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)


def feature_extractor(codec: Codec) -> Any:
    """The feature extractor of a codec: transformers' own of EnCodec, which pads a batch and gives its mask."""
    return transformers.EncodecFeatureExtractor(feature_size=codec.channels, sampling_rate=codec.sample_rate)


def _lengths(padding_mask: Tensor) -> list[int]:
    """The samples of each item. Raises UsageError unless all padding is at the end."""
    mask = padding_mask.reshape(len(padding_mask), -1) if padding_mask.ndim == 3 else padding_mask
    if mask.ndim != 2 or (padding_mask.ndim == 3 and padding_mask.shape[1] != 1):
        raise UsageError(f"padding_mask is {list(padding_mask.shape)}: give [batch, time]")
    mask = mask.bool()
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise UsageError("padding_mask has padding before samples: pad at the end (padding_side='right')")
    lengths: list[int] = mask.sum(dim=1).tolist()
    return lengths


transformers.AutoConfig.register(OWN_MODEL_TYPE, CodecModelConfig, exist_ok=True)
transformers.AutoModel.register(CodecModelConfig, CodecModel, exist_ok=True)
transformers.AutoModelForAudioTokenization.register(CodecModelConfig, CodecModel, exist_ok=True)
transformers.AutoFeatureExtractor.register(CodecModelConfig, transformers.EncodecFeatureExtractor, exist_ok=True)
