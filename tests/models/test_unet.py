from functools import partial

import pytest
import torch
import torch.nn.functional as F

from fullres.models.catalogue import parameter_count
from fullres.models.count import count_macs
from fullres.models.unet import DoubleUNet, UNet, UNetBody, project
from fullres.ops.losses import cross_entropy, sampling_tensor_loss
from fullres.ops.sampling_solve import uniform_tensor
from tests.models import base
from tests.networks import with_statistics

torch.set_num_threads(1)

CLASSES = 5


def narrow():
    return UNet(CLASSES, 1 / 16)


def double(halvings=2, channels=8):
    """As if trained: away from the uniform tensor, far enough to leave [0, 1]."""
    network = base.as_if_trained(partial(DoubleUNet, halvings, channels)).double()
    return network.eval()


def random(*shape):
    return torch.rand(shape, dtype=torch.float64)


def test_parameters_of_the_padded_network_with_batch_norm():
    """As milesial/Pytorch-UNet counts it for two classes."""
    with torch.device("meta"):
        assert parameter_count(UNet(2)) == 31_037_698


@pytest.mark.parametrize("size", [(32, 48), (37, 21), (1, 1), (2, 7)])
def test_unet_is_figure_1_padded(size):
    torch.manual_seed(0)
    network, image = with_statistics(narrow()).double(), random(2, 3, *size)
    body = network.body
    with torch.no_grad():
        features = [body.down[0](image)]
        for block in body.down[1:]:
            h, w = features[-1].shape[2:]
            odd = F.pad(features[-1], (0, w % 2, 0, h % 2))  # what follows a ReLU is 0 or more
            pooled = odd.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5))
            features.append(block(pooled))
        x = features.pop()
        for enlarge, block in zip(body.enlarge, body.up, strict=True):
            skip = features.pop()
            upper = enlarge(x)[:, :, : skip.shape[2], : skip.shape[3]]
            x = block(torch.cat([skip, upper], 1))
        torch.testing.assert_close(network(image), network.classifier(x))
    assert features == []
    assert [block[0][0].in_channels for block in body.down] == [3, 4, 8, 16, 32]
    assert all(len(block) == 2 for block in (*body.down, *body.up))


def test_unet():
    base.check_network(narrow, CLASSES)


def test_unet_learns_from_cross_entropy():
    output = narrow().train()(base.image(2, (33, 49)))
    assert output.heads == ()
    loss = cross_entropy(output.logits, torch.randint(0, CLASSES, (2, 33, 49)))
    assert 0.5 < loss.item() < 10


def test_a_way_up_that_ends_early():
    body = with_statistics(UNetBody(3, (4, 8, 16, 32), 1, levels_up=1))
    with torch.no_grad():
        assert body(torch.rand(2, 3, 37, 21)).shape == (2, 16, 10, 6)
    assert len(body.enlarge) == len(body.up) == 1


@pytest.mark.parametrize(
    ("halvings", "size", "points"),
    [(2, (32, 32), (8, 8)), (3, (64, 64), (8, 8)), (2, (33, 21), (9, 6)), (1, (3, 4), (2, 2))],
)
def test_points_of_the_sampling_tensor(halvings, size, points):
    network, image = double(halvings), random(2, 3, *size)
    with torch.no_grad():
        phi = network(image)
        raw = network.train()(image)
    assert phi.shape == raw.shape == (2, *points, 2)
    assert (phi[:, 0, :, 0] == 0).all()
    assert (phi[:, -1, :, 0] == 1).all()
    assert (phi[:, :, 0, 1] == 0).all()
    assert (phi[:, :, -1, 1] == 1).all()
    assert phi.min() >= 0
    assert phi.max() <= 1


def test_the_second_network_is_the_same_for_every_image_size():
    first, other = (DoubleUNet(halvings, 8) for halvings in (2, 4))
    assert len(other.first.down) == len(first.first.down) + 2
    assert [p.shape for p in first.second.parameters()] == [p.shape for p in other.second.parameters()]


def test_channels_are_256_but_first_and_last():
    with torch.device("meta"):
        network = DoubleUNet()
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert [m.out_channels for m in convolutions] == [64, *[256] * (len(convolutions) - 2), 2]
        assert count_macs(network, 32, 32) / 1e9 == pytest.approx(0.338, abs=1e-3)


def test_prediction_is_the_uniform_tensor_and_a_shift():
    network, image = double(), random(1, 3, 32, 40)
    uniform = torch.from_numpy(uniform_tensor(8, 10))
    with torch.no_grad():
        shift = network.shift(network.second(network.first(image)))
        expected = uniform + torch.stack([shift[:, 0], shift[:, 1]], -1)
        torch.testing.assert_close(network(image), project(expected))
        network.train()
        torch.testing.assert_close(DoubleUNet(2, 8)(image.float())[0].double(), uniform)


def test_projection_is_the_closest_tensor_under_the_constraints():
    phi = 3 * random(2, 5, 6, 2) - 1
    expected = phi.clone()
    expected[expected < 0] = 0
    expected[expected > 1] = 1
    expected[:, 0, :, 0], expected[:, -1, :, 0] = 0, 1
    expected[:, :, 0, 1], expected[:, :, -1, 1] = 0, 1
    assert torch.equal(project(phi), expected)
    assert torch.equal(project(expected), expected)


def test_training_is_not_projected_and_reaches_every_parameter():
    network, image = double().train(), random(2, 3, 32, 32)
    phi = network(image)
    assert not torch.equal(phi, project(phi))
    sampling_tensor_loss(phi, torch.from_numpy(uniform_tensor(8, 8)).expand(2, -1, -1, -1)).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_coordinates_are_fp32_in_bf16():
    network, image = double(), random(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(image)
        phi = network.bfloat16()(image.bfloat16())
        fresh = DoubleUNet(2, 8).eval().bfloat16()(image.bfloat16())
    assert phi.dtype == fresh.dtype == torch.float32
    assert (phi - expected).norm() < 0.1 * expected.norm()
    torch.testing.assert_close(fresh[0].double(), torch.from_numpy(uniform_tensor(8, 8)), rtol=0, atol=1e-6)


def test_round_trip():
    network, other, image = double(), DoubleUNet(2, 8).double().eval(), random(1, 3, 32, 32)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(other(image), network(image))


@pytest.mark.slow
@pytest.mark.parametrize("build", [narrow, partial(DoubleUNet, 2, 8)], ids=["unet", "double"])
def test_export(build):
    base.check_export(build)
