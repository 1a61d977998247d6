"""How much memory a worker of a training takes, before it runs.

Forward and backward pass run on tensors without data (`models.memory`), which tells what is there at their
worst moment. What ZeRO divides, the copies that DeepSpeed 0.19 keeps, and what gradients are put into for
their exchange are counted as its code and torch's say. In use is meant: a CPU's allocator keeps more, a GPU's
too, and both have libraries beside.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fullres.models.catalogue import CATALOGUE
from fullres.models.memory import LiveBytes
from fullres.ops.pooling import shares_of_phases
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.network import initial_network, learn_to_sample
from fullres.pipeline.train.objectives import SegmentationLoss
from fullres.pipeline.train.optimizer import MOMENTS, freeze

# Of a parameter's size what an optimizer needs while it changes it: gradients with the weight decay added
# (not with AdamW), and Adam's root of the second moment. torch's loop on CPUs divides that into another
# tensor, its kernels for GPUs in place.
_UPDATING = {"sgd": 1, "adamw": 2, "adam": 3}
_UPDATING_ON_GPU = {"sgd": 1, "adamw": 1, "adam": 2}
# DeepSpeed gathers parameters before they are needed, so many bytes at a time.
_GATHERED = 4 * 50_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker. `parameters`: with buffers, and the copies that an engine keeps. `optimizer`: its
    state. `activations`: what the forward pass keeps for the backward pass. `step`: the most of activations,
    what layers need while they compute, gradients, their exchange and what the optimizer needs for a while,
    at the worst moment of a step."""

    parameters: int
    optimizer: int
    activations: int
    step: int

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.step


def memory_of(config: TrainingConfig, classes: int, gpu: bool = False) -> Memory:
    """Of one of `config.parallel`'s workers, on a CPU or a GPU; without a layout of one process by plain
    torch. Offloading counts for nothing on a CPU, whose memory it is."""
    layout = config.parallel
    workers = layout.workers or 1
    zero = layout.zero if layout.workers is not None else 0
    network = _network(config, classes)
    if not zero:  # else parameters are parts of a flat tensor
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [p for p in network.parameters() if p.requires_grad]
    t = sum(p.nbytes for p in trained)
    whole = sum(tensor.nbytes for tensor in network.state_dict().values())
    # Gradients are joined in one flat tensor; those that lie channels last are copied for that.
    copied = sum(p.nbytes for p in trained if not p.is_contiguous())
    largest = max((p.nbytes for p in trained), default=0)
    moved = zero == 3 or (zero == 2 and gpu)
    kept, peak = _passes(config, network, moved)
    moments, updating = MOMENTS[config.optimizer], (_UPDATING_ON_GPU if gpu else _UPDATING)[config.optimizer]
    if not zero:
        # On a CPU one parameter is changed after the other.
        update = t + updating * (t if gpu else largest)
        if layout.workers is None:
            return Memory(whole, t * moments, kept, max(peak, update))
        most = max(peak, t + copied + t, update)
        return Memory(whole + _copy(whole, gpu), t * moments, kept, most)

    s = t // workers  # a worker's share
    offloaded = gpu and layout.offload
    master = 0 if offloaded else s  # of the parameters: what the optimizer changes
    update = 0 if offloaded else s + updating * s
    if zero == 3:
        # Shares of parameters and gradients in place of all, and the tensor that gradients are exchanged in.
        parameters = whole - t + (0 if offloaded else 2 * s) + master + t
        # What was gathered stays until all who wait for a part have copied it, which is late in the pass.
        forward = t + min(t, _GATHERED) + kept
        most = max(forward, t + peak, t, update)
    else:
        parameters = whole + master
        # Gradients move into the flat tensor that they are exchanged in: with stage 2 as they come, with
        # stage 1 after the pass. On a CPU it takes memory only where it is written.
        backward = peak + t if gpu else peak
        if zero == 2 and config.accumulation > 1:
            backward += s  # the sum of the parts before
        most = max(backward, t + t, update)  # the exchange itself is of another copy
    optimizer = 0 if offloaded else s * moments
    return Memory(parameters + _copy(whole, gpu), optimizer, kept, most)


def _copy(whole: int, gpu: bool) -> int:
    """The network for saving and labelling, which lies in the memory of the host."""
    return 0 if gpu else whole


def _network(config: TrainingConfig, classes: int) -> nn.Module:
    """Without data, as a worker has it."""
    with torch.device("meta"):
        network = initial_network(config.model, classes)
    learn_to_sample(network, config.sampling)
    network.to("meta")
    for option in CATALOGUE[config.model.name].training_options:
        setattr(network, option, getattr(config, option))
    if CATALOGUE[config.model.name].splits:
        divided = shares_of_phases(config.phases, config.parallel.split)
        network.phases = [n // share for n, share in zip(config.phases, divided, strict=True)]  # type: ignore[assignment]
        network.full_resolution()  # type: ignore[operator]  # it is traced once, which is no part of a step
    freeze(config, network)
    return network


def _passes(config: TrainingConfig, network: nn.Module, moved: bool) -> tuple[int, int]:
    """Bytes that the forward pass of one of the accumulated parts keeps for the backward pass, and the most
    that there is in both beside parameters and optimizer. `moved`: without the gradients of parameters, which
    are taken away as they come."""
    trained = [p for p in network.parameters() if p.requires_grad]
    options = CATALOGUE[config.model.name].training_options
    by_block = config.activation_checkpointing and "activation_checkpointing" not in options
    objective = SegmentationLoss(network, checkpointed=by_block)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    # There is no autocast without data; it has copies of the parameters in this type.
    copies = 0 if dtype == torch.float32 else sum(p.nbytes for p in trained)
    objective.to(dtype)
    n = config.batch_size // (config.parallel.data or 1) // config.accumulation
    joint = config.sampling.joint is not None
    read = config.crop if joint else config.input_size
    labelled = config.crop if joint else config.sampling.size or config.crop
    images = torch.empty(n, 3, *read, dtype=dtype, device="meta")
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.empty(n, *labelled, dtype=torch.long, device="meta")
    if moved:
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(_take_gradient)
    live = LiveBytes()
    with live:
        for _ in range(min(2, config.accumulation)):  # the second part finds the gradients of the first
            before = live.live
            loss = objective(images, labels)
            kept = live.live - before
            loss.backward()
    return kept + copies // 2, live.peak + copies


def _take_gradient(parameter: Tensor) -> None:
    parameter.grad = None
