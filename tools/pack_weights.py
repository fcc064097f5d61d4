"""Pack a trained model for shipping: half precision, with the recipe, the step and the numbers that made it.

    python tools/pack_weights.py runs/general codec/weights/general-24k.safetensors --numbers evaluation.json

`evaluation.json` is what `codec evaluate --json` wrote for this run's model on data it was not trained on.
"""

import argparse
import json
from pathlib import Path

import torch

from codec.checkpoint import CodecCard, load_lm, load_model, read_card, save_lm, save_model
from codec.pretrained import find

NUM_CODEBOOKS = (3, 6, 11, 12)  # numbers of codebooks whose measures are kept


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="a training run's folder, or a model file")
    parser.add_argument("target", type=Path, help="the file to ship")
    parser.add_argument("--numbers", type=Path, help="JSON of codec evaluate")
    arguments = parser.parse_args()

    card = read_card(find(arguments.run))
    training = dict(card.training)
    training["data"] = Path(training["data"]).name  # where it lay on the machine that trained is nobody's concern
    if begun := training["recipe"]["train"].get("start_from"):
        training["recipe"]["train"]["start_from"] = Path(begun).name
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
