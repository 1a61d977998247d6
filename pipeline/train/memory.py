"""How much memory a worker of a training takes, before it runs.

The step itself runs on tensors without data (`models.memory`), which tells what is there at the worst moment;
what ZeRO divides, and the copies that DeepSpeed keeps beside, are added up. In use is meant: a CPU's
allocator keeps more, a GPU's too, and both have libraries beside.
"""

from dataclasses import dataclass

import torch
from torch import nn

from fullres.models.catalogue import CATALOGUE
from fullres.models.memory import LiveBytes
from fullres.ops.pooling import shares_of_phases
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.network import initial_network
from fullres.pipeline.train.objectives import SegmentationLoss
from fullres.pipeline.train.optimizer import MOMENTS, freeze


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker. `parameters`: with buffers, and the copies that an engine keeps. `optimizer`: its
    state. `activations`: what the forward pass keeps for the backward pass. `step`: the most of activations,
    what layers need while they compute, gradients and their exchange, at the worst moment of a step."""

    parameters: int
    optimizer: int
    activations: int
    step: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.step


def memory_of(config: TrainingConfig, classes: int, gpu: bool = False) -> Memory:
    """Of one of `config.parallel`'s workers, on a CPU or a GPU; without a layout of one process by plain
    torch. Offloading counts for nothing on a CPU, whose memory it is.

    Sizes that DeepSpeed 0.19 was seen to take on two CPUs, where t are the trained parameters' bytes and s a
    worker's share of them. On a GPU they are what its code says.
    """
    network = _network(config, classes)
    t = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    whole = sum(tensor.nbytes for tensor in network.state_dict().values())
    activations, step = _step(config, network)
    layout = config.parallel
    if layout.workers is None:
        return Memory(whole, t * MOMENTS[config.optimizer], activations, step)
    s = t // layout.workers if layout.zero else t
    moments = s * MOMENTS[config.optimizer]
    # The copy for saving and labelling lies in the memory of the host; ZeRO has a share to be changed.
    parameters = whole * (1 if gpu else 2) + (s if layout.zero else 0) + (s if layout.zero == 3 else 0)
    # Gradients, the flat tensors that they are put into, and gloo's copy of these; ZeRO 3 gathers parameters
    # in another.
    exchange = {0: t + t, 1: t + t, 2: t + s, 3: t + t}[layout.zero]
    if not gpu and layout.workers > 1:
        exchange += t
    if gpu and layout.offload:
        moments, parameters = 0, parameters - s
    return Memory(parameters, moments, activations, max(step, exchange))


def _network(config: TrainingConfig, classes: int) -> nn.Module:
    """Without data, as a worker has it."""
    with torch.device("meta"):
        network = initial_network(config.model, classes)
    for option in CATALOGUE[config.model.name].training_options:
        setattr(network, option, getattr(config, option))
    if CATALOGUE[config.model.name].splits:
        divided = shares_of_phases(config.phases, config.parallel.split)
        network.phases = [n // share for n, share in zip(config.phases, divided, strict=True)]  # type: ignore[assignment]
        network.full_resolution()  # type: ignore[operator]  # it is traced once, which is no part of a step
    freeze(config, network)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _step(config: TrainingConfig, network: nn.Module) -> tuple[int, int]:
    """Bytes that the forward pass of one of the accumulated parts keeps for the backward pass, and the most
    that there is beside parameters and optimizer."""
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    options = CATALOGUE[config.model.name].training_options
    by_block = config.activation_checkpointing and "activation_checkpointing" not in options
    objective = SegmentationLoss(network, checkpointed=by_block)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    objective.to(dtype)  # there is no autocast without data; it has copies of the parameters in this type
    copies = 0 if dtype == torch.float32 else trained
    n = config.batch_size // (config.parallel.data or 1) // config.accumulation
    images = torch.empty(n, 3, *config.crop, dtype=dtype, device="meta")
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.empty(n, *config.crop, dtype=torch.long, device="meta")
    live = LiveBytes()
    with live:
        for _ in range(min(2, config.accumulation)):  # the second part finds the gradients of the first
            before = live.live
            loss = objective(images, labels)
            kept = live.live - before
            loss.backward()
    return kept + copies // 2, live.peak + copies
