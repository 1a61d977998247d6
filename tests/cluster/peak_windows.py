"""How much memory windows take at most, measured in a process of its own. Prints JSON.

python -m tests.cluster.peak_windows '{"model": "pspnet50", "width": 0.25, "window": 321, ...}'
"""

import json
import sys

import torch

from fullres.cluster.memory import forget_peak, peak_resident_bytes, resident_bytes
from fullres.ops.allocator import suit_allocator
from fullres.pipeline.predict.window_memory import WindowCosts
from fullres.pipeline.predict.windows import WindowPredictor, WindowSpec, plan_windows
from tests.networks import narrow, random_image


def main(
    model: str,
    width: float,
    size: list[int],
    window: int | None,
    scales: list[float],
    precision: str,
    kept: bool,
    classes: int = 19,
) -> None:
    """`kept`: within a budget that lets the process keep what it frees."""
    torch.set_num_threads(1)
    network, height_width = narrow(model, width, classes), (size[0], size[1])
    spec = WindowSpec(tuple(scales), True, window)
    costs = WindowCosts(network, precision)
    plan = costs.fit(plan_windows(height_width, spec, costs.macs), 1 << 40)
    predictor = WindowPredictor(network, torch.device("cpu"), precision)
    image = random_image(*height_width)
    forget_peak()
    baseline, predicted, peaks = resident_bytes(), plan.schedule.peak_bytes, []
    suit_allocator(predicted, 3 * predicted if kept else predicted)
    largest = {
        g.scaled: g for g in sorted(plan.grains, key=lambda g: g.footprint[0].length * g.footprint[1].length)
    }
    for grain in 2 * list(largest.values()):
        predictor.run(plan.schedule, grain, image).copy()  # Ray has one in its object store
        peaks.append(peak_resident_bytes() - baseline)
    print(json.dumps({"peaks": peaks, "predicted": predicted}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
