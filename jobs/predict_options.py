"""What the options of `fullres predict` ask for. What is impossible ends the job with one line."""

import hashlib
import json
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from fullres.cluster.coordinator import Read
from fullres.jobs.common import fail, fetched, known_dataset, parse_size
from fullres.models.downsampler import Downsampler
from fullres.models.full_resolution.split_merge import FullResolution
from fullres.ops.normalisation import IMAGENET
from fullres.pipeline.data.images import read_channels
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.predict.adaptive import Adaptive, largest_size
from fullres.pipeline.predict.engines import Engine, Resources, Windows
from fullres.pipeline.predict.published import is_remote
from fullres.pipeline.predict.sampler import load_downsampler
from fullres.pipeline.predict.windows import Average, WindowSpec


def window_spec(
    scales: str | None,
    flip: bool,
    window: int | None,
    stride: int | None,
    base_size: int | None,
    average: Average,
) -> WindowSpec | None:
    """What the options ask for; None if none is given."""
    if stride is not None and (window is None or stride > window):
        fail(f"--stride is {stride}: at most --window, which is {window or 'not given'}")
    as_usual = average == "probabilities"
    if scales is None and not flip and window is None and base_size is None and as_usual:
        return None
    try:
        factors = tuple(float(scale) for scale in ("1" if scales is None else scales).split(","))
    except ValueError:
        factors = (0.0,)
    if not all(0 < factor <= 16 for factor in factors):
        fail(f"--scales is '{scales}': numbers above 0, at most 16, with commas between")
    if not as_usual and (flip or len(factors) > 1):
        fail("--average is logits: without --flip and with one of --scales, whose probabilities are averaged")
    return WindowSpec(factors, flip, window, stride, base_size, average)


def bands_of(text: str | None) -> tuple[int, ...] | None:
    """What `--bands` asks for. Ends the job where that is impossible."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        fail(f"--bands is '{text}': numbers from 1 with commas between")
    return tuple(int(part) for part in parts)


def attended(names: str | None, model: str, network: Any, known: Dataset) -> dict[str, int]:
    """The class ids of `--attention`. Ends the job at an unknown name, or a network that attends to none."""
    if names is None:
        return {}
    if not getattr(network, "has_attention", False):
        fail(f"--attention: {model} has no guided attention; SPGNets of two stages have, e.g. spgnet50x2")
    listed = dict.fromkeys(name.strip() for name in names.split(","))
    for name in listed:
        if name not in known.classes:
            fail(f"--attention: '{name}' is no class of {known.name}: {', '.join(known.classes)}")
    return {name: known.classes.index(name) for name in listed}


def classes_of(network: nn.Module, factory: str, name: str | None) -> Dataset:
    """The data set that is named; without one, classes by their numbers, as many as a full-resolution form
    has."""
    there = network.channels[0] if isinstance(network, FullResolution) else None
    if name is None and there is None:
        fail(f"--dataset: {factory} is no full-resolution form; name the data set whose classes it labels")
    known = known_dataset(name or "folder", there if name in (None, "folder") else None)
    if there is not None and len(known.classes) != there:
        fail(f"--dataset: {factory} has {there} classes, but {known.name} has {len(known.classes)}")
    return known


def reader(channels: int, bands: tuple[int, ...] | None) -> Read:
    """Ends the job where the network reads another number of channels than `--bands` has."""
    if bands is not None and len(bands) != channels and (len(bands), channels) != (1, 3):
        fail(f"--bands is '{','.join(map(str, bands))}': the network reads {channels} channels")
    return partial(read_channels, channels=channels, bands=bands)


def sampled_size(
    size: str | None, gflops: float | None, adaptive: str | None, attention: str | None, shown: bool
) -> tuple[int, int] | None:
    """(h, w) of the points that an image is labelled from, the fewest there are where `within` is to say;
    None for all of its pixels."""
    if size is None and gflops is None:
        for option, given in (("--adaptive", adaptive), ("--save", "points" if shown else None)):
            if given is not None:
                fail(f"{option} is '{given}': say with --size or --gflops how many pixels are chosen")
        return None
    if size is not None and gflops is not None:
        fail(f"--gflops is {gflops:g}: without --size, which it finds")
    if attention is not None:
        fail(f"--attention is '{attention}': of all of an image's pixels, without --size and --gflops")
    if size is None:
        return 2, 2
    points = parse_size(f"{size}x{size}" if size.isdecimal() else size)
    if min(points) < 2:
        fail(f"--size is '{size}': at least 2 pixels a side")
    return points


def within(engine: Adaptive, gflops: float, resources: Resources) -> Adaptive:
    """With the most points that so many operations and the memory budget allow."""
    size = largest_size(engine, gflops, resources)
    if size is None:
        budget = resources.memory_budget >> 20
        fail(f"--gflops is {gflops:g}: not enough for 8x8 points with this network, or {budget} MiB are not")
    return engine.with_size(size)


def downsampler(weights: str) -> Downsampler:
    """Of `--adaptive`, which takes what `--weights` does. Raises WeightsError."""
    if is_remote(weights):
        fetched(weights)
    return load_downsampler(weights, torch.device("cpu"))


def settings_of(engine: Engine) -> dict[str, Any]:
    """What changes an engine's results beside its network."""
    settings: dict[str, Any] = {}
    inner = engine
    if isinstance(engine, Adaptive):
        where, inner = engine.sampler.downsampler, engine.inner
        said = None if where is None else state_digest(where)
        settings |= {"sampling": {"size": list(engine.sampler.size), "downsampler": said}}
    if isinstance(inner, Windows):
        settings |= {"windows": json.loads(json.dumps(asdict(inner.spec)))}
    if engine.normalisation != IMAGENET:
        settings |= {"normalisation": json.loads(json.dumps(asdict(engine.normalisation)))}
    return settings


def state_digest(network: nn.Module) -> str:
    """Of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
