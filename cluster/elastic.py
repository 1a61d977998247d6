"""Ray Train's elastic training, held to numbers of workers that divide a batch, and not started again where
that would not help.

Ray Train itself takes every number from the least to the most, as many as the cluster has room for; and
starts again whatever its workers ended by.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

# Seconds between two looks for room for more. Ray counts its nodes no more often.
_LOOKS = 20.0


class ElasticTrainer(TorchTrainer):
    """With as many workers as there is room for, of the numbers `counts`, ascending; with one number alone it
    waits until there is room for that.

    Where workers die, and where a node joins, all are started anew, until `ended` says that it is over. The
    rest of the arguments are those of `TorchTrainer` and of its `ScalingConfig`.
    """

    def __init__(
        self,
        train_loop_per_worker: Any,
        *,
        counts: Sequence[int],
        ended: Callable[[], bool],
        use_gpu: bool,
        resources_per_worker: dict[str, float],
        **others: Any,
    ) -> None:
        scaling = ScalingConfig(
            num_workers=(counts[0], counts[-1]) if len(counts) > 1 else counts[0],
            use_gpu=use_gpu,
            resources_per_worker=resources_per_worker,
            elastic_resize_monitor_interval_s=_LOOKS,
        )
        super().__init__(train_loop_per_worker, scaling_config=scaling, **others)
        self.policy = _OfCounts(scaling, counts) if scaling.elasticity_enabled else None
        self.ended = ended

    def _initialize_and_run_controller(self, **made: Any) -> Any:
        if self.policy is not None:
            made["scaling_policy"] = self.policy
        made["failure_policy"] = _UntilEnded(made["failure_policy"], self.ended)
        return super()._initialize_and_run_controller(**made)


class _OfCounts(ElasticScalingPolicy):
    """Of the places that there are takes the largest number that is possible."""

    def __init__(self, scaling_config: ScalingConfig, counts: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self.counts = counts

    def _count_possible_workers(self, allocated_resources: Any) -> int:
        there = super()._count_possible_workers(allocated_resources)
        return max((count for count in self.counts if count <= there), default=0)


class _UntilEnded(FailurePolicy):
    """As another policy decides, but nothing more once `ended` says so."""

    def __init__(self, usual: FailurePolicy, ended: Callable[[], bool]) -> None:
        super().__init__(usual.failure_config)
        self.usual, self.ended = usual, ended

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if self.ended():
            return FailureDecision.RAISE
        return self.usual.make_decision(training_failed_error)
