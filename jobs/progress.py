"""What `fullres predict` shows while it runs, says at its end and leaves in `summary.json`."""

import time
from pathlib import Path
from typing import Any

from rich.table import Table

from fullres.cluster.stream import Progress
from fullres.jobs.common import complain
from fullres.pipeline.data.images import naming


def display(progress: Progress) -> Table:
    """For a terminal: `line`, and a row for each worker."""
    table = Table.grid(padding=(0, 2))
    table.add_row(line(progress))
    loads = Table.grid(padding=(0, 2))
    for worker in progress.workers:
        if worker.info is None:
            loads.add_row(worker.name, "starting", "", "")
        else:
            share = worker.busy / max(1e-9, time.monotonic() - worker.started)
            loads.add_row(
                worker.name,
                f"{worker.info.host} {worker.info.device}",
                f"{share:4.0%} busy",
                f"{worker.grains} grain{'s' * (worker.grains != 1)}",
            )
    table.add_row(loads)
    return table


def line(progress: Progress) -> str:
    """Images, grains and the time that is left."""
    ended = progress.done + len(progress.failures)
    if progress.waiting:
        return f"images {ended}/{progress.images}  {progress.waiting}"
    left = "estimating time left"
    if progress.first_grain is not None and progress.grains_done:
        # images not read yet are taken to be like those that were
        seen = max(1, ended + progress.in_flight)
        total = progress.grains * progress.images / seen
        rate = progress.grains_done / max(1e-9, time.monotonic() - progress.first_grain)
        left = f"{_duration((total - progress.grains_done) / max(rate, 1e-9))} left"
    return f"images {ended}/{progress.images}  grains {progress.grains_done}/{progress.grains}  {left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def summarise(progress: Progress, settings: dict[str, Any], skipped: int) -> dict[str, Any]:
    """What happened; `skipped` images were done by an earlier run."""
    wall = progress.elapsed
    working = time.monotonic() - progress.begun
    return {
        "settings": settings,
        "images": {"done": progress.done, "already_done": skipped, "failed": len(progress.failures)},
        "failures": progress.failures,
        "wall_seconds": round(wall, 3),
        "tera_operations": round(2 * progress.macs_done / 1e12, 6),
        "grains": {"done": progress.grains_done, "run_again": progress.grains_rerun},
        "bytes": {
            "images_out": progress.bytes_out,
            "results_back": progress.bytes_back,
            "image_pixels": progress.image_bytes,
        },
        "workers": [
            {
                "name": w.name,
                "host": w.info.host if w.info else None,
                "device": w.info.device if w.info else None,
                "busy_share": round(w.busy / max(1e-9, progress.begun + wall - w.started), 4)
                if w.started
                else 0.0,
                "grains": w.grains,
                "restarts": w.restarts,
                "peak_bytes": w.peak_bytes,
            }
            for w in progress.workers
        ],
        "workers_left_out": progress.left_out,
        "total_seconds": round(working, 3),
    }


def say(progress: Progress, summary: dict[str, Any], out: Path) -> None:
    """The images left out, and the last line."""
    for worker, reason in progress.left_out.items():
        complain("without", f"worker {worker}: {reason}")
    for path, reason in progress.failures.items():
        complain("failed", naming(path, reason))
    done, failed, before = (summary["images"][k] for k in ("done", "failed", "already_done"))
    parts = [f"{done} image{'s' * (done != 1)} labelled in {_duration(progress.elapsed)}"]
    if before:
        parts.append(f"{before} done before")
    if failed:
        parts.append(f"{failed} failed")
    if progress.workers and done:
        busy = sum(w["busy_share"] for w in summary["workers"]) / len(progress.workers)
        parts.append(f"{len(progress.workers)} worker{'s' * (len(progress.workers) != 1)} {busy:.0%} busy")
    print(f"{', '.join(parts)}; results in {out}")
