"""`fullres predict --window --average logits` beside mmsegmentation's `slide_inference`: `make parity`.

    python -m tests.peers.sliding PEER_PYTHON

Prints the largest difference of the logits relative to the largest logit, of each size of image, and ends
with 1 where one is above 1e-5.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from fullres.models.weights import load_network
from fullres.pipeline.predict.windows import WindowPredictor, WindowSpec, plan_windows, predict_windows

PEER = Path(__file__).with_name("mmseg.py")
NAME = "pspnet50"
TOLERANCE = 1e-5


def main():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], "-W", "ignore", PEER, "slide", NAME, folder], check=True)
        network, _ = load_network(NAME, Path(folder) / f"{NAME}.pth")
        expected = dict(np.load(Path(folder) / f"{NAME}.npz"))
    predictor = WindowPredictor(network, torch.device("cpu"), "fp32")
    window, stride = int(expected["window"]), int(expected["stride"])
    spec = WindowSpec(window=window, stride=stride, average="logits")
    worse = 0
    for i in range(3):
        image, theirs = expected[f"image{i}"], expected[f"logits{i}"]
        height, width, _ = image.shape
        ours = predict_windows(predictor, plan_windows((height, width), spec), image, scores=True)
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        worse += not difference <= TOLERANCE
        print(f"{width}x{height} by windows of {window}: {difference:.1e}", flush=True)
    sys.exit(worse > 0)


if __name__ == "__main__":
    main()
