"""Encode every recording in a folder to a token file (.npy), in parallel on a Ray cluster.

    python batch_ray.py recordings/ tokens/ --model general-24k --jobs 8

Without RAY_ADDRESS, Ray runs on this machine. The same command resumes a stopped job, because a file appears once it is
complete. `codec tokenize --engine ray` writes a token store instead, with an index and checksums.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import codec
from codec.errors import CodecError
from codec.io.audio import is_audio_path, read_audio
from codec.io.storage import atomic_output, walk


class Encoder:
    """A worker process: it loads the model once and encodes one recording per call."""

    def __init__(self, model: str, source: Path, target: Path) -> None:
        self.model, self.source, self.target = codec.load(model), source, target

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        path = self.target / f"{row['name']}.npy"
        try:
            audio, _ = read_audio(self.source / row["name"], rate=self.model.sample_rate)  # [channels, time]
            codes = self.model.encode(torch.from_numpy(audio)[:, None])  # channels are rows of the batch
        except CodecError as error:
            return row | {"result": f"failed: {error}"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(path, force=True) as file:
            np.save(file, codes.cpu().numpy().astype(np.uint16))  # [channels, codebooks, frames]
        return row | {"result": f"{codes.shape[2]} frames"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="general-24k")
    parser.add_argument("--jobs", type=int, default=4, help="largest number of worker processes")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per process; 0.25 lets four processes share one")
    options = parser.parse_args(arguments)
    import ray.data  # after the options, because it takes seconds

    source, target = options.source.absolute(), options.target.absolute()
    names = [name for name in walk(source, is_audio_path) if not (target / f"{name}.npy").exists()]
    workers = ray.data.ActorPoolStrategy(min_size=1, max_size=options.jobs)
    dataset = ray.data.from_items([{"name": name} for name in names]).map(
        Encoder, fn_constructor_args=(options.model, source, target), compute=workers, num_gpus=options.gpus
    )
    for row in dataset.iter_rows() if names else ():
        print(row["name"], row["result"])


if __name__ == "__main__":
    main()
