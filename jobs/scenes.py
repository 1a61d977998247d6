"""`fullres scenes`: write a data set of procedural street scenes."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from fullres.jobs.common import clear_errors, console
from fullres.pipeline.scenes.files import write_scene


def scenes(
    out: Annotated[Path, typer.Option(help="Folder that gets images/ and labels/.")],
    count: Annotated[int, typer.Option(min=1)] = 8,
    first_seed: Annotated[int, typer.Option(min=0, help="Scenes first_seed, first_seed + 1, ...")] = 0,
    height: Annotated[int, typer.Option(min=16)] = 1024,
    width: Annotated[int, typer.Option(min=16)] = 2048,
) -> None:
    """Render street scenes with pixel-accurate labels (Cityscapes' 19 classes); goes on where it was
    stopped."""
    # A fork of a process with threads may hang.
    spawn = multiprocessing.get_context("spawn")
    with clear_errors(), ProcessPoolExecutor(os.cpu_count(), spawn) as pool:
        jobs = [
            pool.submit(write_scene, out, seed, height, width)
            for seed in range(first_seed, first_seed + count)
        ]
        try:
            for job in track(jobs, "rendering", console=console):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)  # of those behind an error
    print(f"{count} scene{'s' * (count != 1)} of {width}x{height} in {out}")
