import pytest
import torch
from torch import nn

from fullres.models.memory import LiveBytes, on_meta
from fullres.models.spgnet import SPGNet
from tests.networks import narrow

torch.set_num_threads(1)


@pytest.fixture
def memory():
    with torch.no_grad(), LiveBytes() as memory:
        yield memory


def test_tensors_count_while_they_live(memory):
    x = torch.empty(100, device="meta")
    y = x + 1
    assert memory.live == memory.peak == 800
    del x
    assert memory.live == 400
    z = y.double()
    del y, z
    assert (memory.live, memory.peak) == (0, 1200)


def test_views_and_what_is_written_in_place_count_once(memory):
    x = torch.empty(6, 5, device="meta")
    first = x[:3].T.add_(1)
    x.relu_()
    assert memory.live == memory.peak == 120
    del x
    assert memory.live == 120  # the view holds it
    del first
    assert memory.live == 0


def test_what_was_there_before_counts_nothing():
    x = torch.empty(100, device="meta")
    with LiveBytes() as memory:
        x[:50].mul_(2)
        x.unflatten(0, (2, 50))
    assert memory.peak == 0


def test_a_spike(memory):
    x = torch.empty(25, device="meta")
    memory.spike(50)
    assert (memory.live, memory.peak) == (x.nbytes, 150)


@pytest.mark.parametrize(
    ("layout", "side", "copies"),
    [
        (torch.channels_last, 3, 2),
        (torch.contiguous_format, 3, 3),
        (torch.channels_last, 1, 1),
        (torch.contiguous_format, 1, 1),
    ],
)
def test_what_the_gradient_of_a_convolutions_weights_takes(layout, side, copies):
    """Beside itself: the weights and the gradient as the kernels have them, and the weights channels last."""
    conv = nn.Conv2d(64, 64, side, padding=side // 2, bias=False, device="meta").to(memory_format=layout)
    x = torch.empty(1, 64, 8, 8, device="meta").contiguous(memory_format=torch.channels_last)
    y = conv(x).sum()
    with LiveBytes() as memory:
        y.backward()
    size = conv.weight.nbytes
    assert memory.peak == pytest.approx(size + copies * size, abs=3 * x.nbytes)


@pytest.mark.parametrize(("layout", "copied"), [(torch.channels_last, 0), (torch.contiguous_format, 1024)])
def test_a_chain_holds_two_features_and_a_branch_three(layout, copied):
    """Of 1 x 4 x 8 x 8, 1024 bytes. A convolution copies its weights (64 bytes), and what is not channels
    last."""
    conv = nn.Conv2d(4, 4, 1, bias=False, device="meta").requires_grad_(False)
    x = torch.empty(1, 4, 8, 8, device="meta").contiguous(memory_format=layout)
    with LiveBytes() as chain:
        conv(conv(x))
    with LiveBytes() as branch:
        y = conv(x)
        y + conv(conv(y))
    assert (chain.peak, branch.peak) == (2 * 1024 + 64 + copied, 3 * 1024 + 64 + copied)


def test_a_copy_without_data():
    network = narrow("spgnet18x2")
    before = {key: t.clone() for key, t in network.state_dict().items()}
    copy = on_meta(network)
    assert isinstance(copy, SPGNet)
    assert not copy.training
    assert all(t.is_meta for t in copy.state_dict().values())
    assert {k: t.shape for k, t in copy.state_dict().items()} == {k: t.shape for k, t in before.items()}
    assert copy(torch.empty(1, 3, 33, 40, device="meta")).shape == (1, 5, 33, 40)
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())


def test_shared_parameters_stay_shared():
    layer = nn.Linear(3, 3)
    copy = on_meta(nn.Sequential(layer, layer, nn.Linear(3, 3)))
    assert copy[0] is copy[1]
    assert copy[0].weight is not copy[2].weight
