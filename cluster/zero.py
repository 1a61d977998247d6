"""What ZeRO divides among processes, whole: weights and optimizer states as plain torch has them.

DeepSpeed's own checkpoints are of one number of processes and one stage; these go with any of both. All
functions are called by all processes together. `optimizer`: DeepSpeed's, of stage 1, 2 or 3. `parameters`: in
the order of the groups of the torch optimizer inside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fullres.ops.replicas import Group

# The tensors of the size of a parameter that an optimizer keeps of it.
_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """The network's state dict; of stage 3 in the memory of the host."""
    from deepspeed.runtime.zero import GatheredParameters

    state = network.state_dict()
    parameters = dict(network.named_parameters())
    if not any(map(_is_third, parameters.values())):
        return state
    with GatheredParameters(list(parameters.values())):
        return state | {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}


def read_state(
    optimizer: Any, parameters: Sequence[nn.Parameter], group: Group | None = None
) -> dict[int, dict[str, Tensor]]:
    """As "state" in a torch optimizer's state dict, in the memory of the host; none before the first step.
    `group`: the processes that divide it, None for all."""
    inner, partitions = optimizer.optimizer, _partitions(optimizer)
    if not inner.state:
        return {}
    read = _read_third if _is_third(parameters[0]) else _read_part
    steps = {name: v.cpu() for kept in inner.state.values() for name, v in kept.items() if name == "step"}
    return {
        index: steps | {name: read(inner, partitions, p, name, group).cpu() for name in _MOMENTS[type(inner)]}
        for index, p in enumerate(parameters)
    }


def fill_state(
    optimizer: Any, parameters: Sequence[nn.Parameter], state: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """The inverse of `read_state`, before the first step."""
    if not state:
        return
    inner, partitions = optimizer.optimizer, _partitions(optimizer)
    fill = _fill_third if _is_third(parameters[0]) else _fill_part
    for partition in partitions:
        inner.state[partition] = {name: torch.zeros_like(partition) for name in _MOMENTS[type(inner)]}
        if "step" in state[0]:
            inner.state[partition]["step"] = state[0]["step"].clone()
    for index, parameter in enumerate(parameters):
        for name in _MOMENTS[type(inner)]:
            fill(inner, partitions, parameter, name, state[index][name].flatten().to(partitions[0]))


def _is_third(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _partitions(optimizer: Any) -> Sequence[Tensor]:
    """Of each group of parameters what this process keeps, one after the other in a flat tensor."""
    third = hasattr(optimizer, "fp32_partitioned_groups_flat")
    return optimizer.fp32_partitioned_groups_flat if third else optimizer.single_partition_of_fp32_groups


# Stages 1 and 2: a process's partition of a group begins and ends anywhere in a parameter. DeepSpeed's own
# functions find the states of the first group alone.


def _read_part(
    inner: torch.optim.Optimizer,
    partitions: Sequence[Tensor],
    parameter: Any,
    name: str,
    group: Group | None,
) -> Tensor:
    whole = partitions[0].new_zeros(parameter.numel())
    if (part := parameter._hp_mapping) is not None:
        here, there = part.hp_fragment_address, part.lp_fragment_address
        kept = inner.state[partitions[part.param_group_index]][name]
        whole.narrow(0, there.start, there.numel).copy_(kept.narrow(0, here.start, here.numel))
    whole = whole.to(parameter.device)
    dist.all_reduce(whole, group=group)
    return whole.view(parameter.shape)


def _fill_part(
    inner: torch.optim.Optimizer, partitions: Sequence[Tensor], parameter: Any, name: str, value: Tensor
) -> None:
    if (part := parameter._hp_mapping) is not None:
        here, there = part.hp_fragment_address, part.lp_fragment_address
        kept = inner.state[partitions[part.param_group_index]][name]
        kept.narrow(0, here.start, here.numel).copy_(value.narrow(0, there.start, there.numel))


# Stage 3: each process has an equal share of every parameter, the last one padded.


def _read_third(
    inner: torch.optim.Optimizer,
    partitions: Sequence[Tensor],
    parameter: Any,
    name: str,
    group: Group | None,
) -> Tensor:
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(parameter, name)


def _fill_third(
    inner: torch.optim.Optimizer, partitions: Sequence[Tensor], parameter: Any, name: str, value: Tensor
) -> None:
    from deepspeed.utils import safe_set_local_optimizer_state

    share = parameter.ds_tensor.numel()
    padded = value.new_zeros(share * dist.get_world_size())
    padded[: len(value)] = value
    safe_set_local_optimizer_state(parameter, padded.narrow(0, share * dist.get_rank(), share), name)
