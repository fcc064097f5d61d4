"""Train a GPT on the codes of a codec: model, data, training and sampling in 60 lines of plain torch.

    python docs/examples/gpt.py recordings/ --model digits-8k --output sample.wav     a folder of recordings
    python docs/examples/gpt.py tokens/ --model digits-8k --output sample.wav         a token store of `codec tokenize`

The first codebooks of every frame are flattened to one sequence, frame by frame:

    frame       0         1         2
    codebook    0    1    0    1    0   ...
    token      17  256+5  3  256+9  88  ...     a code of codebook 1 is offset by the codebook size, here 256
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import codec
from codec.data.clips import clip_audio, clips
from codec.data.token_store import TokenStore
from codec.io.audio import write_audio

OPTIONS = {
    **{"model": "general-24k", "codebooks": 2, "seconds": 5.0, "output": "sample.wav", "seed": 0, "temperature": 0.9},
    **{"context": 512, "width": 256, "layers": 4, "heads": 4, "steps": 2000, "batch-size": 16, "lr": 3e-4},
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path, help="token store, folder of recordings, or manifest")
for name, default in OPTIONS.items():
    parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default {default}")
args = parser.parse_args()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv_proj(self.attention_norm(x)).unflatten(2, (3, args.heads, -1))  # [batch, steps, 3, heads, dim]
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(args.layers)))
        self.lm_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, steps, vocabulary] of the next token, for tokens [batch, steps]."""
        positions = self.position_embedding(torch.arange(tokens.shape[1]))
        return self.lm_head(self.blocks(self.token_embedding(tokens) + positions))  # type: ignore[no-any-return]


torch.manual_seed(args.seed)
model = codec.load(args.model, device="cpu")
spec, codebooks = model.frame_spec, args.codebooks
if (args.data / "store.json").is_file():
    codes = [tokens.codes for tokens in TokenStore(args.data, model)]
else:
    audio = (torch.from_numpy(clip_audio(clip, rate=spec.sample_rate)) for clip in clips(args.data))
    codes = [model.encode(recording[None])[0] for recording in audio]
offsets = spec.codebook_size * torch.arange(codebooks)[:, None]
sequence = torch.cat([clip[:codebooks] + offsets for clip in codes], dim=1).T.flatten()  # frame by frame
print(f"{len(codes)} clips, {len(sequence)} tokens")

context = args.context // codebooks * codebooks  # whole frames
gpt = GPT(codebooks * spec.codebook_size, context, args.width)
optimizer = torch.optim.AdamW(gpt.parameters(), lr=args.lr)
length = min(context, len(sequence) - 1)
for step in range(1, args.steps + 1):
    starts = torch.randint((len(sequence) - length - 1) // codebooks + 1, (args.batch_size, 1)) * codebooks
    crops = sequence[starts + torch.arange(length + 1)]  # each begins at a frame
    loss = F.cross_entropy(gpt(crops[:, :-1]).flatten(0, 1), crops[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if step % 100 == 1 or step == args.steps:
        print(f"step {step}: loss {loss.item():.3f}")

tokens = sequence[None, :codebooks]  # [1, steps], the first frame of the training data
frames = spec.frames(spec.samples(args.seconds))
with torch.no_grad():
    while tokens.shape[1] < frames * codebooks:
        codebook = tokens.shape[1] % codebooks
        recent = tokens[:, -(context - codebooks + codebook) :]  # begins at a frame, as in training
        first = codebook * spec.codebook_size
        logits = gpt(recent)[:, -1, first : first + spec.codebook_size] / args.temperature  # of the next codebook
        tokens = torch.cat([tokens, first + torch.multinomial(logits.softmax(dim=-1), 1)], dim=1)
sampled = tokens.view(1, frames, codebooks).mT % spec.codebook_size  # [1, codebooks, frames]
decoded = model.decode(sampled, length=spec.samples(args.seconds))  # [1, 1, time]
write_audio(Path(args.output), decoded[0].numpy(), model.sample_rate, force=True)
print(f"{args.output}: {args.seconds:g} s")
