"""One of several processes: `python -m tests.ops.replicas_worker FOLDER RANK RANKS`, over gloo.

Reads the inputs of all, takes its part, and writes what came out.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fullres.ops import losses
from fullres.ops.replicas import ReplicaBatchNorm2d, counted_over, shared
from fullres.ops.rmi import rmi_loss


def norm_of(case):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(4, momentum=case["momentum"], affine=case["affine"]).to(case["x"].dtype)
    for tensor in norm.parameters():
        nn.init.uniform_(tensor, 0.5, 2)
    return norm


def normalised(case, norm, x):
    """Twice, as a network may be run twice in a step. What came out, gradients, statistics."""
    x = x.clone().requires_grad_()
    y = norm(norm(x) * 2 + 1)
    weights = torch.linspace(-1, 2, y.shape[1] * y.shape[2] * y.shape[3], dtype=y.dtype).view(y.shape[1:])
    (y.square() * weights).sum().backward()
    return {
        "y": y.detach(), "x": x.grad, "parameters": [p.grad for p in norm.parameters()],
        "buffers": list(norm.buffers()),
    }  # fmt: skip


def loss_of(case, logits, labels):
    logits = logits.clone().requires_grad_()
    value = {
        "cross_entropy": losses.cross_entropy,
        "ohem": lambda a, b: losses.ohem_cross_entropy(a, b, least_kept=10**9),
        "rmi": rmi_loss,
        "kl": losses.class_probability_kl,
    }[case["loss"]](logits, labels)
    value.backward()
    return {"value": value.detach(), "gradient": logits.grad}


def dropped(layers, x):
    """A step's patterns: two layers, one after the other, from one generator."""
    torch.manual_seed(2)
    return layers(x)


def main(folder, rank, ranks):
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(seconds=120), ranks, rank)
    results = []
    for case in torch.load(folder / "cases.pt", weights_only=False):
        parts = case["parts"]
        here = slice(sum(parts[:rank]), sum(parts[: rank + 1]))
        if "loss" in case:
            with counted_over(dist.group.WORLD):
                results.append(loss_of(case, case["logits"][here], case["labels"][here]))
        elif "dropout" in case:
            layers = nn.Sequential(nn.Dropout2d(case["dropout"]), nn.Dropout2d(0.3))
            results.append(dropped(shared(layers, dist.group.WORLD), case["x"][here]))
        else:
            wrapped = shared(nn.Sequential(norm_of(case)), dist.group.WORLD)
            assert isinstance(wrapped[0], ReplicaBatchNorm2d)
            results.append(normalised(case, wrapped[0], case["x"][here]))
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
