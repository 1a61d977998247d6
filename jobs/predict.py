"""`fullres predict`: every pixel's class at full resolution, on all workers of a Ray cluster."""

import enum
import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from fullres.cluster.coordinator import Coordinator, Options, Status, Task
from fullres.cluster.workers import cluster_device
from fullres.jobs.common import (
    AddressOption,
    PrecisionChoice,
    choose_precision,
    clear_errors,
    console,
    fail,
    load,
    parse_bytes,
    parse_workers,
    ray_cluster,
)  # fmt: skip
from fullres.models.catalogue import CATALOGUE, parameter_count
from fullres.pipeline.engines import Engine, Resources, SplitMerge, Windows
from fullres.pipeline.images import (
    ImageError,
    image_size,
    list_images,
    naming,
    read_image,
    write_bytes_atomically,
)
from fullres.pipeline.outputs import claim_folder, is_done, write_outputs
from fullres.pipeline.windows import WindowSpec


class SaveKind(enum.StrEnum):
    """What is written besides the class ids."""

    color = "color"
    overlay = "overlay"
    npy = "npy"
    safetensors = "safetensors"


def predict(
    images: Annotated[
        list[str], typer.Argument(help="Images, folders or glob patterns.", metavar="IMAGES|DIR|GLOB...")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    model: Annotated[str, typer.Option(help="Network, e.g. smp18, fcn32s34.")] = "smp18",
    weights: Annotated[
        Path | None, typer.Option(help="Weights (.safetensors, .pth); the shipped ones by default.")
    ] = None,
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
    save: Annotated[
        list[SaveKind] | None,
        typer.Option(help="Also write: colour picture, overlay, scores. May be given again."),
    ] = None,
    address: AddressOption = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End at the first image that can't be read.")
    ] = False,
) -> None:
    """Label every pixel at full resolution; started again, it does what is left."""
    budget, count, kinds = parse_bytes(memory_budget), parse_workers(workers), [k.value for k in save or []]
    scores = any(k in ("npy", "safetensors") for k in kinds)
    spec = _window_spec(scales, flip, window, stride)
    with clear_errors():
        network, known, weights = load(model, weights, dataset)
        found = [Task(path, stem) for path, stem in list_images(images)]
        sizes = _sizes(found)
        with ray_cluster(address, count):
            device = cluster_device()
            chosen = choose_precision(precision, device)
            engine = _engine(model, network, spec)
            for size in sizes:  # a budget too small, a window too large end the job here
                engine.plan(size, Resources(count or 1, budget, chosen, device), scores)
            settings = {
                "model": model, "weights": _digest(weights), "dataset": known.name, "precision": chosen,
                "memory_budget": budget, "device": device, "save": sorted(kinds),
            }  # fmt: skip
            if isinstance(engine, Windows):
                settings |= {"windows": json.loads(json.dumps(asdict(engine.spec)))}
            claim_folder(out, settings)
            tasks = [task for task in found if not is_done(out, task.stem)]
            options = Options(chosen, budget, count, device, scores, strict)
            status = _run(engine, options, tasks, known.palette, kinds, out)
    summary = _summary(status, settings, skipped=len(found) - len(tasks))
    summary["parameters"] = parameter_count(network)
    write_bytes_atomically(out / "summary.json", json.dumps(summary, indent=2).encode())
    _say(status, summary, out)
    raise typer.Exit(1 if status.failures else 0)


def _window_spec(scales: str | None, flip: bool, window: int | None, stride: int | None) -> WindowSpec | None:
    """What the options ask for; None if none is given."""
    if stride is not None and (window is None or stride > window):
        fail(f"--stride is {stride}: at most --window, which is {window or 'not given'}")
    if scales is None and not flip and window is None:
        return None
    try:
        factors = tuple(float(scale) for scale in (scales or "1").split(","))
    except ValueError:
        factors = (0.0,)
    if not all(0 < factor <= 16 for factor in factors):
        fail(f"--scales is '{scales}': numbers above 0, at most 16, with commas between")
    return WindowSpec(factors, flip, window, stride)


def _engine(model: str, network: Any, spec: WindowSpec | None) -> Engine:
    """Split-merge for the networks that have it, unless windows are asked for."""
    if CATALOGUE[model].dense and spec is None:
        return SplitMerge(network)
    return Windows(network, spec or WindowSpec())


def _sizes(tasks: list[Task]) -> set[tuple[int, int]]:
    """The sizes of all images whose headers can be read; others are reported when their turn comes, unless
    there are only such."""
    sizes, problems = set(), []
    for task in tasks:
        try:
            sizes.add(image_size(task.path))
        except ImageError as error:
            problems.append(error)
    if not sizes:
        raise problems[0]
    return sizes


def _digest(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def _run(
    engine: Engine, options: Options, tasks: list[Task], palette: Any, kinds: list[Any], out: Path
) -> Status:
    if not tasks:
        return Status(images=0)
    coordinator = Coordinator(engine, options)

    def write(task: Task, image: Any, result: Any) -> None:
        write_outputs(out, task.stem, image, result, palette, kinds)

    shown = time.monotonic()
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def report(status: Status) -> None:
            nonlocal shown
            if time.monotonic() - shown < (0.25 if console.is_terminal else 30):
                return
            shown = time.monotonic()
            if console.is_terminal:
                live.update(_display(status))
            else:
                console.print(_line(status))

        return coordinator.run(tasks, read_image, write, report)


def _display(status: Status) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(_line(status))
    loads = Table.grid(padding=(0, 2))
    for worker in status.workers:
        if worker.info is None:
            loads.add_row(worker.name, "starting", "", "")
        else:
            share = worker.busy / max(1e-9, time.monotonic() - worker.started)
            loads.add_row(
                worker.name,
                f"{worker.info.host} {worker.info.device}",
                f"{share:4.0%} busy",
                f"{worker.grains} subtrees",
            )
    table.add_row(loads)
    return table


def _line(status: Status) -> str:
    ended = status.done + len(status.failures)
    left = "estimating time left"
    if status.first_grain is not None and status.grains_done:
        # images not read yet are taken to be like those that were
        seen = max(1, ended + status.in_flight)
        total = status.grains * status.images / seen
        rate = status.grains_done / max(1e-9, time.monotonic() - status.first_grain)
        left = f"{_duration((total - status.grains_done) / max(rate, 1e-9))} left"
    return f"images {ended}/{status.images}  subtrees {status.grains_done}/{status.grains}  {left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def _summary(status: Status, settings: dict[str, Any], skipped: int) -> dict[str, Any]:
    wall = status.elapsed
    working = time.monotonic() - status.begun
    return {
        "settings": settings,
        "images": {"done": status.done, "already_done": skipped, "failed": len(status.failures)},
        "failures": status.failures,
        "wall_seconds": round(wall, 3),
        "tera_operations": round(2 * status.macs_done / 1e12, 3),
        "subtrees": {"done": status.grains_done, "run_again": status.grains_rerun},
        "bytes": {
            "images_out": status.bytes_out,
            "results_back": status.bytes_back,
            "image_pixels": status.image_bytes,
        },
        "workers": [
            {
                "name": w.name,
                "host": w.info.host if w.info else None,
                "device": w.info.device if w.info else None,
                "busy_share": round(w.busy / max(1e-9, status.begun + wall - w.started), 4)
                if w.started
                else 0.0,
                "subtrees": w.grains,
                "restarts": w.restarts,
                "peak_bytes": w.peak_bytes,
            }
            for w in status.workers
        ],
        "total_seconds": round(working, 3),
    }


def _say(status: Status, summary: dict[str, Any], out: Path) -> None:
    for path, reason in status.failures.items():
        console.print(
            f"[red]failed:[/] {naming(path, reason)}",
            soft_wrap=True,
            highlight=False,
        )
    done, failed, before = (summary["images"][k] for k in ("done", "failed", "already_done"))
    parts = [f"{done} image{'s' * (done != 1)} labelled in {_duration(status.elapsed)}"]
    if before:
        parts.append(f"{before} done before")
    if failed:
        parts.append(f"{failed} failed")
    if status.workers and done:
        busy = sum(w["busy_share"] for w in summary["workers"]) / len(status.workers)
        parts.append(f"{len(status.workers)} workers {busy:.0%} busy")
    print(f"{', '.join(parts)}; results in {out}")
