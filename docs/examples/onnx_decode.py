"""Decode a .codec file with a model exported by `codec export`: numpy and onnxruntime alone, without torch or codec.

    codec export general-24k --onnx DIR
    python docs/examples/onnx_decode.py DIR recording.codec restored.wav [NAME.entropy.safetensors]

The last file is the network of entropy coding, which most files of shipped codecs need.
The audio is at the model's sample rate. `SECONDS` of frames are decoded at once; any other number gives the same.
"""

import hashlib
import json
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from read_codec import read  # type: ignore[import-not-found, unused-ignore]  # the file beside this one

SECONDS = 10


def decode(folder: Path, source: Path, network: bytes | None = None) -> tuple[np.ndarray[Any, Any], int]:
    """(float32 audio [channels, time], sample rate)."""
    try:
        session = onnxruntime.InferenceSession(folder / "decoder.onnx", providers=["CPUExecutionProvider"])
        model = json.loads(session.get_modelmeta().custom_metadata_map["codec"])
        if hashlib.sha256((folder / "shared.bin").read_bytes()).hexdigest() != model["shared"]["sha256"]:
            raise ValueError("shared.bin is of another model")
    except Exception as error:  # onnxruntime has a class of its own for each kind of damage
        sys.exit(f"{folder / 'decoder.onnx'} is damaged or not of codec export ({str(error).splitlines()[0]})")
    file = read(source.read_bytes(), network)
    header = file["header"]
    if header["weights_hash"] != model["weights_hash"]:
        sys.exit(
            f"{source} was made by {header['model']} (weights {header['weights_hash'][:12]}), and {folder} has weights "
            f"{str(model['weights_hash'])[:12]}: export the model that made the file"
        )
    codes = np.concatenate([np.array(packet["codes"], np.int64) for packet in file["packets"]], axis=2)
    absent = model["num_codebooks"] - codes.shape[1]
    codes = np.pad(codes, ((0, 0), (0, absent), (0, 0)), constant_values=-1)
    state = [np.zeros((len(codes), *one["shape"][1:]), one["dtype"]) for one in model["states"]]
    names = [one["name"] for one in model["states"]]
    step = max(1, SECONDS * model["sample_rate"] // model["hop"])
    parts = []
    for first in range(0, codes.shape[2], step):
        chunk = {"codes": codes[:, :, first : first + step], **dict(zip(names, state, strict=True))}
        audio, *state = session.run(None, chunk)
        parts.append(audio)
    audio = np.concatenate(parts, axis=2).reshape(-1, codes.shape[2] * model["hop"])  # [rows, time]
    if "mix" in header:
        audio = np.array(header["mix"], np.float32) @ audio
    time = -(-header["time"] * model["sample_rate"] // header["source_rate"])
    delay = model["decoder_delay"]
    return audio[: header["channels"], delay : delay + time], model["sample_rate"]


if __name__ == "__main__":
    try:
        network = Path(sys.argv[4]).read_bytes() if len(sys.argv) > 4 else None
        audio, rate = decode(Path(sys.argv[1]), Path(sys.argv[2]), network)
    except OSError as error:
        sys.exit(f"{error.filename} cannot be read ({error.strerror})")
    with wave.open(sys.argv[3], "wb") as file:
        file.setparams((len(audio), 2, rate, 0, "NONE", ""))
        file.writeframes((audio.T.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
