"""What every codec family offers, whatever its network."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from codec.audio import LOUDEST
from codec.config import Config
from codec.errors import UsageError
from codec.frames import FrameMath
from codec.nn.quantize import Quantized, Quantizer
from codec.nn.shapes import Audio, Codes, Latents
from codec.nn.streaming import State

# as much as a .codec file can say
SampleRate = Annotated[int, Field(ge=1, le=2**22)]
Hop = Annotated[int, Field(ge=1, le=2**20)]
Books = Annotated[int, Field(ge=1, le=1024)]
CodebookSize = Annotated[int, Field(ge=2, le=2**24)]


class CodecConfig(Config):
    """What every family's configuration has."""

    family: str
    sample_rate: SampleRate
    hop: Hop
    books: Books
    codebook_size: CodebookSize


class Trained(NamedTuple):
    """A training pass: the decoded audio, aligned with the input, and what the quantiser says."""

    audio: Audio
    latents: Latents
    quantized: Quantized


class Codec(nn.Module):
    """Audio <-> codes, whole or as a stream. Mono: the channels of a recording are rows of the batch.

    A family gives the four methods below `initial state and step`; everything else follows from them.
    """

    quantizer: Quantizer
    name: str | None = None
    weights_hash: str | None = None

    def __init__(self, config: CodecConfig, *, overlap: int) -> None:
        super().__init__()
        self.config = config
        self.frame_math = FrameMath(
            sample_rate=config.sample_rate,
            hop=config.hop,
            overlap=overlap,
            books=config.books,
            codebook_size=config.codebook_size,
        )

    # initial state and step

    @abstractmethod
    def encoder_state(self, batch: int) -> State:
        """The encoder before the first sample."""

    @abstractmethod
    def latents_step(self, audio: Audio, state: State) -> tuple[Latents, State]:
        """One latent frame per hop of samples; `audio` holds a multiple of hop."""

    @abstractmethod
    def decoder_state(self, batch: int) -> State:
        """The decoder before the first frame."""

    @abstractmethod
    def audio_step(self, latents: Latents, state: State) -> tuple[Audio, State]:
        """A hop of samples per frame, late by `frame_math.overlap` samples."""

    # streaming

    @torch.inference_mode()
    def encode_step(self, audio: Audio, state: State, *, books: int | None = None) -> tuple[Codes, State]:
        """Codes of a chunk [batch, 1, time] whose time is a multiple of hop, and the state after it."""
        latents, state = self.latents_step(audio, state)
        return self.quantizer.encode(latents, self.check_books(books)), state

    @torch.inference_mode()
    def decode_step(self, codes: Codes, state: State) -> tuple[Audio, State]:
        """Audio of a chunk of frames, late by `frame_math.overlap` samples, and the state after it."""
        self.check_codes(codes)
        return self.audio_step(self.quantizer.decode(codes), state)

    # whole signals

    def encode(self, audio: Audio, *, books: int | None = None, lengths: Tensor | None = None) -> Codes:
        """Codes [batch, books, frames] of audio [batch, 1, time] at the model's rate, `frame_math.frames(time)` frames.

        `lengths` [batch] in samples mark the ends of padded items: an item's first frames(length) frames are those it
        would get alone.

        Raises:
            UsageError: audio is not float32 [batch, 1, time >= 1] or holds NaN, `lengths` are not one per item, or more
                books are asked for than there are.
        """
        self.check_audio(audio)
        time = audio.shape[-1]
        if lengths is not None:
            if lengths.shape != audio.shape[:1]:
                raise UsageError(f"lengths are {list(lengths.shape)}; give one per item, [{len(audio)}]")
            inside = torch.arange(time, device=audio.device) < lengths.to(audio.device)[:, None, None]
            audio = torch.where(inside, audio, 0.0)
        self.check_samples(audio)
        audio = F.pad(audio, (0, self.frame_math.frames(time) * self.config.hop - time))
        return self.encode_step(audio, self.encoder_state(len(audio)), books=books)[0]

    def decode(self, codes: Codes, *, length: int | None = None) -> Audio:
        """Audio [batch, 1, length] of codes [batch, books, frames]; without `length`, all that the frames hold.

        Raises:
            UsageError: codes are out of range, have too many books, or hold fewer samples than `length`.
        """
        self.check_codes(codes)
        holds = self.frame_math.time(codes.shape[-1])
        if length is None:
            length = holds
        if not 0 <= length <= holds:
            raise UsageError(f"{codes.shape[-1]} frames hold 0 to {holds} samples, not {length}")
        audio = self.decode_step(codes, self.decoder_state(len(codes)))[0]
        overlap = self.frame_math.overlap
        return audio[..., overlap : overlap + length]

    # training

    def forward(self, audio: Audio, books: Tensor | None = None) -> Trained:
        """Encode, quantise and decode audio [batch, 1, time] with gradients; `books` [batch] as in `Quantizer`."""
        time = audio.shape[-1]
        padded = F.pad(audio, (0, self.frame_math.frames(time) * self.config.hop - time))
        latents, _ = self.latents_step(padded, self.encoder_state(len(audio)))
        quantized = self.quantizer(latents, books)
        decoded, _ = self.audio_step(quantized.latents, self.decoder_state(len(audio)))
        overlap = self.frame_math.overlap
        return Trained(decoded[..., overlap : overlap + time], latents, quantized)

    # checks

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def check_books(self, books: int | None) -> int:
        """`books` if the model has that many, all of them for None; `UsageError` otherwise."""
        books = self.config.books if books is None else books
        if not 1 <= books <= self.config.books:
            raise UsageError(f"this model has 1 to {self.config.books} books, not {books}")
        return books

    def check_audio(self, audio: Audio) -> None:
        """`UsageError` unless audio is float32 [batch, 1, time >= 1]."""
        if not isinstance(audio, Tensor) or audio.dtype != torch.float32:
            kind = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
            raise UsageError(f"audio is {kind}; give a float32 tensor in [-1, 1], as torch.from_numpy(samples).float()")
        if audio.ndim != 3 or audio.shape[1] != 1 or audio.numel() == 0:
            raise UsageError(
                f"audio has shape {list(audio.shape)}; give [batch, 1, time] with at least one sample "
                "(the channels of a recording are rows of the batch)"
            )

    def check_samples(self, audio: Audio) -> None:
        """`UsageError` if a sample is NaN, infinite or beyond `audio.LOUDEST`."""
        if audio.numel() and not audio.abs().max() <= LOUDEST:  # false for NaN too
            raise UsageError(f"audio has samples that are NaN, infinite or beyond {LOUDEST:g}; full scale is 1")

    def check_codes(self, codes: Codes) -> None:
        """`UsageError` unless codes are [batch, books, frames] within the codebooks."""
        if not isinstance(codes, Tensor) or codes.ndim != 3 or codes.dtype != torch.int64:
            kind = f"{codes.dtype} {list(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
            raise UsageError(f"codes are {kind}; give an int64 tensor [batch, books, frames]")
        self.check_books(codes.shape[1])
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.codebook_size:
            raise UsageError(
                f"codes run from {int(codes.min())} to {int(codes.max())}; "
                f"this model's run from 0 to {self.config.codebook_size - 1}"
            )
