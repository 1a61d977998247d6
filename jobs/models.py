"""`fullres models`: the networks that `--model` names, with what they cost."""

import json
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from rich.table import Table

from fullres.jobs.common import console, parse_size, print_table
from fullres.models.catalogue import CATALOGUE, Entry, build, parameter_count
from fullres.models.count import count_macs
from fullres.models.full_resolution.split_merge import HasFullResolution
from fullres.pipeline.predict.engines import Resources, SplitMerge


def models(
    size: Annotated[
        str, typer.Option(help="Width and height of the image that is counted for.")
    ] = "2048x1024",
    classes: Annotated[int, typer.Option(min=2, max=255, help="How many classes.")] = 19,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every network: backbone, output stride, parameters, multiply-adds of one image, paper.

    Of SMP the multiply-adds are those of the whole tree, every pixel's class.
    """
    height, width = parse_size(size)
    entries = track(CATALOGUE.values(), "counting", console=console, transient=True)
    rows = [_figures(entry, classes, height, width) for entry in entries]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(title=f"{classes} classes, {width}x{height} pixels", box=None, pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("backbone", no_wrap=True)
    for heading in ("stride", "params", "GMACs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("paper", overflow="ellipsis", no_wrap=True)
    for row in rows:
        figures = (str(row["output_stride"]), f"{row['parameters'] / 1e6:.2f}M", _giga(row["macs"]))
        table.add_row(row["model"], row["backbone"], *figures, row["paper"])
    print_table(table, 100)


def _giga(macs: int) -> str:
    """In billions, three digits where it is a small network or image."""
    return f"{macs / 1e9:,.0f}" if macs >= 1e11 else f"{macs / 1e9:.3g}"


def _figures(entry: Entry, classes: int, height: int, width: int) -> dict[str, Any]:
    with torch.device("meta"):
        network = build(entry.name, classes).eval()
    if entry.splits:  # the tree has a thousand leaves: its plan knows
        assert isinstance(network, HasFullResolution)
        resources = Resources(1, 1 << 50, "fp32", "cpu")
        macs = SplitMerge(network).plan((height, width), resources, scores=False).least_macs
    else:
        macs = count_macs(network, height, width)
    return {
        "model": entry.name, "backbone": entry.backbone, "output_stride": entry.output_stride,
        "parameters": parameter_count(network), "macs": macs,
        "labelled_by": entry.labelled_by, "paper": entry.paper,
    }  # fmt: skip
