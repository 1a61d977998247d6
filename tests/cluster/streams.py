"""Images as a coordinator gets them, and what it gave for each."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fullres.cluster.coordinator import Coordinator
from fullres.cluster.stream import Options, Progress, Task
from fullres.pipeline.predict.execute import Predictor, predict_image
from fullres.pipeline.predict.plan import plan_image
from tests.networks import random_image

MIB = 1 << 20
BUDGET = 256 * MIB
MIXED_SIZES = [(64, 96), (1, 1), (97, 61), (64, 96), (33, 7), (130, 70)]


def options(workers: int | None, **more) -> Options:
    return Options(
        **({"precision": "fp32", "memory_budget": BUDGET, "workers": workers, "device": "cpu"} | more)
    )


def images_of(sizes) -> dict[str, np.ndarray]:
    return {f"{i:02}.png": random_image(*size, seed=i) for i, size in enumerate(sizes)}


def in_process(network, images, scores=False) -> dict[str, np.ndarray]:
    """What `pipeline` alone gives."""
    predictor = Predictor(network, torch.device("cpu"), "fp32")
    plans = {
        size: plan_image(
            predictor.tree, size, workers=1, memory_budget=BUDGET, precision="fp32",
            scores=scores,
        )
        for size in {image.shape[:2] for image in images.values()}
    }  # fmt: skip
    return {
        name: predict_image(predictor, plans[image.shape[:2]], image, scores)
        for name, image in images.items()
    }


def run(
    coordinator: Coordinator,
    images: dict[str, np.ndarray],
    report: Callable[[Progress], None] = lambda progress: None,
    read: Callable[[Path], np.ndarray] | None = None,
    before_write: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    results: dict[str, np.ndarray] = {}

    def write(task: Task, image: np.ndarray, result: np.ndarray) -> None:
        before_write()
        assert image is images[task.path.name]
        assert task.path.name not in results
        results[task.path.name] = result

    tasks = [Task(Path(name), Path(name).with_suffix("")) for name in images]
    coordinator.run(tasks, read or (lambda path: images[path.name]), write, report)
    return results


def assert_same_bytes(results: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert results.keys() == expected.keys()
    for name, result in results.items():
        assert result.dtype == expected[name].dtype
        assert result.shape == expected[name].shape
        assert result.tobytes() == expected[name].tobytes()


class Killer:
    """Kills a worker with two grains in hand, or everybody with any, whenever so many grains are done."""

    def __init__(self, running, at, everybody=False):
        self.start = running.progress.grains_done
        self.at, self.everybody, self.killed = list(at), everybody, set()

    def __call__(self, progress):
        if not self.at or progress.grains_done - self.start < self.at[0]:
            return
        ready = [w for w in progress.workers if w.info is not None and w.info.pid not in self.killed]
        loaded = [w for w in ready if len(w.held) >= (1 if self.everybody else 2)]
        if len(loaded) == len(progress.workers) if self.everybody else loaded:
            self.at.pop(0)
            for worker in loaded if self.everybody else loaded[-1:]:
                os.kill(worker.info.pid, signal.SIGKILL)
                self.killed.add(worker.info.pid)
