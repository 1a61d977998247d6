"""`fullres predict`: every pixel's class at full resolution, on all workers of a Ray cluster."""

import enum
import hashlib
import json
import time
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live

from fullres.cluster.connection import ray_cluster
from fullres.cluster.coordinator import Coordinator, Read, Write
from fullres.cluster.stream import Options, Progress, Task
from fullres.cluster.workers import cluster_device
from fullres.jobs.common import (
    AddressOption,
    PrecisionChoice,
    WeightsOption,
    asked_for,
    choose_precision,
    clear_errors,
    console,
    fail,
    load,
    own_network,
    parse_bytes,
    parse_workers,
)  # fmt: skip
from fullres.jobs.predict_options import (
    attended,
    bands_of,
    classes_of,
    downsampler,
    reader,
    sampled_size,
    settings_of,
    state_digest,
    window_spec,
    within,
)  # fmt: skip
from fullres.jobs.progress import display, line, say, summarise
from fullres.models.catalogue import parameter_count
from fullres.ops.errors import NetworkError
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.data.images import ImageError, image_size, list_images, naming
from fullres.pipeline.data.storage import Storage
from fullres.pipeline.predict.adaptive import Adaptive, FromPoints, adaptive_engine
from fullres.pipeline.predict.engines import Engine, Resources, engine_for
from fullres.pipeline.predict.outputs import MANIFEST, POINTS, write_outputs, write_points
from fullres.pipeline.predict.sampler import Sampler
from fullres.pipeline.predict.schedule import BudgetError
from fullres.pipeline.predict.sources import Source, Sources
from fullres.pipeline.predict.windows import Average, Guided


class SaveKind(enum.StrEnum):
    """What is written besides the class ids."""

    color = "color"
    overlay = "overlay"
    npy = "npy"
    safetensors = "safetensors"
    points = "points"


def predict(
    images: Annotated[
        list[str], typer.Argument(help="Images, folders or glob patterns.", metavar="IMAGES|DIR|GLOB...")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[
        str | None, typer.Option(help="Network: smp18 if not given, pspnet50, ...; see `fullres models`.")
    ] = None,
    network_factory: Annotated[
        str | None,
        typer.Option("--network", help="Or one of your own: package.module:factory, without arguments."),
    ] = None,
    weights: WeightsOption = None,
    dataset: Annotated[
        str | None, typer.Option(help="Whose classes and colours; what the weights say by default.")
    ] = None,
    workers: Annotated[
        str, typer.Option(help="How many, or auto: one a GPU (a CPU where there are none).")
    ] = "auto",
    memory_budget: Annotated[str, typer.Option(help="A worker's memory beyond the model's own.")] = "4GiB",
    precision: Annotated[
        PrecisionChoice, typer.Option(help="auto: bf16 where the hardware computes it natively.")
    ] = (PrecisionChoice.auto),
    scales: Annotated[
        str | None, typer.Option(help="Resize images to these and average: 0.5,1,1.5. By windows.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirror image. By windows.")] = False,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Side of sliding windows in pixels; the whole image if not given."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Pixels between windows; two thirds of one if not given.")
    ] = None,
    base_size: Annotated[
        int | None,
        typer.Option(min=1, help="Longer side of an image at scale 1; its own if not given. By windows."),
    ] = None,
    average: Annotated[
        Average, typer.Option(help="Of overlapping windows: logits as mmsegmentation does.")
    ] = "probabilities",
    pool_crop: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Side of an SPGNet's training crops: it pools over as much, not the whole image.",
        ),
    ] = None,
    save: Annotated[
        list[SaveKind] | None,
        typer.Option(
            help="Also write: colour picture, overlay, scores, where --size sampled. May be given again."
        ),
    ] = None,
    output_stride: Annotated[
        int,
        typer.Option(
            min=1, help="Split-merge of every so many pixels of a row and column; interpolate between."
        ),
    ] = 1,
    points: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="N|WIDTHxHEIGHT",
            help="Label each image from so many of its pixels, at the cost of an image of that size.",
        ),
    ] = None,
    gflops: Annotated[
        float | None,
        typer.Option(
            min=0, help="Or from the most that so many billion operations an image allow, 2 a multiply-add."
        ),
    ] = None,
    adaptive: Annotated[
        str | None,
        typer.Option(metavar="WEIGHTS", help="A downsampler's, which says where those pixels are."),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(help="Also write an SPGNet's guided attention of these classes: car,pole."),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Bands of TIFF files: for red, green and blue 4,1,2, one for grey, or as many as are read."
        ),
    ] = None,
    address: AddressOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End at the first image that can't be read.")
    ] = False,
) -> None:
    """Label every pixel at full resolution; started again, it does what is left."""
    budget, count = parse_bytes(memory_budget), parse_workers(workers)
    kinds: list[Any] = [kind.value for kind in save or []]
    scores = any(k in ("npy", "safetensors") for k in kinds)
    spec = window_spec(scales, flip, window, stride, base_size, average)
    sampled = sampled_size(points, gflops, adaptive, attention, "points" in kinds)
    chosen_bands = bands_of(bands)
    with clear_errors():
        if network_factory is None:
            asked = asked_for(model, weights, dataset)
            model, like = asked.model, asked.like
            network, known, file = load(asked)
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        elif model is not None or weights is not None:
            fail(f"--network is '{network_factory}': leave out --model and --weights, of the catalogue")
        else:
            model, like = network_factory, None
            network = own_network(network_factory)
            known = classes_of(network, model, dataset)
            digest = state_digest(network)
        classes = attended(attention, model, network, known)
        if pool_crop is not None:
            try:
                network.pool_over((pool_crop, pool_crop))  # type: ignore[operator]
            except (AttributeError, ValueError):
                fail(f"--pool-crop: {model} has no pooling to change; SPGNets have, e.g. spgnet50x2")
        engine: Engine
        if sampled is None:
            engine = engine_for(network, spec, tuple(classes.values()), output_stride=output_stride)
        else:
            where = Sampler(sampled, None if adaptive is None else downsampler(adaptive))
            engine = adaptive_engine(network, where, spec, output_stride, "points" in kinds)
        read = reader(engine.normalisation.channels, chosen_bands)
        found, sources = _to_label(images, out), Sources(out)
        shown = POINTS if "points" in kinds else ()
        _check_names(found, [*kinds, *shown, *(f"attention_{name}" for name in classes)])
        named = [(task.path, task.stem) for task in found]
        sizes = _sizes(sources.pending(named))
        with ray_cluster(address, count):
            device = cluster_device()
            chosen = choose_precision(precision, device)
            resources = Resources(count or 1, budget, chosen, device)
            if isinstance(engine, Adaptive) and gflops is not None:
                engine = within(engine, gflops, resources)
            # A budget too small ends the job here. The largest image needs most.
            for size, example in sorted(sizes.items(), key=lambda item: -prod(item[0])):
                try:
                    engine.plan(size, resources, scores)
                except (BudgetError, ImageError, NetworkError) as error:
                    fail(naming(example, str(error)))
            settings = {
                "model": model, "weights": digest, "dataset": known.name, "precision": chosen,
                "memory_budget": budget, "device": device, "save": sorted(kinds),
            }  # fmt: skip
            if like is not None:
                settings |= {"like": like}
            if output_stride > 1:
                settings |= {"output_stride": output_stride}
            settings |= settings_of(engine)
            if classes:
                settings |= {"attention": list(classes)}
            if chosen_bands is not None:
                settings |= {"bands": list(chosen_bands)}
            if pool_crop is not None:
                settings |= {"pool_crop": pool_crop}
            Storage(str(out)).claim(MANIFEST, settings, "predictions")
            tasks = [Task(*image) for image in sources.resume(named)]
            made_from = {task.stem: Source.of(task.path) for task in tasks if task.path.exists()}
            options = Options(chosen, budget, count, device, scores, strict)

            def write(task: Task, image: Any, result: Any) -> None:
                maps: dict[str, Any] = {}
                if isinstance(result, Guided):
                    result, maps = result.classes, dict(zip(classes, result.attention, strict=True))
                elif isinstance(result, FromPoints):
                    write_points(out, task.stem, image, result, known.palette)
                    result = result.result
                write_outputs(out, task.stem, image, result, known.palette, kinds, maps)
                if task.stem in made_from:  # else it came after the run began, and is labelled again
                    sources.add(task.stem, made_from[task.stem])

            progress = _run(engine, options, tasks, read, write)
    summary = summarise(progress, settings, skipped=len(found) - len(tasks))
    summary["parameters"] = parameter_count(network)
    write_bytes_atomically(out / "summary.json", json.dumps(summary, indent=2).encode())
    say(progress, summary, out)
    raise typer.Exit(1 if progress.failures else 0)


def _to_label(images: list[str], out: Path) -> list[Task]:
    """All images but the results of an earlier run. Ends the job where `out` holds images that are none."""
    results = out.resolve()
    inside: list[Task] = []
    rest: list[Task] = []
    for path, stem in list_images(images):
        (inside if path.resolve().is_relative_to(results) else rest).append(Task(path, stem))
    if inside and not (out / MANIFEST).exists():
        fail(f"--out is '{out}': it holds images that are to be labelled ({inside[0].path}); give another")
    if not rest:
        fail(f"--out is '{out}': all images are in it; give another")
    return rest


def _check_names(tasks: list[Task], kinds: list[str]) -> None:
    """End the job where a picture of one image would have the name of another's class ids."""
    stems = {task.stem: task.path for task in tasks}
    for task in tasks:
        for kind in kinds:
            taken = stems.get(task.stem.with_name(f"{task.stem.name}_{kind.replace(' ', '_')}"))
            if taken is not None:
                fail(f"{taken}: its class ids would have the name of {task.path}'s {kind}; rename one")


def _sizes(images: list[tuple[Path, Path]]) -> dict[tuple[int, int], Path]:
    """The sizes of all images whose headers can be read, with an image of each; others are reported when
    their turn comes, unless there are only such."""
    sizes: dict[tuple[int, int], Path] = {}
    problems = []
    for path, _ in images:
        try:
            sizes.setdefault(image_size(path), path)
        except ImageError as error:
            problems.append(error)
    if problems and not sizes:
        raise problems[0]
    return sizes


def _run(engine: Engine, options: Options, tasks: list[Task], read: Read, write: Write) -> Progress:
    if not tasks:
        return Progress(images=0)
    coordinator = Coordinator(engine, options)
    shown = time.monotonic()
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def report(progress: Progress) -> None:
            nonlocal shown
            if time.monotonic() - shown < (0.25 if console.is_terminal else 30):
                return
            shown = time.monotonic()
            if console.is_terminal:
                live.update(display(progress))
            else:
                console.print(line(progress))

        return coordinator.run(tasks, read, write, report)
