"""codec evaluate-lm"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec import pretrained
from codec.cli.options import DeviceOption, progress_bar, say
from codec.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


def evaluate_lm(
    lm: Annotated[
        str, typer.Argument(metavar="LM", help="A shipped language model's name, its file or its run's folder.")
    ],
    data: Annotated[
        Path, typer.Option(help="A manifest with labels: what the model learned, and as split valid what it did not.")
    ],
    samples: Annotated[int, typer.Option(min=2, help="Clips to generate, each label equally often.")] = 2048,
    seed: Annotated[int, typer.Option(min=0, help="Of the clips.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(min=0.0, max=1e3, help="Of the label; 1 is as learned.", show_default="the model's")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of the sampling; 1 is as learned.", show_default="the model's")
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The judge, which is trained on the real recordings and kept there the first time.",
            show_default="runs/classifier-DIGEST.safetensors",
        ),
    ] = None,
    codec: Annotated[
        str | None, typer.Option(help="The codec whose codes it learned.", show_default="found by its weights")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="JSON", help="Also write all as JSON.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Judge the clips that a language model generates of every label, beside real recordings.

    If the model was trained on recordings brought to one level, those it is compared with are too.
    """
    from codec.data.clips import clips
    from codec.evaluation import classifier as classifiers
    from codec.evaluation import lm as lm_evaluation
    from codec.generation import generate_clips
    from codec.io.storage import atomic_output
    from codec.lm.filters import Sampler, Sampling

    sampling = None if temperature is None else Sampling.from_data({"temperature": temperature}, source="options")
    model = pretrained.load_lm(lm, device)
    decoder = pretrained.codec_of(model, codec, device)
    known = model.source.classes.get("label", ())
    if not known:
        raise UsageError(f"{lm} knows no labels, and clips of none cannot be judged: train it on a store with labels")
    if sampling:  # which is checked before the minutes that all else takes
        Sampler(
            sampling,
            num_codebooks=model.source.num_codebooks,
            codebook_size=model.source.codebook_size,
            device=model.device,
        )
    corpus = lm_evaluation.sides(clips(data), known=known)

    def generate(asked: Sequence[tuple[int, str]]) -> "list[Tensor]":
        made = generate_clips(
            model,
            decoder,
            [seed for seed, _ in asked],
            model.conditioning([{"label": label} for _, label in asked]),
            guidance=guidance,
            sampling=sampling,
            max_seconds=classifiers.SECONDS,
        )
        return [audio.cpu() for audio in made]

    with ExitStack() as stack:
        file = stack.enter_context(atomic_output(out, force=True)) if out else None
        rate = decoder.config.sample_rate
        digest = classifiers.digest(corpus.train, sample_rate=rate)
        path = classifier or Path("runs", f"classifier-{digest[:12]}.safetensors")
        if not path.is_file():
            say(f"training a classifier on {len(corpus.train)} real recordings, a few minutes: {path}")
        with progress_bar("training the classifier") as show:
            judge = classifiers.load_or_train(path, corpus.train, sample_rate=rate, report=show)
        with progress_bar("evaluating") as show:
            result = lm_evaluation.evaluate(
                generate,
                decoder,
                corpus,
                judge,
                samples=samples,
                seed=seed,
                num_codebooks=model.source.num_codebooks,
                level_db=model.source.level_db,
                progress=show,
            )
        if file:
            file.write(result.as_json().encode() + b"\n")
    typer.echo(str(result))
