"""`fullres evaluate` beside mmsegmentation's IoUMetric on the same files: `make parity`.

    python -m tests.peers.evaluation PEER_PYTHON

Prints the largest difference of a class's IoU, and ends with 1 where one is above a rounding of float32, in
which the metric computes, or a mean differs from its own by more than its two decimals of a percent. Of
CamVid and drawn scenes; of scenes alone where CamVid is not there.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.predictions import CAMVID, Predicted, camvid, scenes

PEER = Path(__file__).with_name("iou_metric.py")
SINGLE, SHOWN = 2e-7, 0.00501
MEANS = {"mIoU": "mean_iou", "mAcc": "mean_accuracy", "aAcc": "pixel_accuracy"}


def own(predicted: Predicted, file: Path) -> dict:
    asked = ["evaluate", predicted.predictions, predicted.labels, "--dataset", predicted.dataset]
    command = [sys.executable, "-m", "fullres.jobs.cli", *asked, "--json", file]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(file.read_text())


def theirs(python: str, predicted: Predicted) -> dict:
    asked = [predicted.predictions, predicted.labels, str(predicted.classes), str(predicted.ignored)]
    command = [python, "-P", "-W", "ignore", PEER, *asked]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main():
    python = sys.argv[1]
    worse = 0
    for write in (camvid, scenes) if CAMVID.is_dir() else (scenes,):
        with tempfile.TemporaryDirectory() as folder:
            predicted = write(Path(folder) / "frames")
            ours, peer = own(predicted, Path(folder) / "scores.json"), theirs(python, predicted)
        iou, expected = (np.array(list(x), float) for x in (ours["class_iou"].values(), peer["iou"]))
        same = np.allclose(iou, expected, rtol=0, atol=SINGLE, equal_nan=True)
        same &= all(abs(100 * ours[name] - peer[key]) <= SHOWN for key, name in MEANS.items())
        worse += not same
        print(
            f"{predicted.dataset:8} {len(iou)} classes, largest difference of an IoU "
            f"{np.nanmax(np.abs(iou - expected)):.1e}; mIoU {100 * ours['mean_iou']:.6f} and {peer['mIoU']}",
            flush=True,
        )
    sys.exit(worse > 0)


if __name__ == "__main__":
    main()
