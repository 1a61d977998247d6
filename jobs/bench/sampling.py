"""`fullres bench sampling`: what sampling near boundaries keeps of a label map, and how fast its parts are.

`python -m fullres.jobs.bench.sampling` is the process in which one comparison is measured: it reads a JSON
request on standard input and prints a JSON answer.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numba import njit
from rich.table import Table
from scipy import sparse
from scipy.interpolate import griddata
from scipy.ndimage import distance_transform_edt, uniform_filter
from scipy.sparse.linalg import spsolve

from fullres.cluster.memory import forget_peak, peak_resident_bytes, resident_bytes
from fullres.jobs.common import check_writable, clear_errors, console, fail, print_table
from fullres.ops.boundary import boundary_map
from fullres.ops.class_probability import class_probability_pyramid
from fullres.ops.interpolate import interpolate_labels
from fullres.ops.metrics import class_iou, confusion_matrix, mean_score
from fullres.ops.sampling import resize_tensor, sample
from fullres.ops.sampling_solve import sampling_tensor, uniform_tensor
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.data.images import read_labels
from fullres.pipeline.datasets.camvid import CAMVID
from fullres.pipeline.scenes import render_scene

_SAMPLING_SIZES = (32, 64, 128)
_VOID = 11  # of CamVid's label maps
_SCENE_CLASSES = 19
_SCALES = (4, 8, 16, 32)
_ROUND = 0.2  # seconds that each has in a round, for one run at least

# Row of the table: the sampling tensor for label map and size.
_TENSORS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "uniform": lambda labels, n: uniform_tensor(n, n),
    "8x8, lambda 1, resized": lambda labels, n: _resized(labels, 8, 1, n),
    "8x8, lambda 0.1, resized": lambda labels, n: _resized(labels, 8, 0.1, n),
    "32x32, lambda 0.1, resized": lambda labels, n: _resized(labels, 32, 0.1, n),
    "solved at the sampling size, lambda 1": lambda labels, n: _resized(labels, n, 1, n),
}


def sampling(
    camvid: Annotated[
        Path | None, typer.Option(help="Folder of CamVid: also what the samplings keep of its label maps.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times each is run, in turn; minima are shown.")] = 5,
    shrink: Annotated[
        int, typer.Option(min=1, max=16, help="Divide the scenes' sides by this, to try it out.")
    ] = 1,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
) -> None:
    """Sampling tensors, interpolation back and class-probability pooling beside scipy and torch, on one core;
    and without a network, how well a label map survives being sampled and interpolated back.

    Peak memory is that of a process of its own, beyond its inputs.
    """
    result: dict[str, Any] = {}
    with clear_errors():
        if json_out:
            check_writable(json_out)
        maps = oracle_maps(camvid) if camvid else []
    if maps:
        result["oracle"] = {name: oracle(maps, name) for name in _TENSORS}
        _show_oracle(result["oracle"], len(maps))
    result["speed"] = [_compare(title, rounds, shrink) for title in _CASES]
    divided = f", sides divided by {shrink}" if shrink > 1 else ""
    _show_speed(result["speed"], f"One core, least of {rounds} round(s) in turn{divided}")
    if json_out:
        with clear_errors():
            write_bytes_atomically(json_out, json.dumps(result, indent=2).encode())


def oracle_maps(camvid: Path) -> list[np.ndarray]:
    """Every fourth label map of the training part, 92 of 367, as they are stored."""
    paths = sorted((camvid / "trainannot").glob("*.png"))[::4]
    if not paths:
        fail(f"--camvid: no label maps {camvid / 'trainannot'}/*.png")
    return [read_labels(path) for path in paths]


def oracle(maps: list[np.ndarray], tensor: str) -> dict[int, float]:
    """Mean IoU of label maps that were sampled (Eq. 1) and interpolated back (Sec. 3.3), in percent, for each
    sampling size: what a network that makes no mistakes would get. Void is a class as others while samples
    are interpolated; where it is the truth nothing counts."""
    classes = np.arange(_VOID + 1)
    scores = {}
    for n in _SAMPLING_SIZES:
        confusion = np.zeros((len(classes), len(classes)), np.int64)
        for labels in maps:
            phi = _TENSORS[tensor](labels, n)
            one_hot = (sample(labels, phi) == classes[:, None, None]).astype(np.float32)
            back = interpolate_labels(one_hot, phi, (labels.shape[0], labels.shape[1]))
            confusion += confusion_matrix(back, labels, len(classes), _VOID)
        scores[n] = 100 * mean_score(class_iou(confusion), range(len(CAMVID.classes)))
    return scores


def _resized(labels: np.ndarray, n: int, lam: float, size: int) -> np.ndarray:
    return resize_tensor(sampling_tensor(labels, (n, n), lam, _VOID), (size, size))


# What is compared: the first is this project's, the others get the same arguments.


@dataclass(frozen=True)
class _Case:
    size: tuple[int, int]
    arguments: Callable[[np.ndarray], tuple[Any, ...]]
    variants: dict[str, Callable[..., Any]]


def _solve_case(size: tuple[int, int], n: int) -> _Case:
    variants = {
        "fullres": lambda labels: sampling_tensor(labels, (n, n), 1),
        "scipy: distance transform, spsolve": lambda labels: _scipy_tensor(labels, n),
    }
    return _Case(size, lambda labels: (labels,), variants)


def _scipy_tensor(labels: np.ndarray, n: int) -> np.ndarray:
    """`sampling_tensor` with lambda 1, as one would write it with scipy; the matrix is at hand."""
    extent = np.array(labels.shape) - 1
    nearest = distance_transform_edt(~boundary_map(labels), return_distances=False, return_indices=True)
    row, column = np.moveaxis(np.rint(uniform_tensor(n, n) * extent).astype(int), -1, 0)
    b = nearest[:, row, column] / extent[:, None, None]
    matrix = _normal_matrix(n)
    free, ones = slice(n, -n), slice(-n, None)
    solved = np.zeros((2, n * n))
    for phi, right in zip(solved, (b[0].ravel(), b[1].T.ravel()), strict=True):
        phi[ones] = 1
        phi[free] = spsolve(matrix[free, free], right[free] - matrix[free, ones] @ phi[ones])
    return np.stack([solved[0].reshape(n, n), solved[1].reshape(n, n).T], -1)


@lru_cache
def _normal_matrix(n: int) -> sparse.csc_array:
    difference = sparse.diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))
    line = difference.T @ difference
    laplacian = sparse.kron(line, sparse.eye_array(n)) + sparse.kron(sparse.eye_array(n), line)
    return sparse.csc_array(sparse.eye_array(n * n) + laplacian)


def _soft_scores(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Scores as of a network at 128 x 128 points: the sampled labels, softened, with a little noise."""
    phi = resize_tensor(sampling_tensor(labels, (8, 8), 1), (128, 128))
    one_hot = sample(labels, phi) == np.arange(_SCENE_CLASSES)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 0.05, one_hot.shape)
    scores = uniform_filter(one_hot.astype(np.float32), (0, 3, 3)) + noise.astype(np.float32)
    return scores, phi, (labels.shape[0], labels.shape[1])


def _scipy_labels(scores: np.ndarray, phi: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    points = (phi * (np.array(size) - 1)).reshape(-1, 2)
    at_points = scores.reshape(len(scores), -1).T
    return griddata(points, at_points, tuple(np.mgrid[: size[0], : size[1]]), "linear").argmax(-1)


def _averaged(labels: np.ndarray) -> list[np.ndarray]:
    channels = torch.from_numpy(labels).clamp(max=_SCENE_CLASSES).long()  # ignored pixels are the last one
    one_hot = F.one_hot(channels, _SCENE_CLASSES + 1).permute(2, 0, 1).float()
    return [F.avg_pool2d(one_hot, scale, ceil_mode=True).numpy() for scale in _SCALES]


@njit(cache=True)
def _histogram(labels: np.ndarray) -> int:
    """What counting costs at the least; the pixels of the commonest class."""
    counts = np.zeros(256, np.int64)
    for row in range(labels.shape[0]):
        for column in range(labels.shape[1]):
            counts[labels[row, column]] += 1
    return counts.max()


_CASES = {
    "labels to 8x8, 2048x1024": _solve_case((1024, 2048), 8),
    "labels to 8x8, 2710x2710": _solve_case((2710, 2710), 8),
    "labels to 128x128, 2048x1024": _solve_case((1024, 2048), 128),
    "128x128 scores, 19 classes, to 2048x1024 labels": _Case(
        (1024, 2048),
        _soft_scores,
        {"fullres": interpolate_labels, "scipy: griddata, argmax": _scipy_labels},
    ),
    "class probabilities at 1/4 to 1/32, 20 channels, 2048x1024": _Case(
        (1024, 2048),
        lambda labels: (labels,),
        {
            "fullres": lambda labels: class_probability_pyramid(labels, _SCALES, _SCENE_CLASSES),
            "torch: one-hot, average pooling": _averaged,
            "one pass over the labels (their histogram)": _histogram,
        },
    ),
}  # fmt: skip


def _compare(title: str, rounds: int, shrink: int) -> dict[str, Any]:
    console.print(title, highlight=False)
    case = _CASES[title]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/labels.npy"
        np.save(path, render_scene(0, case.size[0] // shrink, case.size[1] // shrink)[1])
        request = {"title": title, "labels": path}
        measured = _ask(request | {"rounds": rounds, "variants": list(case.variants)})
        memory = [_ask(request | {"rounds": 0, "variants": [name]})["memory"] for name in case.variants]
    return {"title": title, **measured, "memory": memory}


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-m", "fullres.jobs.bench.sampling"]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=os.environ | threads
    )
    if done.returncode:
        raise RuntimeError(f"{request['title']} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Of each variant the seconds of every run, or with no rounds the peak memory of one run, in bytes."""
    case, labels = _CASES[request["title"]], np.load(request["labels"])
    variants = {name: case.variants[name] for name in request["variants"]}
    small = case.arguments(np.ascontiguousarray(labels[:64, :64]))
    arguments = case.arguments(labels)
    for variant in variants.values():
        variant(*small)
    if not request["rounds"]:
        forget_peak()
        before = resident_bytes()
        variant(*arguments)
        return {"memory": max(0, peak_resident_bytes() - before)}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    results: dict[str, Any] = {}
    for _ in range(request["rounds"]):
        for name, variant in variants.items():
            start = time.perf_counter()
            while time.perf_counter() - start < _ROUND:
                begin = time.perf_counter()
                results[name] = variant(*arguments)
                seconds[name].append(time.perf_counter() - begin)
    return {"seconds": seconds, "differing": [_differing(results["fullres"], r) for r in results.values()]}


def _differing(ours: Any, other: Any) -> float | None:
    """Share of the values that differ by more than rounding; None where they are not of the same kind."""
    if np.isscalar(other):
        return None
    pairs = zip(ours, other, strict=True) if isinstance(ours, list) else [(ours, other)]
    return float(np.mean(np.concatenate([~np.isclose(a, b, rtol=0, atol=1e-6).ravel() for a, b in pairs])))


def _show_oracle(scores: dict[str, dict[int, float]], maps: int) -> None:
    table = Table(title=f"Label maps sampled and interpolated back: mean IoU in percent, {maps} of CamVid's")
    for heading in ("sampling tensor", *map(str, _SAMPLING_SIZES)):
        table.add_column(heading, justify="left" if "tensor" in heading else "right")
    for name, row in scores.items():
        table.add_row(name, *(f"{score:.2f}" for score in row.values()))
    print_table(table)


def _show_speed(cases: list[dict[str, Any]], title: str) -> None:
    table = Table(title=title)
    for heading in ("", "ms", "time / fullres", "peak memory, MiB", "values that differ"):
        table.add_column(heading, justify="left" if not heading else "right")
    for case in cases:
        table.add_section()
        table.add_row(f"[bold]{case['title']}")
        ours = min(case["seconds"]["fullres"])
        for (name, seconds), memory, differing in zip(
            case["seconds"].items(), case["memory"], case["differing"], strict=True
        ):
            share = "" if differing is None or name == "fullres" else f"{differing:.4%}"
            table.add_row(
                name,
                f"{1e3 * min(seconds):.2f}",
                f"{min(seconds) / ours:.2f}",
                f"{memory / 2**20:.0f}",
                share,
            )
    print_table(table)


if __name__ == "__main__":
    json.dump(_answer(json.load(sys.stdin)), sys.stdout)
