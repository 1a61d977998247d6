"""`fullres explain`: where a network finds its evidence for a class, as colours over the image."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress

from fullres.jobs.common import WeightsOption, asked_for, clear_errors, complain, console, fail, load
from fullres.models.catalogue import CATALOGUE
from fullres.pipeline.data.images import ImageError, list_images, naming, read_image, write_png
from fullres.pipeline.data.pictures import heat
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.review.explain import Explainer, LayerError


def explain(
    images: Annotated[
        list[str], typer.Argument(help="Images, folders or glob patterns.", metavar="IMAGES|DIR|GLOB...")
    ],
    classes: Annotated[str, typer.Option(help="Which classes: names with commas between.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    model: Annotated[
        str | None, typer.Option(help="Network: smp18 if not given, pspnet50, ...; see `fullres models`.")
    ] = None,
    weights: WeightsOption = None,
    dataset: Annotated[
        str | None, typer.Option(help="Whose classes; what the weights say by default.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(help="Whose features are shown, e.g. backbone.layer3; the backbone's last by default."),
    ] = None,
) -> None:
    """Show where a network finds its evidence for a class (Grad-CAM): a picture for each image and class.

    The network sees the whole image at once, in this process, on its GPU if there is one: memory grows with
    the image, without a budget.
    """
    with clear_errors():
        asked = asked_for(model, weights, dataset)
        network, known, _ = load(asked)
        ids = _class_ids(classes, known)
        found = list_images(images)
        try:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            explainer = Explainer(network, layer or CATALOGUE[asked.model].evidence, device)
        except LayerError as error:
            fail(f"--layer: {error}")
        failures, absent = _write_pictures(explainer, found, ids, out)
    for path, reason in failures.items():
        complain("failed", naming(path, reason))
    shown = len(found) - len(failures)
    for name, count in absent.items():
        if count:
            console.print(f"no pixel is labelled {name} in {count} of {shown} images: their maps are empty")
    print(f"{shown} of {len(found)} images, {len(ids)} classes, layer {explainer.layer}; pictures in {out}")
    raise typer.Exit(1 if failures else 0)


def _write_pictures(
    explainer: Explainer, images: list[tuple[Path, Path]], ids: dict[str, int], out: Path
) -> tuple[dict[Path, str], dict[str, int]]:
    """Which images could not be read, and why; in how many images no pixel has each class."""
    failures: dict[Path, str] = {}
    absent = dict.fromkeys(ids, 0)
    with Progress(console=console, transient=True) as bar:
        for path, stem in bar.track(images, description="images"):
            try:
                image = read_image(path)
            except ImageError as error:
                failures[path] = str(error)
                continue
            for name, evidence in zip(ids, explainer.explain(image, list(ids.values())), strict=True):
                ending = name.replace(" ", "_")
                write_png(out / stem.parent / f"{stem.name}_{ending}.png", heat(image, evidence.map))
                absent[name] += not evidence.pixels
    return failures, absent


def _class_ids(text: str, known: Dataset) -> dict[str, int]:
    """The named classes, in the order given. Ends the job at an unknown name."""
    names = dict.fromkeys(name.strip() for name in text.split(","))
    for name in names:
        if name not in known.classes:
            fail(f"--classes: '{name}' is no class of {known.name}: {', '.join(known.classes)}")
    return {name: known.classes.index(name) for name in names}
