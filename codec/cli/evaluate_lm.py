"""codec evaluate-lm"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec import pretrained
from codec.cli.options import (
    CONDITIONING,
    INPUT_OUTPUT,
    MEASURES,
    SAMPLING,
    CodecOption,
    DeviceOption,
    echo,
    progress_bar,
    say,
)
from codec.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


def evaluate_lm(
    lm: Annotated[
        str,
        typer.Argument(
            metavar="LM", help="Language model: name of a shipped one, path of a file, or folder of a training run."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Manifest of labeled recordings: the training data of the model, and held-out ones as split valid.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ],
    samples: Annotated[
        int, typer.Option(min=2, help="Clips to generate, equally many of every label.", rich_help_panel=SAMPLING)
    ] = 2048,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the generated clips.", rich_help_panel=SAMPLING)] = 0,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1e3,
            help="Classifier-free guidance scale: 1 disables it, 0 ignores the label.",
            show_default="the model's",
            rich_help_panel=CONDITIONING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Sampling temperature: below 1 favors probable codes, above 1 improbable ones.",
            show_default="the model's",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Classifier of the labels; if there is no such file, it is trained on the real recordings and saved.",
            show_default="runs/classifier-DIGEST.safetensors",
            rich_help_panel=MEASURES,
        ),
    ] = None,
    codec: CodecOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Also write the result as JSON.", rich_help_panel=INPUT_OUTPUT)
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Generate clips of every label with a language model, and compare them with real recordings.

    A classifier of the labels measures accuracy, FID, Inception Score, class balance and copies of training clips.

    Example: codec evaluate-lm runs/digits-lm --data recordings/manifest.jsonl
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
        raise UsageError(f"{lm} knows no labels, which this evaluation needs: train a model on a store with labels")
    if sampling:  # checked here, because the classifier may take minutes to train
        Sampler(
            sampling,
            num_codebooks=model.source.num_codebooks,
            codebook_size=model.source.codebook_size,
            device=model.device,
        )
    corpus = lm_evaluation.labeled_corpus(clips(data), known=known)

    def generate(requests: Sequence[tuple[int, str]]) -> "list[Tensor]":
        generated = generate_clips(
            model,
            decoder,
            [seed for seed, _ in requests],
            model.conditioning([{"label": label} for _, label in requests]),
            guidance=guidance,
            sampling=sampling,
            max_seconds=classifiers.SECONDS,
        )
        return [audio.cpu() for audio in generated]

    with ExitStack() as stack:
        file = stack.enter_context(atomic_output(out, force=True)) if out else None
        rate = decoder.config.sample_rate
        digest = classifiers.digest(corpus.train, sample_rate=rate)
        path = classifier or Path("runs", f"classifier-{digest[:12]}.safetensors")
        if not path.is_file():
            say(f"training a classifier on {len(corpus.train)} real recordings, which takes a few minutes: {path}")
        with progress_bar("training the classifier") as show:
            trained = classifiers.load_or_train(path, corpus.train, sample_rate=rate, report=show)
        with progress_bar("evaluating") as show:
            result = lm_evaluation.evaluate(
                generate,
                decoder,
                corpus,
                trained,
                samples=samples,
                seed=seed,
                num_codebooks=model.source.num_codebooks,
                level=model.source.level,
                progress=show,
            )
        if file:
            file.write(result.as_json().encode() + b"\n")
    echo(str(result))
