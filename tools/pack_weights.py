"""Pack a trained model for release: fp16 weights with recipe, step and measures.

    python tools/pack_weights.py runs/general codec/weights/general-24k.safetensors --numbers evaluation.json

    python tools/pack_weights.py runs/general codec/weights/general-24k.safetensors --mantissa-bits 5

Fewer bits of the mantissa than the 10 of fp16 make compressed weights smaller: with 5, a weight takes about 9 bits in
the page of `codec page`. The weights hash changes; docs/lab-notes.md has what 4, 5 and 6 bits cost.

`evaluation.json` is the output of `codec evaluate --json` for this model on held-out data.
"""

import argparse
import json
from pathlib import Path

import torch

from codec.checkpoint import CodecCard, load_lm, load_model, read_card, save_lm, save_model
from codec.lm.base import CodecLM
from codec.pretrained import find

MANTISSA_BITS = 10  # of fp16
NUM_CODEBOOKS = (3, 6, 12, 13, 16)  # numbers of codebooks whose measures are kept


def round_mantissa(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest values of fp16 whose mantissa has zeros after its first `bits` bits; ties away from zero."""
    shift = MANTISSA_BITS - bits
    whole = tensor.half().view(torch.int16).to(torch.int32)
    magnitude = (whole & 0x7FFF) + ((1 << shift) >> 1) >> shift << shift
    return (magnitude | whole & 0x8000).to(torch.int16).view(torch.float16).to(tensor.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="folder of a training run, or a model file")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--numbers", type=Path, help="JSON of codec evaluate")
    parser.add_argument("--mantissa-bits", type=int, choices=range(2, MANTISSA_BITS + 1), default=MANTISSA_BITS)
    arguments = parser.parse_args()

    card = read_card(find(arguments.run))
    training = dict(card.training)
    training["data"] = Path(training["data"]).name  # the path on the training machine is private
    if start := training["recipe"]["train"].get("start_from"):
        training["recipe"]["train"]["start_from"] = Path(start).name
    if arguments.numbers:
        rows = json.loads(arguments.numbers.read_text())["rows"]
        training["numbers"] = {
            f"{row['name']}, {row['num_codebooks']} codebooks": {
                name: round(value, 4) for name, value in row["measures"].items() if value is not None
            }
            for row in rows
            if row["group"] != "set" and row["num_codebooks"] in NUM_CODEBOOKS
        }
    model = load_model(card.path) if isinstance(card, CodecCard) else load_lm(card.path)
    if arguments.mantissa_bits < MANTISSA_BITS:
        training["mantissa_bits"] = arguments.mantissa_bits
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(round_mantissa(tensor, arguments.mantissa_bits))
    if isinstance(model, CodecLM):
        save_lm(arguments.target, model, training=training, dtype=torch.float16)
    else:
        save_model(arguments.target, model, training=training, dtype=torch.float16)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
