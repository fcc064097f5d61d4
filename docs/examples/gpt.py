"""Train a GPT on the codes of a codec: model, training and sampling in 60 lines of plain torch.

    python docs/examples/gpt.py recordings/ --model digits-8k -o sample.wav     a folder of recordings
    python docs/examples/gpt.py tokens/ --model digits-8k -o sample.wav         a token store of `codec tokenize`

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


class Block(nn.Module):
    """Causal self-attention and an MLP, with pre-normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv_proj(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))  # [batch, steps, 3, heads, dim]
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.out_proj(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class GPT(nn.Module):
    """Logits [batch, steps, vocabulary] of the next token, for tokens [batch, steps]."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.context = context
        self.token_embedding, self.position_embedding = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        logits: Tensor = self.lm_head(self.norm(self.blocks(x)))
        return logits


def read_codes(data: Path, model: codec.Codec) -> list[Tensor]:
    """Codes [codebooks, frames] of a token store, or of the recordings in a folder or manifest."""
    if (data / "store.json").is_file():
        return [tokens.codes for tokens in TokenStore(data, model)]
    audio = (torch.from_numpy(clip_audio(clip, rate=model.sample_rate)) for clip in clips(data))
    return [model.encode(recording[None])[0] for recording in audio]


def train(gpt: GPT, sequence: Tensor, *, steps: int, batch_size: int, lr: float, codebooks: int) -> None:
    """Predict every token of random crops of the sequence; crops start at a frame."""
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=lr)
    length = min(gpt.context, len(sequence) - 1)
    for step in range(steps):
        starts = torch.randint((len(sequence) - length - 1) // codebooks + 1, (batch_size, 1)) * codebooks
        crops = sequence[starts + torch.arange(length + 1)]
        loss = F.cross_entropy(gpt(crops[:, :-1]).flatten(0, 1), crops[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 100 == 0 or step + 1 == steps:
            print(f"step {step + 1}: loss {loss.item():.3f}")


@torch.no_grad()
def sample(gpt: GPT, prompt: Tensor, *, frames: int, codebooks: int, codebook_size: int, temperature: float) -> Tensor:
    """Continue the tokens of one frame; codes [1, codebooks, frames]."""
    tokens = prompt[None]  # [1, steps]
    while tokens.shape[1] < frames * codebooks:
        codebook = tokens.shape[1] % codebooks
        context = tokens[:, -(gpt.context - codebooks + codebook) :]  # begins at a frame, as in training
        first = codebook * codebook_size
        logits = gpt(context)[:, -1, first : first + codebook_size] / temperature  # only codes of the next codebook
        tokens = torch.cat([tokens, first + torch.multinomial(logits.softmax(dim=-1), 1)], dim=1)
    return tokens.view(1, frames, codebooks).mT % codebook_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="token store, folder of recordings, or manifest")
    parser.add_argument("--model", default="general-24k", help="codec: name, file, or folder of a training run")
    parser.add_argument("--codebooks", type=int, default=2, help="number of codebooks (default 2)")
    parser.add_argument("--context", type=int, default=512, help="tokens of context (default 512)")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default 2000)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate (default 3e-4)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the sample (default 5)")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("sample.wav"))
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = codec.load(args.model, device="cpu")
    codebook_size = model.frame_spec.codebook_size
    offsets = codebook_size * torch.arange(args.codebooks)[:, None]
    codes = [clip[: args.codebooks] + offsets for clip in read_codes(args.data, model)]
    sequence = torch.cat(codes, dim=1).T.flatten()  # frame by frame
    print(f"{len(codes)} clips, {len(sequence)} tokens")

    context = args.context // args.codebooks * args.codebooks  # whole frames
    gpt = GPT(args.codebooks * codebook_size, context, args.width, args.layers, args.heads)
    train(gpt, sequence, steps=args.steps, batch_size=args.batch_size, lr=args.lr, codebooks=args.codebooks)
    frames = model.frame_spec.frames(model.frame_spec.samples(args.seconds))
    sampling = {"frames": frames, "codebooks": args.codebooks, "codebook_size": codebook_size}
    sampled = sample(gpt.eval(), sequence[: args.codebooks], temperature=args.temperature, **sampling)
    audio = model.decode(sampled, length=model.frame_spec.samples(args.seconds))  # [1, 1, time]
    write_audio(args.output, audio[0].numpy(), model.sample_rate, force=True)
    print(f"{args.output}: {args.seconds:g} s")


if __name__ == "__main__":
    main()
