"""What every language model of codes offers, whatever its network."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from codec.config import Config
from codec.errors import UsageError
from codec.io.level import HIGHEST_DB, LOWEST_DB
from codec.lm.patterns import Pattern, PatternConfig
from codec.models.base import CodebookSize, NumCodebooks
from codec.nn.linear import HalfLinear, replace_linears
from codec.nn.shapes import Codes, Logits
from codec.nn.streaming import State

EXTREMES = 1e-3, 1e3  # temperatures whose quotients float32 can hold
MOST_GUIDANCE = 1e3

StepTokens: TypeAlias = Int[Tensor, "batch codebooks"]
Hidden: TypeAlias = Any
"""What a step knows of the steps before it; each family's own."""
SampleFn: TypeAlias = Callable[[Tensor, int], Tensor]
"""From logits [batch, codebooks, codebook_size + 1] of some codebooks, and the number of the first of them, to their codes."""


class CodebookSpec(Config):
    """Whose codes a model learned: the codec's name and weights, how many of its codebooks, and the classes of recordings.

    `dim` is the size of the vectors that the codes stand for. `classes` has the names of every kind, as {"label":
    ("yes", "no"), "speaker": (…)}. `level_db` is the level in dBFS that the recordings were brought to before they were
    encoded (`codec.io.level`), None if they were left as they are.
    """

    codec: str
    weights_hash: str
    num_codebooks: NumCodebooks
    codebook_size: CodebookSize
    dim: int = Field(ge=1)
    classes: dict[str, tuple[str, ...]] = Field({})
    level_db: float | None = Field(None, ge=LOWEST_DB, le=HIGHEST_DB)


class CodecLMConfig(Config):
    """What every family's configuration has."""

    family: str
    pattern: PatternConfig = PatternConfig()
    vectors: Literal["codebook", "learned"] = "codebook"
    """What codes look like to the model: the codec's own vectors, or vectors to learn from nothing."""
    guidance: float = Field(1.0, ge=0, le=MOST_GUIDANCE)
    """How much generation makes of what it is told, unless it is said then; 1 is as learned."""
    temperature: float = Field(1.0, ge=EXTREMES[0], le=EXTREMES[1])
    """Of its sampling, likewise."""


class Conditioning(NamedTuple):
    """What a batch is told beforehand.

    `classes` are the numbers of names, in the order of `Source.classes`, -1 for one that is not said. `text` is UTF-8,
    -1 after its end; where it has no byte, none is said.
    """

    classes: Int[Tensor, "batch kinds"]
    text: Int[Tensor, "batch bytes"]

    def to(self, device: torch.device) -> Conditioning:
        """The same, elsewhere."""
        return Conditioning(self.classes.to(device), self.text.to(device))


class CodeEmbedding(nn.Module):
    """Codes to vectors: those of the codec's codebooks, which stay as they are, or learned ones; holes are learned in both.

    Frozen vectors of the codec are what RQ-Transformer (Lee et al. 2022, section 3.2) feeds its model with. They are in
    units of the first codebook's mean length, so that their sums over codebooks are in proportion.
    """

    entries: Tensor
    scale: Tensor
    places: Tensor

    def __init__(self, source: CodebookSpec, kind: Literal["codebook", "learned"]) -> None:
        super().__init__()
        shape = source.num_codebooks, source.codebook_size, source.dim
        self.num_codebooks, self.size, self.dim = shape
        if kind == "learned":
            self.entries = nn.Parameter(torch.randn(shape))
        else:
            self.register_buffer("entries", torch.randn(shape))
        self.special_token = nn.Parameter(
            torch.randn(source.num_codebooks, source.dim)
        )  # norms have no gradient of zeros
        self.register_buffer("scale", torch.ones(source.num_codebooks))
        self.register_buffer("places", self.size * torch.arange(self.num_codebooks)[:, None], persistent=False)

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """Take a codec's `Quantizer.vectors` [codebooks or more, codebook_size, dim] for the entries."""
        vectors = vectors[: self.num_codebooks].float()
        lengths = vectors.square().sum(dim=-1).mean(dim=-1).sqrt().clamp(min=1e-12)  # [codebooks]
        self.entries.copy_(vectors / lengths[0] * self.dim**0.5)
        self.scale.copy_(lengths / lengths[0])
        self.special_token.mul_(self.scale[:, None])

    def forward(self, codes: Codes, first: int = 0) -> Float[Tensor, "batch codebooks steps dim"]:
        """Vectors of codes [batch, codebooks, steps] of the codebooks from `first` on; code `size` is a hole."""
        last = first + codes.shape[1]
        places = codes.clamp(max=self.size - 1) + self.places[first:last]
        found = F.embedding(places, self.entries.flatten(0, 1))
        return torch.where((codes == self.size)[..., None], self.special_token[first:last, None], found)

    def alike(self, codes: Codes) -> Float[Tensor, "batch steps parts"]:
        """As `forward`, all codebooks of a step as one vector, each in units of its own length."""
        vectors: Tensor = self(codes)
        return (vectors / self.scale[:, None, None]).transpose(1, 2).flatten(2)


class ClassConditioner(nn.ModuleList):
    """What is told of the classes: for every kind an embedding of each name, and one of "not said"."""

    def __init__(self, source: CodebookSpec, width: int, *, std: float) -> None:
        super().__init__(nn.Embedding(len(names) + 1, width) for names in source.classes.values())
        self.width = width
        for weight in self.parameters():
            nn.init.normal_(weight, std=std)

    def forward(self, conditions: Conditioning) -> Float[Tensor, "batch width"]:
        """The sum over kinds."""
        numbers = conditions.classes
        told = torch.zeros(len(numbers), self.width, device=numbers.device)
        for number, embedding in enumerate(self):
            assert isinstance(embedding, nn.Embedding)
            told = told + embedding(numbers[:, number] % embedding.num_embeddings)  # -1 is the last
        return told


def refuse(model: nn.Module, *_: object) -> None:
    """No weights but those that were there when the model was laid out for steps."""
    raise UsageError("this language model is laid out for steps, its weights cannot be changed: build another one")


class CodecLM(nn.Module):
    """A language model of codes. It sees a recording as columns [batch, codebooks, steps], laid out by its `pattern`.

    Code `codebook_size` means a hole in a column, and the end of the recording among the classes of codebook 0. A family
    gives the four methods below; `sampling.generate_frames` drives them.
    """

    name: str | None = None
    weights_hash: str | None = None
    vectors: CodeEmbedding
    ends: Tensor

    def __init__(self, config: CodecLMConfig, source: CodebookSpec) -> None:
        super().__init__()
        self.config = config
        self.source = source
        self.pattern = Pattern(config.pattern, source.num_codebooks)
        self.special_token = source.codebook_size
        ends = torch.zeros(source.num_codebooks, source.codebook_size + 1)
        ends[1:, -1] = -torch.inf
        self.register_buffer("ends", ends, persistent=False)

    @abstractmethod
    def forward(self, columns: Codes, conditions: Conditioning) -> Logits:
        """Logits [batch, codebooks, steps, codebook_size + 1] of every cell, given the columns before it.

        Models that decide a column codebook by codebook also see the codebooks before it in its own column. The end is -inf for all
        codebooks but the first.
        """

    @abstractmethod
    def initial_state(self, conditions: Conditioning) -> State:
        """The state before the first step."""

    @abstractmethod
    def forward_step(self, column: StepTokens, state: State) -> tuple[Hidden, State]:
        """What is known after a column, given the one of the step before (holes before the first step).

        The state is used up: go on with the new one.
        """

    @abstractmethod
    def decode_step(self, context: Hidden, sample_fn: SampleFn) -> StepTokens:
        """The next column, its codes chosen by `pick`, which is asked once for all codebooks or once for each."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def without_end(self, logits: Logits) -> Logits:
        """The logits [batch, codebooks, codebook_size + 1], or of several steps, with no end but in the first codebook."""
        ends = self.ends.to(logits.dtype)  # [codebooks, classes]
        return logits + (ends if logits.ndim == 3 else ends[:, None])

    def prepare_for_inference(self) -> Self:
        """Itself, its matrices laid out as products with few rows read them fastest; no weight can be changed any more.

        With numbers of 16 bits, as those of a shipped model are, steps take a quarter of the time.
        """

        def laid_out(linear: nn.Linear) -> nn.Linear:
            if HalfLinear.fits(linear.weight):
                return HalfLinear(linear)
            linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t(), requires_grad=False)
            return linear

        replace_linears(self, laid_out)
        self.register_load_state_dict_pre_hook(refuse)  # type: ignore[no-untyped-call]
        return self

    def shifted(self, columns: Codes) -> Codes:
        """What the model sees at every step: the column of the step before, and holes at the first."""
        return F.pad(columns[..., :-1], (1, 0), value=self.special_token)

    def conditions(self, rows: Sequence[Mapping[str, str]]) -> Conditioning:
        """Conditions of a batch, one row each: {"label": "7"}, {"text": "yes", "speaker": "anna"} or {} for none.

        Raises UsageError for a kind or a name that the model does not know.
        """
        if not rows:
            raise UsageError("there are no rows to tell anything: give {} for one that is told nothing")
        kinds = list(self.source.classes)
        takes_text = getattr(self.config, "text", False)
        classes = torch.full((len(rows), len(kinds)), -1)
        texts = []
        for number, row in enumerate(rows):
            for kind, name in row.items():
                if kind == "text" and takes_text:
                    continue
                if kind not in kinds:
                    known = ", ".join([*kinds, *(["text"] if takes_text else [])]) or "nothing: it knows no classes"
                    raise UsageError(f"this model takes no {kind}; it can be given {known}")
                names = self.source.classes[kind]
                if name not in names:
                    close = difflib.get_close_matches(name, names, n=1)
                    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
                    hint = f"did you mean {close[0]}? It" if close else "it"
                    raise UsageError(f"this model knows no {kind} {name}: {hint} knows {shown}")
                classes[number, kinds.index(kind)] = names.index(name)
            try:
                texts.append(torch.tensor(list(row.get("text", "").encode()), dtype=torch.int64))
            except UnicodeEncodeError as error:
                raise UsageError(f"the text is none that UTF-8 can write ({error.reason}): give another") from error
        longest = max(map(len, texts), default=0)
        text = torch.stack([F.pad(one, (0, longest - len(one)), value=-1) for one in texts])
        return Conditioning(classes, text).to(self.device)
