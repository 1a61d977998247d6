"""Networks as others write them: exact in every plan, whatever they are built of."""

import pytest
import torch
from torch import nn

from fullres.models.full_resolution.check import check
from fullres.models.full_resolution.fold import inference_form
from fullres.models.full_resolution.split_merge import split_merge
from fullres.models.full_resolution.steps import UnsupportedModule
from fullres.ops.errors import NetworkError
from fullres.pipeline.predict.cost import convolutions
from tests.models.full_resolution.public_networks import OUTPUT, PUBLIC, StdConv2d, public
from tests.networks import with_statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*resizes to the image's size")
every = pytest.mark.parametrize("name", PUBLIC)


@every
def test_it_is_the_network_at_every_phase(name):
    found = check(public(name), (61, 74), output=OUTPUT.get(name))
    assert found.largest > 0.1
    assert found.difference < 1e-5 * found.largest
    assert found.difference_as_it_is < 1e-5 * found.largest
    assert found.compared_as_it_is > 0.01


@every
def test_ready_for_inference_it_is_the_same(name):
    tree = split_merge(public(name), output=OUTPUT.get(name))
    image = torch.randn(2, tree.in_channels, 37, 46)
    with torch.inference_mode():
        expected = tree(image)
        torch.testing.assert_close(inference_form(tree)(image), expected, rtol=1e-4, atol=1e-4)
        for trunk in tree.trunks():
            torch.testing.assert_close(tree.with_trunk(trunk)(image), expected, rtol=1e-4, atol=1e-4)


def test_check_finds_a_difference(monkeypatch):
    """A form with other weights than the network's, and one that is wrong at one phase alone."""
    import fullres.models.full_resolution.check as module

    network, other = public("cbam"), with_statistics(PUBLIC["cbam"]())
    monkeypatch.setattr(module, "split_merge", lambda *args, **named: split_merge(other))
    found = check(network, (61, 74))
    assert min(found.difference, found.difference_as_it_is) > 1e-2

    def wrong(*args, **named):
        tree = split_merge(network)
        right = tree.forward
        tree.forward = lambda image: right(image) + torch.eye(4).repeat(16, 19)[:61, :74]
        return tree

    monkeypatch.setattr(module, "split_merge", wrong)
    found = check(network, (61, 74))
    assert min(found.difference, found.difference_as_it_is) > 0.9


def test_check_where_an_output_reads_more_than_the_image():
    network = nn.Sequential(nn.Conv2d(3, 4, 31, 9, 15), nn.Conv2d(4, 2, 1))
    odd, even = check(network, (11, 14)), check(network, (18, 27))
    assert max(odd.difference, even.difference) < 1e-5
    assert (odd.compared_as_it_is, even.compared_as_it_is) == (0, 6 / (18 * 27))


def test_check_leaves_modes_and_the_random_generator_alone():
    network = public("drn").train()
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert check(network, (33, 40)).difference < 1e-6
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)


WRAPPERS = [nn.DataParallel, torch.compile, lambda network: torch.compile(nn.DataParallel(network))]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_are_taken_off(wrap):
    network, image = public("vgg"), torch.randn(1, 3, 17, 22)
    with torch.no_grad():
        assert torch.equal(split_merge(wrap(network))(image), split_merge(network)(image))


def test_sync_batch_norm():
    network, image = public("mobilenet v2"), torch.randn(1, 3, 17, 22)
    expected = split_merge(network)
    synced = split_merge(nn.SyncBatchNorm.convert_sync_batchnorm(network).eval())
    with torch.no_grad():
        torch.testing.assert_close(synced(image), expected(image))
    assert len(convolutions(inference_form(synced))) == len(convolutions(inference_form(expected)))
    assert not [m for m in inference_form(synced).modules() if isinstance(m, nn.SyncBatchNorm)]


def test_a_resize_that_is_left_out_is_said():
    with pytest.warns(UserWarning, match="upsample_bilinear2d resizes to the image's size: it is left out"):
        split_merge(public("csrnet"))


def test_outputs_are_chosen_by_name():
    network, image = public("dictionary"), torch.randn(1, 3, 17, 22)
    with torch.no_grad():
        own = network(image)
        for output, expected in {"out": own["out"], "aux.0": own["aux"][0]}.items():
            full = split_merge(network, output=output)(image)
            torch.testing.assert_close(full[:, :, ::2, ::2], expected)
    with pytest.raises(UnsupportedModule, match=r"Dictionary has no output 'main': there are out, aux\.0"):
        split_merge(network, output="main")
    with pytest.raises(NetworkError, match="the network has 2 outputs: choose one"):
        check(network, (61, 74))


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_images_of_any_number_of_channels(channels):
    network = with_statistics(nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()))
    assert split_merge(network).in_channels == channels
    assert check(network, (33, 40)).difference < 1e-6


def test_gradients_do_not_pass_by_computed_weights():
    tree = split_merge(nn.Sequential(StdConv2d(3, 4, 3, 2, 1), nn.ReLU()))
    with pytest.raises(NetworkError, match=r"module '0' \(StdConv2d\) computes weights from its parameters"):
        tree(torch.zeros(1, 3, 9, 9))


def test_tracing_leaves_the_network_as_it_was():
    network = public("drn").train()
    network.layers[1].eval()
    modes = [m.training for m in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    split_merge(network)
    assert modes == [m.training for m in network.modules()]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    kinds = {type(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    assert kinds == {torch.Tensor, nn.Parameter}


@pytest.mark.parametrize("name", ["cbam", "weight standardised", "drn"])
def test_traced_in_inference_mode(name):
    network, image = public(name), torch.randn(1, 3, 21, 26)
    outside = split_merge(network)
    with torch.inference_mode():
        assert torch.equal(split_merge(network)(image), outside(image))
        made_inside = split_merge(public(name))(image)
    assert made_inside.shape == (1, outside.channels[0], 21, 26)


FUNCTIONS = {
    "abs exp pow": lambda x: (-x.abs()).exp().pow(2) + x.square().sqrt(),
    "where": lambda x: torch.where(x > 0.1, x, x * 0.2),
    "maximum": lambda x: torch.maximum(x, 0.5 * x) - torch.minimum(x, x * x),
    "threshold": lambda x: torch.nn.functional.threshold(x, 0.1, -1.0),
    "comparisons": lambda x: (x > 0).float() * x + (x <= 0.2) * 0.5,
    "clone detach": lambda x: x.clone() + x.detach() * 2,
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: x.log_softmax(-3),
    "normalize": lambda x: nn.functional.normalize(x),
    "mean, var": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1).sqrt(),
    "without keepdim": lambda x: x * torch.sigmoid(x.mean(1)).unsqueeze(1),
    "amax, amin": lambda x: x.amax(1, keepdim=True) - x.amin(dim=(1,), keepdim=True),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "split": lambda x: torch.cat([part * (i + 1) for i, part in enumerate(x.split([3, 5], 1))], 1),
    "slice": lambda x: x[:, 2:6] + x[:, :4],
    "index": lambda x: x[:, 3:4] * x,
    "unbind, stack": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(2, 1),
    "glu": lambda x: nn.functional.glu(x, 1),
    "channel pad": lambda x: nn.functional.pad(x, (0, 0, 0, 0, 1, 2)),
    "groups": lambda x: x.reshape(x.shape[0], 2, 4, *x.shape[2:]).mean(2),
    "maxout": lambda x: x.view(x.size(0), 4, 2, x.size(2), x.size(3)).max(2)[0],
    "broadcast": lambda x: x + x[:, :1],
    "expand": lambda x: x[:, :1].expand_as(x) * x,
    "permuted": lambda x: (x.permute(2, 3, 0, 1) * torch.arange(8.0)).permute(2, 3, 0, 1),
    "zeros_like": lambda x: torch.cat([x, torch.zeros_like(x[:, :2])], 1),
    "in place": lambda x: (x + 0).mul_(2).add_(1).relu_(),
    "topk": lambda x: x.topk(3, 1)[0],
    "channel shuffle": lambda x: nn.ChannelShuffle(4)(x),
    "pixel unshuffle": lambda x: nn.functional.pixel_unshuffle(x, 2),
    "every third": lambda x: x[:, :, 1::3, ::3],
    "logsigmoid": lambda x: nn.functional.logsigmoid(x),
    "lp pool": lambda x: nn.functional.lp_pool2d(x, 2, 2),
    "padded pool": lambda x: nn.functional.max_pool2d(nn.functional.pad(x - 5, (1, 0, 0, 1)), 2),
    "padded average": lambda x: nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 3, 2),
    "linear": lambda x: x.permute(0, 2, 3, 1).clamp(0, 1).movedim(-1, 1),
}  # fmt: skip


class Calls(nn.Module):
    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.function = nn.Conv2d(3, 8, 3, 2, 1), FUNCTIONS[name]

    def forward(self, x):
        return self.function(self.stem(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    found = check(Calls(name), (43, 50))
    assert found.difference <= 1e-6 * found.largest
    assert found.difference_as_it_is <= 1e-6 * found.largest
    tree = split_merge(Calls(name))
    image = torch.randn(1, 3, 15, 22)
    with torch.inference_mode():
        torch.testing.assert_close(inference_form(tree)(image), tree(image), rtol=1e-5, atol=1e-6)
