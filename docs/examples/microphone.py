"""Send a microphone through the codec to the loudspeaker, and measure the latency.

    python microphone.py                                    needs: pip install sounddevice
    python microphone.py --input in.wav --output out.wav    a recording instead, block by block

Use headphones: the microphone would pick up the loudspeaker.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

import codec
from codec.io.audio import open_writer, read_audio

Samples = NDArray[np.float32]  # [time]
WARM_UP = 20  # blocks before the devices are opened, because the first ones load what later ones use


class Loop:
    """Encode and decode blocks of a live signal; record what each block waits for."""

    def __init__(self, model: codec.Codec, rate: int) -> None:
        self.encoder = codec.StreamEncoder(model, input_rate=rate)
        self.decoder = codec.StreamDecoder(model, output_rate=rate)
        self.sample_rate = rate
        self.buffered: list[int] = []  # samples between the oldest one in the loop and the newest, when a block arrives
        self.seconds: list[float] = []  # computation per block

    def push(self, block: Samples) -> Samples:
        start = perf_counter()
        self.buffered.append(self.encoder.time + len(block) - self.decoder.time)
        audio = self.decoder.push(self.encoder.push(block[None, None]))  # [1, 1, time]
        self.seconds.append(perf_counter() - start)
        return audio[0, 0].cpu().numpy()

    def flush(self) -> Samples:
        rest = [self.decoder.push(self.encoder.flush()), self.decoder.flush()]
        return np.concatenate([audio[0, 0].cpu().numpy() for audio in rest])

    def report(self, device: float = 0.0) -> str:
        buffered, computing = max(self.buffered) / self.sample_rate, statistics.median(self.seconds)
        return (
            f"latency {1000 * (buffered + computing + device):.1f} ms: {1000 * buffered:.1f} ms of audio in the codec, "
            f"{1000 * computing:.1f} ms of computation (at most {1000 * max(self.seconds):.1f} ms), "
            f"{1000 * device:.1f} ms in the sound device"
        )


def from_file(loop: Loop, source: Path, target: Path, block: int) -> str:
    audio, _ = read_audio(source, rate=loop.sample_rate, mono=True)
    with open_writer(target, rate=loop.sample_rate, channels=1, force=True) as writer:
        for start in range(0, audio.shape[1], block):
            writer.write(loop.push(audio[0, start : start + block])[None])
        writer.write(loop.flush()[None])
    return loop.report()


def from_microphone(loop: Loop, block: int, show: Callable[[str], None]) -> str:
    import sounddevice

    with sounddevice.Stream(loop.sample_rate, block, channels=1, dtype="float32", latency="low") as stream:
        device = sum(stream.latency)  # input and output
        show("press Ctrl-C to stop")
        try:
            while True:
                samples, _ = stream.read(block)  # [time, channels]
                stream.write(loop.push(samples[:, 0])[:, None].copy())
        except KeyboardInterrupt:
            return loop.report(device)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="general-24k")
    parser.add_argument("--input", type=Path, help="recording to use instead of the microphone")
    parser.add_argument("--output", type=Path, default=Path("out.wav"), help="decoded recording")
    parser.add_argument("--rate", type=int, help="sample rate of the device and of OUTPUT; default: the model's")
    parser.add_argument("--block", type=int, help="samples per block; default: one hop of the model")
    options = parser.parse_args(arguments)
    model = codec.load(options.model)
    rate = options.rate or model.sample_rate
    loop, block = Loop(model, rate), options.block or model.frame_spec.hop * rate // model.sample_rate
    warm_up = Loop(model, rate)
    for _ in range(WARM_UP):
        warm_up.push(np.zeros(block, np.float32))
    if options.input is not None:
        print(from_file(loop, options.input, options.output, block))
    else:
        print(from_microphone(loop, block, print))


if __name__ == "__main__":
    main()
