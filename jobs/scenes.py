"""`fullres scenes`: write a data set of procedural street scenes."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import cv2
import typer
from rich.progress import track

from fullres.jobs.common import clear_errors, console
from fullres.pipeline.data.images import ImageError, image_size, write_png
from fullres.pipeline.scenes import render_scene


def _write(out: Path, seed: int, height: int, width: int) -> None:
    image_path, label_path = (out / kind / f"scene_{seed:06}.png" for kind in ("images", "labels"))
    if image_path.exists() and label_path.exists():
        for path in (image_path, label_path):
            if (size := image_size(path)) != (height, width):
                raise ImageError(
                    f"{path}: {size[1]}x{size[0]} pixels, not {width}x{height}: remove it or change --out"
                )
        return
    cv2.setNumThreads(1)
    image, labels = render_scene(seed, height, width)
    write_png(label_path, labels)
    write_png(image_path, image)


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
            pool.submit(_write, out, seed, height, width) for seed in range(first_seed, first_seed + count)
        ]
        try:
            for job in track(jobs, "rendering", console=console):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)  # of those behind an error
    print(f"{count} scene{'s' * (count != 1)} of {width}x{height} in {out}")
