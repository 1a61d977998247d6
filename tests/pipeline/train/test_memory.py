"""The estimate of a training's memory beside what torch says it keeps."""

import pytest
import torch

from fullres.pipeline.datasets.folder import folder
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.engine import objective_of
from fullres.pipeline.train.layout import ParallelConfig
from fullres.pipeline.train.memory import memory_of


def config_of(model="fcn8s18", **changes):
    return TrainingConfig(
        model={"name": model, "width": 0.25}, steps=1, batch_size=4, crop=(128, 128), out="out",
        data={"dataset": "scenes", "images": "images", "labels": "labels"},
        **{"optimizer": "adam", **changes},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "checkpointed"),
    [("smp18", False), ("spgnet18x2", False), ("pspnet50", True)],
)
def test_activations_are_what_is_saved_for_the_backward_pass(model, checkpointed):
    config = config_of(model, activation_checkpointing=checkpointed)
    objective = objective_of(config, folder(19), False, False).to(memory_format=torch.channels_last)
    own = {t.untyped_storage().data_ptr() for t in objective.state_dict().values()}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, labels = torch.rand(4, 3, 128, 128), torch.randint(0, 19, (4, 128, 128))
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = objective(images, labels)
    for given in (images, labels):
        saved.pop(given.untyped_storage().data_ptr(), None)
    assert memory_of(config, 19).activations == pytest.approx(sum(saved.values()), rel=0.001)
    assert loss.requires_grad  # until here it keeps them


def test_of_sampled_crops_what_is_sampled_counts():
    whole, sampled = config_of("unet"), config_of("unet", sampling={"size": (32, 32)})
    assert memory_of(sampled, 19).activations == pytest.approx(memory_of(whole, 19).activations / 16, rel=0.1)
    assert memory_of(config_of("downsampler8"), 19).activations > 0


def test_what_makes_memory_less():
    whole = memory_of(config_of(), 19)
    parts = memory_of(config_of(accumulation=2), 19)
    assert parts.activations == pytest.approx(whole.activations / 2, rel=0.05)
    recomputed = memory_of(config_of(activation_checkpointing=True), 19)
    assert recomputed.activations < whole.activations
    assert recomputed.step < whole.step
    by_stage = [memory_of(config_of(parallel=ParallelConfig(data=4, zero=zero)), 19) for zero in (0, 1, 2, 3)]
    assert {memory.optimizer for memory in by_stage[1:]} == {by_stage[0].optimizer // 4}
    assert by_stage[0].activations == pytest.approx(whole.activations / 4, rel=0.05)
    assert by_stage[2].total <= by_stage[1].total < by_stage[0].total
    assert memory_of(config_of("spgnet18x2", precision="bf16"), 19).total > 0
