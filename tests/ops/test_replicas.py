"""Several processes that share counts and statistics are one with the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fullres.ops.replicas import counted_over, divisor
from tests.ops.replicas_worker import dropped, loss_of, norm_of, normalised

PARTS = {1: [[5]], 2: [[2, 2], [1, 4], [3, 1]], 3: [[1, 1, 1], [1, 3, 2]]}


def cases_of(parts):
    torch.manual_seed(sum(parts))
    count = sum(parts)
    for momentum in (0.1, None):
        for affine in (True, False):
            for offset in (0, 1000):
                x = torch.randn(count, 4, 5, 7, dtype=torch.float64) + offset
                yield {"parts": parts, "x": x, "momentum": momentum, "affine": affine}
    if len(set(parts)) == 1:
        for p in (0, 0.1, 0.5):
            yield {"parts": parts, "x": torch.randn(count, 37, 3, 5), "dropout": p}
    labels = torch.randint(0, 6, (count, 24, 40))
    labels[labels == 5] = 255
    labels[0, 3:] = 255  # far fewer labelled pixels than others
    logits = torch.randn(count, 5, 24, 40, dtype=torch.float64)
    for name in ("cross_entropy", "ohem", "rmi"):
        yield {"parts": parts, "loss": name, "logits": logits, "labels": labels}
        yield {"parts": parts, "loss": name, "logits": logits, "labels": torch.full_like(labels, 255)}
    shares = torch.rand(count, 6, 6, 10, dtype=torch.float64).softmax(1)
    shares[0, :5] = 0
    shares[0, 5] = 1
    for channels in (5, 6):
        logits = torch.randn(count, channels, 6, 10, dtype=torch.float64)
        yield {"parts": parts, "loss": "kl", "logits": logits, "labels": shares}


@pytest.fixture(scope="module", params=PARTS)
def run(request, tmp_path_factory):
    """All cases of so many processes, and what came out of each."""
    folder, ranks = tmp_path_factory.mktemp("replicas"), request.param
    cases = [case for parts in PARTS[ranks] for case in cases_of(parts)]
    torch.save(cases, folder / "cases.pt")
    command = [sys.executable, "-m", "tests.ops.replicas_worker", folder]
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen([*command, str(rank), str(ranks)], cwd=root) for rank in range(ranks)]
    assert [process.wait(120) for process in processes] == [0] * ranks
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
    return [(case, [result[i] for result in results]) for i, case in enumerate(cases)]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_batch_norm_is_that_of_the_whole_batch(run):
    for case, results in run:
        if "momentum" not in case:
            continue
        expected = normalised(case, norm_of(case), case["x"])
        close(torch.cat([r["y"] for r in results]), expected["y"])
        close(torch.cat([r["x"] for r in results]), expected["x"])
        for of_ranks, whole in zip(
            zip(*(r["parameters"] for r in results), strict=True), expected["parameters"], strict=True
        ):
            close(sum(of_ranks), whole)
        for result in results:
            for found, whole in zip(result["buffers"], expected["buffers"], strict=True):
                close(found, whole)


def test_losses_are_means_over_the_whole_batch(run):
    for case, results in run:
        if "loss" not in case:
            continue
        expected = loss_of(case, case["logits"], case["labels"])
        close(sum(r["value"] for r in results) / len(results), expected["value"])
        close(torch.cat([r["gradient"] for r in results]) / len(results), expected["gradient"])


def test_dropout_is_that_of_the_whole_batch(run):
    dropouts = [(case, results) for case, results in run if "dropout" in case]
    assert dropouts
    for case, results in dropouts:
        layers = nn.Sequential(nn.Dropout2d(case["dropout"]), nn.Dropout2d(0.3))
        assert torch.equal(torch.cat(results), dropped(layers, case["x"]))


def test_alone_a_count_is_itself():
    with counted_over(None):
        assert divisor(torch.tensor(7)) == 7
        assert divisor(torch.tensor(0)) == 1
        assert divisor(torch.tensor(0.25), 0.1) == 0.25


def test_names_stay():
    """Converted networks are loaded from, and saved to, the same files."""
    from fullres.ops.replicas import shared

    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    before = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    converted = shared(network, None)
    assert {name: id(tensor) for name, tensor in converted.state_dict(keep_vars=True).items()} == before
    image = torch.randn(2, 3, 4, 5)
    assert torch.equal(converted.eval()(image), network.eval()(image))
