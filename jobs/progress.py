"""What `fullres predict` shows while it runs, says at its end and leaves in `summary.json`."""

import time
from pathlib import Path
from typing import Any

from rich.table import Table

from fullres.cluster.stream import Status
from fullres.jobs.common import complain
from fullres.pipeline.data.images import naming


def display(status: Status) -> Table:
    """For a terminal: `line`, and a row for each worker."""
    table = Table.grid(padding=(0, 2))
    table.add_row(line(status))
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
                f"{worker.grains} grain{'s' * (worker.grains != 1)}",
            )
    table.add_row(loads)
    return table


def line(status: Status) -> str:
    """Images, grains and the time that is left."""
    ended = status.done + len(status.failures)
    if status.waiting:
        return f"images {ended}/{status.images}  {status.waiting}"
    left = "estimating time left"
    if status.first_grain is not None and status.grains_done:
        # images not read yet are taken to be like those that were
        seen = max(1, ended + status.in_flight)
        total = status.grains * status.images / seen
        rate = status.grains_done / max(1e-9, time.monotonic() - status.first_grain)
        left = f"{_duration((total - status.grains_done) / max(rate, 1e-9))} left"
    return f"images {ended}/{status.images}  grains {status.grains_done}/{status.grains}  {left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def summarise(status: Status, settings: dict[str, Any], skipped: int) -> dict[str, Any]:
    """What happened; `skipped` images were done by an earlier run."""
    wall = status.elapsed
    working = time.monotonic() - status.begun
    return {
        "settings": settings,
        "images": {"done": status.done, "already_done": skipped, "failed": len(status.failures)},
        "failures": status.failures,
        "wall_seconds": round(wall, 3),
        "tera_operations": round(2 * status.macs_done / 1e12, 3),
        "grains": {"done": status.grains_done, "run_again": status.grains_rerun},
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
                "grains": w.grains,
                "restarts": w.restarts,
                "peak_bytes": w.peak_bytes,
            }
            for w in status.workers
        ],
        "workers_left_out": status.left_out,
        "total_seconds": round(working, 3),
    }


def say(status: Status, summary: dict[str, Any], out: Path) -> None:
    """The images left out, and the last line."""
    for worker, reason in status.left_out.items():
        complain("without", f"worker {worker}: {reason}")
    for path, reason in status.failures.items():
        complain("failed", naming(path, reason))
    done, failed, before = (summary["images"][k] for k in ("done", "failed", "already_done"))
    parts = [f"{done} image{'s' * (done != 1)} labelled in {_duration(status.elapsed)}"]
    if before:
        parts.append(f"{before} done before")
    if failed:
        parts.append(f"{failed} failed")
    if status.workers and done:
        busy = sum(w["busy_share"] for w in summary["workers"]) / len(status.workers)
        parts.append(f"{len(status.workers)} worker{'s' * (len(status.workers) != 1)} {busy:.0%} busy")
    print(f"{', '.join(parts)}; results in {out}")
