"""Names of tensor shapes, used in every signature of `nn` and `models`.

`time` counts audio samples, `frames` counts latent steps; neither ever means the other.
"""

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Audio: TypeAlias = Float[Tensor, "batch channels time"]
Latents: TypeAlias = Float[Tensor, "batch dim frames"]
Codes: TypeAlias = Int[Tensor, "batch codebooks frames"]
Logits: TypeAlias = Float[Tensor, "batch codebooks frames codebook_size"]
