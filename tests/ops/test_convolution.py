import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fullres.ops.convolution import Convolution

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@settings(max_examples=40, deadline=None)
@given(
    channels=st.sampled_from([(3, 8), (16, 16), (32, 48), (64, 32)]),
    kernel=st.sampled_from([1, 3, 7]),
    stride=st.integers(1, 4),
    groups=st.sampled_from([1, 1, 1, "depthwise"]),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    batch=st.integers(1, 3),
    relu=st.booleans(),
    shortcut=st.booleans(),
    bias=st.booleans(),
    packed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_equals_the_separate_operations(
    dtype, channels, kernel, stride, groups, size, batch, relu, shortcut, bias, packed, seed
):
    torch.manual_seed(seed)
    inside, outside = channels
    if groups == "depthwise":
        groups = outside = inside
    conv = nn.Conv2d(inside, outside, kernel, groups=groups, bias=bias)
    x = torch.randn(batch, inside, *size)
    padding = (kernel // 2, kernel // 2)
    expected = F.conv2d(x, conv.weight, conv.bias, stride, padding, 1, groups)
    other = torch.randn_like(expected)
    if shortcut:
        expected = expected + other
    if relu:
        expected = expected.relu()

    fast = Convolution(conv, relu).to(dtype, memory_format=torch.channels_last)
    if packed:
        fast.pack()
    with torch.inference_mode():
        actual = fast(x.to(dtype), (stride, stride), padding, other.to(dtype) if shortcut else None)

    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual.float(), expected.detach(), atol=TOLERANCE[dtype] * scale, rtol=0)


def test_overwrites_its_shortcut_and_nothing_else():
    torch.manual_seed(0)
    fast = Convolution(nn.Conv2d(32, 32, 3), relu=True).to(memory_format=torch.channels_last).pack()
    x = torch.randn(1, 32, 6, 6).contiguous(memory_format=torch.channels_last)
    before, shortcut = x.clone(), torch.randn(1, 32, 6, 6).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        out = fast(x, padding=(1, 1), shortcut=shortcut)
    assert out.data_ptr() == shortcut.data_ptr()
    assert torch.equal(x, before)
