"""Every network of mmsegmentation beside the project's own, loaded from its checkpoint: `make parity`.

    python -m tests.peers.parity PEER_PYTHON [NAME ...]

Prints the largest difference of the logits relative to the largest logit, and ends with 1 where one is above
1e-5 in fp32 or 1e-12 in fp64.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from fullres.models.weights import load_network
from tests.peers.seeded import seeded_image

PEER = Path(__file__).with_name("mmseg.py")
TOLERANCE = {"single": 1e-5, "double": 1e-12}


def differences(python, name, folder):
    """By precision. The files go when they are read: all of them would be gigabytes."""
    subprocess.run([python, "-W", "ignore", PEER, "full", name, folder], check=True)
    checkpoint, expected = folder / f"{name}.pth", np.load(folder / f"{name}.npz")
    network, _ = load_network(name, checkpoint)
    checkpoint.unlink()
    result = {}
    for precision, dtype in (("single", torch.float32), ("double", torch.float64)):
        theirs = expected[precision]
        with torch.no_grad():
            ours = network.to(dtype)(seeded_image(*theirs.shape[-2:]).to(dtype))[0].numpy()
        assert np.isfinite(theirs).all()
        assert theirs.std() > 0.01 * np.abs(theirs).max()  # or the comparison says little
        result[precision] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return result


def main():
    python, *names = sys.argv[1:]
    if not names:
        listed = subprocess.run(
            [python, "-W", "ignore", PEER, "list"], check=True, capture_output=True, text=True
        )
        names = listed.stdout.split()
    worse = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = differences(python, name, Path(folder))
        worse += any(found[precision] > TOLERANCE[precision] for precision in found)
        print(f"{name:24} fp32 {found['single']:.1e}  fp64 {found['double']:.1e}", flush=True)
    sys.exit(worse > 0)


if __name__ == "__main__":
    main()
