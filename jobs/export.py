"""`fullres export RUN --out FILE`: a trained network for elsewhere, as weights or as a graph."""

from pathlib import Path
from typing import Annotated

import typer

from fullres.jobs.common import check_model, check_writable, clear_errors, fail, parse_size
from fullres.pipeline.export import GRAPHS, LEAST_SIDE, WEIGHTS, export_graph, export_weights, trained_network


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN|WEIGHTS", exists=True, help="A training's folder, or weights.")
    ],
    out: Annotated[
        Path, typer.Option(help="Weights: .safetensors, .pth; a graph: .pt2 (torch.export), .onnx.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Which network the weights are, where they do not say it.")
    ] = None,
    backbone: Annotated[
        bool, typer.Option("--backbone", help="The encoder alone, under its published names.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help=f"A graph for one image of this size; for all from {LEAST_SIDE}x{LEAST_SIDE} on by default.",
        ),
    ] = None,
) -> None:
    """Write a trained network for elsewhere: its weights or its encoder's, a graph for torch or ONNX."""
    if out.suffix not in (*WEIGHTS, *GRAPHS):
        fail(f"--out is '{out}': weights are {' or '.join(WEIGHTS)}, graphs {' or '.join(GRAPHS)}")
    graph = out.suffix in GRAPHS
    if graph and backbone:
        fail(f"--backbone: an encoder's weights are {' or '.join(WEIGHTS)}; --out is '{out}', a graph")
    if size is not None and not graph:
        fail(f"--size is '{size}': only graphs ({', '.join(GRAPHS)}) have one; --out is '{out}'")
    if model is not None:
        check_model(model)
    height_width = None if size is None else parse_size(size)
    with clear_errors():
        check_writable(out)
        network, info = trained_network(run, model)
        if graph:
            assert info.model is not None
            export_graph(network, info.model, out, height_width)
        else:
            export_weights(network, info, out, backbone)
    print(out)
