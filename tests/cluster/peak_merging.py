"""How much memory merging windows of a large image takes at most, in a process of its own. Prints JSON.

python -m tests.cluster.peak_merging '{"size": [4096, 4096], "window": 713, "scales": [0.5, 1]}'
"""

import json
import sys

import numpy as np

from fullres.cluster.memory import forget_peak, peak_resident_bytes, resident_bytes
from fullres.pipeline.predict.window_memory import WindowCosts
from fullres.pipeline.predict.windows import Merger, WindowSpec, plan_windows
from tests.networks import narrow

CLASSES = 19


def main(size: list[int], window: int, scales: list[float], budget: int) -> None:
    """`budget`: what a worker with a PSPNet-50 of width 0.25 must be content with."""
    spec = WindowSpec(tuple(scales), True, window)
    costs = WindowCosts(narrow("pspnet50", 0.25, CLASSES), "bf16")
    plan = costs.fit(plan_windows((size[0], size[1]), spec, costs.macs), budget)
    merger = Merger(plan, scores=False)
    forget_peak()
    baseline = resident_bytes()
    for grain in plan.grains:
        rows, columns = grain.footprint
        share = np.full((CLASSES, rows.length, columns.length), 0.01, np.float16)
        share[grain.index % CLASSES] = 0.02
        complete = merger.add(grain, share)
    assert complete
    print(json.dumps({"peak": peak_resident_bytes() - baseline, "windows": len(plan.grains)}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
