"""Pack a trained model for release: fp16 weights with recipe, step and measures.

    python tools/pack_weights.py runs/general codec/weights/general-24k.safetensors --numbers evaluation.json

`evaluation.json` is the output of `codec evaluate --json` for this model on held-out data.
"""

import argparse
import json
from pathlib import Path

import torch

from codec.checkpoint import CodecCard, load_lm, load_model, read_card, save_lm, save_model
from codec.pretrained import find

NUM_CODEBOOKS = (3, 6, 12, 13, 16)  # numbers of codebooks whose measures are kept


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="folder of a training run, or a model file")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--numbers", type=Path, help="JSON of codec evaluate")
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
    if isinstance(card, CodecCard):
        save_model(arguments.target, load_model(card.path), training=training, dtype=torch.float16)
    else:
        save_lm(arguments.target, load_lm(card.path), training=training, dtype=torch.float16)
    print(f"{arguments.target}: {arguments.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
