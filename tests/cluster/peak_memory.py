"""How much memory grains of a plan take at most, measured in a process of its own. Prints JSON.

python -m tests.cluster.peak_memory '{"model": "smp18", "width": 0.25, "size": [3000, 3000], ...}'
"""

import json
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

from fullres.ops.allocator import suit_allocator
from fullres.pipeline.predict.execute import Predictor
from fullres.pipeline.predict.plan import Grain, Plan, plan_image
from tests.networks import narrow


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def costliest(plan: Plan, count: int) -> list[Grain]:
    """Of the tile in the middle (a halo on every side), of the first and the last, then of the others."""
    tiles = len(plan.schedule.tiles)
    order = dict.fromkeys([tiles // 2, 0, tiles - 1, *range(tiles)])
    by_tile = [[g for g in plan.grains if g.tile == t] for t in order]
    return [g for turn in zip_longest(*by_tile) for g in turn if g is not None][:count]


def main(
    model: str,
    width: float,
    size: list[int],
    budget: int,
    precision: str,
    workers: int,
    grains: int,
    classes: int = 19,
) -> None:
    torch.set_num_threads(1)
    predictor = Predictor(narrow(model, width, classes), torch.device("cpu"), precision)
    plan = plan_image(
        predictor.tree,
        tuple(size),
        workers=workers,
        memory_budget=budget,
        precision=precision,
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    baseline = status("VmRSS")
    rng = np.random.default_rng(0)
    peaks = []
    suit_allocator(plan.schedule.peak_bytes, budget)
    for grain in costliest(plan, grains):
        rows, columns = predictor.bind(plan.schedule).part(plan.schedule.tiles[grain.tile])
        predictor.run(
            plan.schedule, grain, rng.integers(0, 256, (rows.length, columns.length, 3), dtype=np.uint8)
        )
        peaks.append(status("VmHWM") - baseline)
    schedule = plan.schedule
    print(
        json.dumps(
            {
                "peaks": peaks, "predicted": schedule.peak_bytes, "budget": budget,
                "tiles": len(schedule.tiles),
                "fanouts": schedule.fanouts, "strips": schedule.strips, "grains": len(plan.grains),
                "overhead": plan.macs / plan.least_macs, "baseline": baseline,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
