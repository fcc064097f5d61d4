"""Audio tokenizers of transformers as a family without streaming: what `AutoModelForAudioTokenization` maps.

transformers does the work. A recording goes through the model's own feature extractor to `encode`, whose codes are
taken as they are, and codes go to `decode`; here are only lengths, checks and the interface of this package. A stream
holds everything back until its end, so memory grows with a clip. Models cannot be trained here.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import CodecError, MissingDependency, UnknownModel, UsageError
from codec.models.base import UNBOUNDED, CodecConfig, CodecOutput, Context, ReceptiveField, StepCodec
from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.resample import resample
from codec.nn.shapes import Audio, Codes, Latents
from codec.nn.streaming import State, ordinary

ALSO = ("xcodec",)  # has the interface, but transformers 5.24 does not map it
PROBED_FRAMES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # lengths of the signals that `load` tries
VECTOR_DIM = 64  # of what a language model learns for each code
NOT_TRAINED = "a model of transformers is not trained here: fine-tune it there, then load its folder"


class WrappedConfig(CodecConfig):
    """What transformers needs to build the model and its feature extractor, and what was measured by running them."""

    family: Literal["transformers"] = "transformers"
    streams: Literal[False] = False
    """Whole clips only."""
    model_type: str
    input_rate: int
    """Sample rate of the encoder in Hz, which differs from that of the decoder in some models."""
    least_frames: int
    """The shortest signal that the model takes; shorter ones are padded with silence."""
    prefixes: bool
    """Whether the first codebooks decode without the others."""
    net: dict[str, Any]
    """The model's config.json."""
    extractor: dict[str, Any]
    """The preprocessor_config.json."""


class Wrapped(StepCodec):
    """A model of transformers."""

    own_padding = True

    def __init__(self, config: WrappedConfig, net: nn.Module | None = None) -> None:
        super().__init__(config, decoder_delay=0)
        self.config: WrappedConfig = config
        self.encoder, self.decoder = nn.Identity(), nn.Identity()
        self.quantizer = _Inside(config.num_codebooks, config.codebook_size)
        self.net: Any = _built(config) if net is None else net
        self._extractor = _extractor_of(config)

    @property
    def codebook_choices(self) -> tuple[int, ...]:
        return super().codebook_choices if self.config.prefixes else (self.num_codebooks,)

    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Context(UNBOUNDED, UNBOUNDED), Context(UNBOUNDED, UNBOUNDED))

    # whole signals

    def _encoded(self, audio: Audio, num_codebooks: int) -> Codes:
        frames, hop = self.frame_spec.frames(audio.shape[2]), self.frame_spec.hop
        if not frames:
            return torch.zeros(len(audio), num_codebooks, 0, dtype=torch.int64, device=audio.device)
        audio = F.pad(audio, (0, max(0, self.config.least_frames * hop - audio.shape[2])))
        codes = self._net_codes(audio)
        while codes.shape[2] < frames:  # some drop what does not fill a frame
            audio = F.pad(audio, (0, hop - audio.shape[2] % hop))
            codes = self._net_codes(audio)
        return codes[:, :num_codebooks, :frames]

    def _net_codes(self, audio: Audio) -> Codes:
        audio = resample(audio[:, 0], self.sample_rate, self.config.input_rate)
        return net_codes(self.net, self._extractor, audio)

    def _decoded_whole(self, codes: Codes, scale: Tensor | None) -> Audio:
        batch, _, frames = codes.shape
        time = frames * self.frame_spec.hop
        if not frames:
            return torch.zeros(batch, 1, 0, device=self.device)
        missing = max(0, self.config.least_frames - frames)
        codes = torch.cat([codes, codes[..., -1:].expand(-1, -1, missing)], dim=2)
        audio = net_audio(self.net, codes)[..., :time]
        return F.pad(audio, (0, time - audio.shape[2]))

    # streams: the state is all that has come

    def encoder_state(self, batch: int) -> State:
        return ()

    def encode_step(self, audio: Audio, state: State, *, num_codebooks: int | None = None) -> tuple[Codes, State]:
        codes = torch.zeros(len(audio), self.check_codebooks(num_codebooks), 0, dtype=torch.int64, device=audio.device)
        return codes, (*state, audio)

    def encode_end(self, audio: Audio, state: State, *, num_codebooks: int | None = None) -> Codes:
        with self._inference():
            codes = self._encoded(torch.cat([*state, audio], dim=2), self.check_codebooks(num_codebooks))
        return ordinary(codes)

    def decoder_state(self, batch: int) -> State:
        return ()

    def decode_step(self, codes: Codes, state: State) -> tuple[Audio, State]:
        self.check_codes(codes)
        return torch.zeros(len(codes), 1, 0, device=self.device), (*state, codes)

    def decode_end(self, codes: Codes, state: State) -> Audio:
        parts = [part for part in (*state, codes) if part.shape[2]]
        with self._inference():
            audio = self._decoded_whole(torch.cat(parts, dim=2) if parts else codes, None)
            audio = audio.clamp(-self.limit, self.limit)
        return ordinary(audio)

    # what training needs

    def forward(self, audio: Audio, num_codebooks: Tensor | None = None) -> CodecOutput:
        raise UsageError(NOT_TRAINED)

    def init_from_audio(self, audio: Audio) -> None:
        raise UsageError(NOT_TRAINED)

    def latents_step(self, audio: Audio, state: State) -> tuple[Latents, State]:
        raise UsageError(NOT_TRAINED)

    def audio_step(self, latents: Latents, state: State) -> tuple[Audio, State]:
        raise UsageError(NOT_TRAINED)


class _Inside(Quantizer):
    """Stands for a quantizer that is a part of `net`, because the latents of these models have no common form."""

    vector_dim = VECTOR_DIM

    def __init__(self, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size

    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        raise UsageError(NOT_TRAINED)

    def decode(self, codes: Codes) -> Latents:
        raise UsageError(NOT_TRAINED)

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        raise UsageError(NOT_TRAINED)


# calls of transformers


def net_codes(net: Any, extractor: Any, audio: Tensor) -> Codes:
    """Codes of audio [batch, time] at the encoder's rate, by the feature extractor and `encode` with all codebooks."""
    rows = [row.cpu().numpy() for row in audio]
    features = extractor(rows, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    known = inspect.signature(net.encode).parameters
    inputs = {name: value.to(audio.device) for name, value in features.items() if name in known}
    if "bandwidth" in known:
        inputs["bandwidth"] = max(net.config.target_bandwidths)
    return cast(Tensor, net.encode(**inputs).audio_codes.long())


def net_audio(net: Any, codes: Codes) -> Audio:
    """Audio [batch, 1, time] of codes, by `decode`."""
    audio = net.decode(codes).audio_values
    return cast(Tensor, audio.reshape(len(codes), 1, -1))


def load(folder: Path) -> Wrapped:
    """Build the model of a folder of transformers, in evaluation mode on the CPU.

    Raises UnknownModel if transformers does not map it to an audio tokenizer with codes, or cannot load it;
    MissingDependency.
    """
    transformers = load_transformers()
    from codec.nn.precision import full_float32

    with _loading(folder):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        net_class = _class_of(config)
        _codebook_size(config)  # raises
        net, info = net_class.from_pretrained(
            folder,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # because its error does not name them
        )
        _check_tensors(folder, info)
        net = net.eval()
        try:
            extractor = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError):  # without preprocessor_config.json
            extractor = transformers.FEATURE_EXTRACTOR_MAPPING[type(config)]()
        with torch.inference_mode(), full_float32("cpu"):
            found = _probed(net, extractor)
    return Wrapped(
        WrappedConfig(
            model_type=config.model_type, net=_plain(config.to_dict()), extractor=_plain(extractor.to_dict()), **found
        ),
        net,
    ).eval()


def _check_tensors(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise UnknownModel if the weights of a folder are not those of its configuration."""
    for problem, keys in (
        ("lacks {} tensors of its configuration", info["missing_keys"]),
        ("has {} tensors of other sizes than its configuration", [key for key, *_ in info["mismatched_keys"]]),
    ):
        if keys:
            raise UnknownModel(f"{folder} {problem.format(len(keys))}, such as {min(keys)}: download it again")


def _probed(net: Any, extractor: Any) -> dict[str, Any]:
    """Sizes of a model, found by coding silence. Raises UnknownModel for a model that codes none."""
    config = net.config
    output_rate = getattr(config, "output_sampling_rate", None) or extractor.sampling_rate
    hop = config.hop_length
    input_hop = hop * extractor.sampling_rate // output_rate
    problem: Exception | None = None
    for least in PROBED_FRAMES:
        try:
            codes = net_codes(net, extractor, torch.zeros(1, least * input_hop))
            net_audio(net, codes[..., :least])
            break
        except CodecError:
            raise
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            problem = error
    else:
        raise UnknownModel(f"{config.model_type} of transformers cannot code silence: {_line(problem)}")
    try:
        net_audio(net, codes[:, :1, :least])
        prefixes = True
    except (RuntimeError, ValueError, IndexError):
        prefixes = False
    return {
        "sample_rate": output_rate,
        "input_rate": extractor.sampling_rate,
        "hop": hop,
        "num_codebooks": codes.shape[1],
        "codebook_size": _codebook_size(config),
        "least_frames": least,
        "prefixes": prefixes,
    }


def _codebook_size(config: Any) -> int:
    """Entries of a codebook. Raises UnknownModel for a model without codes."""
    levels = getattr(config, "quantization_levels", None)  # of finite scalar quantization
    size = math.prod(levels) if levels else getattr(config, "codebook_size", None)
    if not isinstance(size, int):
        raise UnknownModel(f"{config.model_type} of transformers gives continuous latents, not codes: name another")
    return size


def _class_of(config: Any) -> Any:
    """The class of a model. Raises UnknownModel if it is not an audio tokenizer."""
    transformers = load_transformers()
    if type(config) in transformers.MODEL_FOR_AUDIO_TOKENIZATION_MAPPING:
        return transformers.MODEL_FOR_AUDIO_TOKENIZATION_MAPPING[type(config)]
    if config.model_type in ALSO:
        return transformers.MODEL_MAPPING[type(config)]
    raise UnknownModel(
        f"a model of type {config.model_type} is not an audio tokenizer of transformers {transformers.__version__}: "
        "name another"
    )


def _built(config: WrappedConfig) -> nn.Module:
    """The model with fresh weights. Raises UnknownModel, MissingDependency."""
    transformers = load_transformers()
    with _loading(config.model_type):
        own = transformers.AutoConfig.for_model(config.model_type, **without(config.net, "model_type"))
        return cast(nn.Module, _class_of(own)(own).eval())


def _extractor_of(config: WrappedConfig) -> Any:
    transformers = load_transformers()
    with _loading(config.model_type):
        kind = getattr(transformers, str(config.extractor["feature_extractor_type"]))
        if not issubclass(kind, transformers.FeatureExtractionMixin):
            raise UnknownModel(f"{kind.__name__} is not a feature extractor of transformers: download the model again")
        return kind.from_dict(dict(config.extractor))


def without(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A copy without a key."""
    return {name: value for name, value in facts.items() if name != key}


def load_transformers() -> Any:
    """The module transformers. Raises MissingDependency if it is not installed, or too old for audio tokenizers."""
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency(
            "models of other families are loaded by transformers: pip install '.[transformers]' in the project's folder"
        ) from error
    if not hasattr(transformers, "MODEL_FOR_AUDIO_TOKENIZATION_MAPPING"):
        raise MissingDependency(
            f"transformers {transformers.__version__} has no audio tokenizers: pip install 'transformers>=5.24'"
        )
    return transformers


@contextmanager
def _loading(label: object) -> Iterator[None]:
    """Silence transformers, and raise its errors as UnknownModel or MissingDependency."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except ImportError as error:
        raise MissingDependency(f"{label} needs more than transformers: {_line(error)}") from error
    except CodecError:
        raise
    except Exception as error:  # of any kind, of its own or of other libraries
        raise UnknownModel(f"{label} cannot be loaded by transformers: {_line(error)}") from error
    finally:
        logging.set_verbosity(before[0])
        if before[1]:
            logging.enable_progress_bar()


def _line(error: BaseException | None) -> str:
    return " ".join(str(error or "").split())[:200] or type(error).__name__


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain data of JSON, without what depends on the machine."""
    dropped = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return {key: value for key, value in plain.items() if key not in dropped}
