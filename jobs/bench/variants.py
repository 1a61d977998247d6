"""One way to full resolution, measured in a process of its own: `python -m fullres.jobs.bench.variants`.

Reads a JSON request on standard input, prints a JSON answer: seconds of one run after a warm-up on a small
image, bytes of memory beyond the loaded network; class ids go to the file it names.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullres.cluster.memory import peak_resident_bytes, resident_bytes
from fullres.jobs.bench.dilated import Dilated
from fullres.jobs.common import fail
from fullres.models.catalogue import CATALOGUE, build
from fullres.models.smp import SMP
from fullres.models.weights import load_network
from fullres.ops.allocator import suit_allocator
from fullres.ops.convolution import Convolution
from fullres.ops.normalisation import normalise
from fullres.pipeline.predict.execute import DTYPES, Predictor, predict_image
from fullres.pipeline.predict.plan import plan_image
from fullres.pipeline.predict.shipped import needed_weights, shipped_for

Run = Callable[[np.ndarray], np.ndarray]


def check_network(model: str, width: float | None) -> None:
    """End the job where `network_of` has no such network."""
    known = [name for name, entry in CATALOGUE.items() if entry.splits]
    if model not in known:
        fail(f"--model is '{model}': one of {', '.join(known)}")
    if width is None and shipped_for(model) is None:
        fail(f"--width: no weights come with {model}; say the width of random ones, e.g. 1")


def network_of(model: str, width: float | None) -> SMP:
    """The shipped network or, with a width, one of that width with random weights and batch norm statistics
    of a trained one's scale, the same in every process."""
    if width is None:
        network, _ = load_network(model, needed_weights(model))
    else:
        torch.manual_seed(0)
        network = build(model, 19, width)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    assert isinstance(network, SMP)
    return network.eval()


def describe(width: float | None) -> str:
    return "as shipped" if width is None else f"width {width:g}, random weights"


def split_merge(request: dict[str, Any]) -> Run:
    """This project, one worker."""
    return _run_of(_predictor(request), request)


def _predictor(request: dict[str, Any]) -> Predictor:
    network = network_of(request["model"], request["width"])
    return Predictor(network, torch.device("cpu"), request["precision"])


def _run_of(predictor: Predictor, request: dict[str, Any]) -> Run:
    def run(image: np.ndarray) -> np.ndarray:
        size = (image.shape[0], image.shape[1])
        plan = plan_image(
            predictor.tree,
            size,
            workers=1,
            memory_budget=request["memory_budget"],
            precision=request["precision"],
        )
        suit_allocator(plan.schedule.peak_bytes, request["memory_budget"])
        return predict_image(predictor, plan, image)

    return run


def _fused_dilated(request: dict[str, Any]) -> nn.Module:
    from torch.fx.experimental.optimization import fuse  # conv + batch norm, as fair as it gets

    network = fuse(Dilated(network_of(request["model"], request["width"])).eval())
    return network.to(DTYPES[request["precision"]], memory_format=torch.channels_last)  # type: ignore[call-overload]


def dilated(request: dict[str, Any]) -> Run:
    """The whole image through the dilated network."""
    network, dtype = _fused_dilated(request), DTYPES[request["precision"]]
    return lambda image: (
        network(normalise(torch.from_numpy(image), dtype)[None]).argmax(1)[0].to(torch.uint8).numpy()
    )


def sliding(request: dict[str, Any]) -> Run:
    """monai's sliding windows over the dilated network, constant weights."""
    from monai.inferers.inferer import SlidingWindowInferer

    network, dtype = _fused_dilated(request), DTYPES[request["precision"]]
    inferer = SlidingWindowInferer((512, 512), sw_batch_size=1, overlap=request["overlap"])

    def run(image: np.ndarray) -> np.ndarray:
        scores = inferer(normalise(torch.from_numpy(image), dtype)[None], network)
        assert isinstance(scores, Tensor)
        return scores.argmax(1)[0].to(torch.uint8).numpy()

    return run


class Floor:
    """Nothing but the convolutions that split-merge makes, at the same shapes and in the same precision."""

    def __init__(self, request: dict[str, Any]) -> None:
        predictor = _predictor(request)
        for module in predictor.tree.modules():
            if isinstance(module, Convolution):
                module.unpack()
        self.whole = _run_of(predictor, request)
        self.dtype = DTYPES[request["precision"]]
        self.seconds = 0.0

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Runs once to record the convolutions, then each kind by itself; `seconds` is the sum."""
        calls: Counter[tuple[Any, ...]] = Counter()
        convolve = F.conv2d

        def record(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
            calls[tuple(x.shape), tuple(weight.shape), how] += 1
            return convolve(x, weight, bias, *how)

        F.conv2d = record  # type: ignore[assignment]
        try:
            labels = self.whole(image)
        finally:
            F.conv2d = convolve
        self.seconds = sum(self._seconds(*call) * times for call, times in calls.items())
        return labels

    def _seconds(self, shape: tuple[int, ...], weight_shape: tuple[int, ...], how: tuple[Any, ...]) -> float:
        """Of one call, the mean of eight after a warm-up."""
        x = torch.randn(shape).to(self.dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(weight_shape).to(self.dtype).contiguous(memory_format=torch.channels_last)
        F.conv2d(x, weight, None, *how)
        begin = time.perf_counter()
        for _ in range(8):
            F.conv2d(x, weight, None, *how)
        return (time.perf_counter() - begin) / 8


VARIANTS: dict[str, Callable[[dict[str, Any]], Run]] = {
    "split_merge": split_merge,
    "dilated": dilated,
    "sliding": sliding,
    "floor": Floor,
}


def main() -> None:
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    image = np.load(request["image"])
    with torch.inference_mode():
        run = VARIANTS[request["variant"]](request)
        run(image[:96, :96])
        baseline = resident_bytes()
        begin = time.perf_counter()
        labels = run(image)
        seconds = time.perf_counter() - begin
    np.save(request["labels"], labels)
    seconds = run.seconds if isinstance(run, Floor) else seconds
    json.dump({"seconds": seconds, "memory": max(0, peak_resident_bytes() - baseline)}, sys.stdout)


if __name__ == "__main__":
    main()
