"""`fullres plan`: the tree that `fullres predict` would run, without running it or having the workers."""

import enum
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fullres.jobs.common import (
    PrecisionChoice,
    WeightsOption,
    asked_for,
    choose_precision,
    clear_errors,
    fail,
    known_dataset,
    own_network,
    parse_bytes,
)
from fullres.models.catalogue import CATALOGUE, build
from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.split_merge import FullResolution
from fullres.models.weights import load_network
from fullres.ops.pooling import lattice_length
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.data.images import image_size
from fullres.pipeline.predict.bound import BoundTree
from fullres.pipeline.predict.describe import LevelSummary, bytes_moved, describe
from fullres.pipeline.predict.plan import Plan, plan_image
from fullres.pipeline.predict.shipped import shipped_for

WORKER_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class DeviceChoice(enum.StrEnum):
    cpu = "cpu"
    cuda = "cuda"


def plan(
    image: Annotated[str, typer.Argument(help="An image, or the size of one.", metavar="IMAGE|WIDTHxHEIGHT")],
    model: Annotated[str, typer.Option(help="Network, e.g. smp18, fcn32s34.")] = "smp18",
    network_factory: Annotated[
        str | None,
        typer.Option("--network", help="Or one of your own, split_merge's result: package.module:factory."),
    ] = None,
    weights: WeightsOption = None,
    width: Annotated[
        float | None, typer.Option(min=1 / 64, help="Plan for a network of this width, without weights.")
    ] = None,
    dataset_name: Annotated[
        str, typer.Option("--dataset", help="Whose classes; which of the weights that come with a model.")
    ] = "cityscapes",
    output_stride: Annotated[
        int, typer.Option(min=1, help="As of `fullres predict`: every so many pixels alone.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=1, help="How many there would be.")] = 1,
    images: Annotated[int, typer.Option(min=1, help="How many images of this size in all.")] = 1,
    memory_budget: Annotated[str, typer.Option(help="A worker's memory beyond the model's own.")] = "4GiB",
    precision: Annotated[
        PrecisionChoice, typer.Option(help="auto: bf16 where the hardware computes it natively.")
    ] = PrecisionChoice.auto,
    device: Annotated[DeviceChoice, typer.Option(help="What the workers would run on.")] = DeviceChoice.cpu,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the plan and its figures here.")
    ] = None,
) -> None:
    """Print the tree that would run: grains, work, memory, bytes, and how well N workers would be used."""
    budget = parse_bytes(memory_budget)
    with clear_errors():
        size = _size(image)
        if network_factory is not None:
            if weights is not None or width is not None:
                fail("--network comes with its weights and width: leave out --weights and --width")
            network, described = own_network(network_factory), "one's own"
            model = network_factory
            if not isinstance(network, FullResolution):
                fail(f"--network: {model} has no tree; return what fullres.split_merge(network) returns")
        else:
            network, described = _network(model, weights, width, dataset_name)
        tree = inference_form(network.full_resolution()).with_output_stride(output_stride)
        chosen = choose_precision(precision, device.value)

        def plan_for(count: int) -> Plan:
            return plan_image(
                tree,
                size,
                workers=count,
                memory_budget=budget,
                precision=chosen,
                device=device.value,
                images=images,
            )

        asked = plan_for(workers)
        others = {count: plan_for(count) for count in WORKER_COUNTS}
        levels = describe(tree, asked)
        if json_file:
            figures = _figures(tree, asked, levels, workers, images, others)
            write_bytes_atomically(json_file, json.dumps(figures, indent=1).encode())
    out = Console(highlight=False, emoji=False)
    settings = f"{chosen}, {device.value}, {_mib(budget)} a worker"
    out.print(f"{model} ({described}) on {size[1]}x{size[0]} pixels, {settings}", soft_wrap=True)
    out.print(_tree_table(levels, tree.every_phase))
    for line in _lines(tree, asked, budget, workers, images):
        out.print(line, soft_wrap=True)
    out.print(_workers_table(tree, others, images))


def _size(image: str) -> tuple[int, int]:
    """(H, W) of a file, or of '2048x1024' (columns first, as everybody writes it)."""
    match = re.fullmatch(r"(\d+)x(\d+)", image)
    if not match or Path(image).exists():
        return image_size(image)
    width, height = int(match[1]), int(match[2])
    if min(width, height) < 1:
        fail(f"IMAGE is '{image}': a size is at least 1x1")
    return height, width


def _network(model: str, weights: str | None, width: float | None, dataset_name: str) -> tuple[Any, str]:
    """The network and what it is in words. Without weights and width the one that `fullres predict` takes."""
    trees = [name for name, entry in CATALOGUE.items() if entry.labelled_by == "split-merge"]
    if model not in trees:
        by_windows = ", which is labelled by windows and has no tree" if model in CATALOGUE else ""
        fail(f"--model is '{model}'{by_windows}: one of {', '.join(trees)}")
    if weights is not None and width is not None:
        fail("--width is what the weights say: leave out one of --width and --weights")
    if dataset_name == "folder":
        fail("--dataset is 'folder': name a data set with as many classes, or the --weights")
    classes = len(known_dataset(dataset_name).classes)
    path = None if weights is None else asked_for(model, weights, dataset_name).weights
    if path is None and width is None:
        path = shipped_for(model, dataset_name)
    if path is not None:
        network, info = load_network(model, path)
        return network, f"width {info.width:g}, of {path.name}"
    width = 1.0 if width is None else width
    with torch.device("meta"):  # shapes alone
        return build(model, classes, width), f"width {width:g}, {classes} classes"


def _tree_table(levels: list[LevelSummary], every_phase: bool) -> Table:
    names = ("stride", "split", "nodes", "lattice", "fan-out", "strips", "GFLOP", "batch MiB", "kept MiB")
    table = _table(
        "the tree, from the image down" if every_phase else "the network (one phase of each split)", names
    )
    for level in levels:
        table.add_row(
            _by(level.stride) if level.stride[0] != level.stride[1] else str(level.stride[0]),
            _by(level.window),
            f"{level.nodes}",
            _by((level.lattice[1], level.lattice[0])),
            f"{level.fanout}",
            f"{level.strips}",
            f"{2 * level.macs / 1e9:,.1f}",
            f"{level.working_bytes / 2**20:,.1f}",
            f"{level.kept_bytes / 2**20:,.1f}",
        )
    return table


def _lines(tree: FullResolution, plan: Plan, budget: int, workers: int, images: int) -> list[str]:
    schedule = plan.schedule
    out, back = bytes_moved(tree, plan)
    tiles = (
        "the whole image at once" if len(schedule.tiles) == 1 else f"{len(schedule.tiles)} with exact halos"
    )
    least, most = (2 * f(g.macs for g in plan.grains) / 1e9 for f in (min, max))
    each = f"{most:,.2f}" if f"{least:.2f}" == f"{most:.2f}" else f"{least:,.2f} to {most:,.2f}"
    count = f"{images} image{'s' * (images > 1)}"
    with_workers = f"{workers} worker{'s' * (workers > 1)}"
    first = BoundTree(tree, schedule).stride(0)[0]
    trunk = f"up to output stride {first}, run again for each node there" if schedule.trunk else "none"
    return [
        f"tiles:      {tiles}",
        f"trunk:      {trunk}",
        f"grains:     {len(plan.grains)} {_cut(tree, plan)}, {each} GFLOP each",
        f"work:       {2 * plan.macs / 1e9:,.1f} GFLOP an image, {_repeated(plan):.1%} of it repeated",
        f"memory:     {_mib(schedule.peak_bytes)} at the worst moment, of {_mib(budget)}",
        f"bytes:      {_mib(out)} of image out, {_mib(back)} of class ids back",
        f"efficiency: {plan.efficiency(workers, images):.0%} with {with_workers} on {count}",
    ]


def _workers_table(tree: FullResolution, plans: dict[int, Plan], images: int) -> Table:
    names = ("workers", "grains", "of stride", "repeated", "efficiency", "speed-up")
    table = _table(f"other numbers of workers, {images} image{'s' * (images > 1)}", names)
    for count, plan in plans.items():
        efficiency = plan.efficiency(count, images)
        stride = str(_stride(tree, plan)[0]) if plan.grains[0].level >= 0 else "1"
        row = (f"{len(plan.grains)}", stride, f"{_repeated(plan):.1%}", f"{efficiency:.0%}")
        table.add_row(f"{count}", *row, f"{efficiency * count:.1f}")
    return table


def _table(title: str, names: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figures(
    tree: FullResolution,
    plan: Plan,
    levels: list[LevelSummary],
    workers: int,
    images: int,
    others: dict[int, Plan],
) -> dict[str, Any]:
    out, back = bytes_moved(tree, plan)
    return {
        "plan": plan.to_json(),
        "levels": [asdict(level) for level in levels],
        "workers": workers,
        "images": images,
        "giga_operations": 2 * plan.macs / 1e9,
        "repeated_share": _repeated(plan),
        "peak_bytes": plan.schedule.peak_bytes,
        "bytes": {"images_out": out, "results_back": back},
        "efficiency": plan.efficiency(workers, images),
        "efficiency_by_workers": {count: p.efficiency(count, images) for count, p in others.items()},
    }


def _cut(tree: FullResolution, plan: Plan) -> str:
    level = plan.grains[0].level
    if level < 0:
        return "(one a tile)" if len(plan.schedule.tiles) > 1 else "(all of the image)"
    stride = _stride(tree, plan)
    first = (
        lattice_length(plan.schedule.size[0], 0, stride[0]),
        lattice_length(plan.schedule.size[1], 0, stride[1]),
    )
    a_tile = " in each tile" if len(plan.schedule.tiles) > 1 else f" of {_by(first[::-1])} pixels"
    return f"(one a node of output stride {stride[0]}{a_tile})"


def _stride(tree: FullResolution, plan: Plan) -> tuple[int, int]:
    """Of the level at which the work is cut."""
    return BoundTree(tree, plan.schedule).stride(plan.grains[0].level)


def _repeated(plan: Plan) -> float:
    return 1 - plan.least_macs / plan.macs


def _by(pair: tuple[int, ...]) -> str:
    return f"{pair[0]}x{pair[1]}"


def _mib(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n < 10 << 20 else f"{n / 2**20:,.0f} MiB"
