"""Trainings are channels last, but where oneDNN would write beyond a gradient."""

import subprocess
import sys

import pytest
import torch

from fullres.pipeline.train import engine
from fullres.pipeline.train.config import ModelConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "width", "capability", "kept"),
    [
        ("fcn8s18", 1 / 16, "AVX2", True),
        ("fcn8s18", 1 / 16, "AVX512", False),
        ("fcn8s18", 1 / 8, "AVX2", False),
        ("pspnet50", 1 / 16, "AVX2", False),  # its bottlenecks are four times as wide
        ("unet", 1 / 16, "AVX2", False),  # it has no strided convolution
    ],
)
def test_what_is_channels_last(monkeypatch, name, width, capability, kept):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    engine._is_written_beyond.cache_clear()
    try:
        found = engine.memory_format_of(ModelConfig(name=name, width=width), CPU)
    finally:
        engine._is_written_beyond.cache_clear()
    assert found is (torch.contiguous_format if kept else torch.channels_last)


# Gradients of strided 1 x 1 convolutions of at least 8 channels, beside those without oneDNN. The process
# would be ended by a damaged heap.
GRADIENTS = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
for inputs, outputs in ((8, 4), (8, 16), (12, 19), (20, 5)):
    layer = torch.nn.Conv2d(inputs, outputs, 1, 2).to(memory_format=torch.channels_last)
    x = torch.randn(4, inputs, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    found = []
    for use in [True] * 20 + [False]:
        layer.zero_grad()
        with torch.backends.mkldnn.flags(enabled=use):
            layer(x).square().sum().backward()
        found.append(layer.weight.grad.clone())
        rest = [torch.randn(9 + i) for i in range(50)]
    torch.testing.assert_close(found, [found[-1]] * len(found), rtol=1e-4, atol=1e-4)
"""


def test_other_convolutions_are_computed_right():
    subprocess.run([sys.executable, "-c", GRADIENTS], check=True, timeout=300)
