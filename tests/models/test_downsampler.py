import pytest
import torch

from fullres.models.downsampler import Downsampler, SamplingOutput
from fullres.models.unet import project
from fullres.ops.resample import area_resize
from tests.models import base

torch.set_num_threads(1)


def trained(grid=8, channels=8):
    """Away from the uniform tensor, far enough to leave [0, 1]."""
    return base.as_if_trained(lambda: Downsampler(grid, channels)).eval()


@pytest.mark.parametrize("grid", [8, 16, 32])
@pytest.mark.parametrize("size", [(32, 32), (97, 131), (1, 40), (300, 7)])
def test_any_image_gets_a_tensor_of_the_grid_that_covers_it(grid, size):
    network = trained(grid)
    with torch.no_grad():
        phi = network(torch.randn(2, 3, *size))
    assert phi.shape == (2, grid, grid, 2)
    # Eq. 3, to the last bit.
    assert (phi[:, 0, :, 0] == 0).all()
    assert (phi[:, -1, :, 0] == 1).all()
    assert (phi[:, :, 0, 1] == 0).all()
    assert (phi[:, :, -1, 1] == 1).all()
    assert ((phi >= 0) & (phi <= 1)).all()


def test_it_reads_a_small_image_and_learns_before_the_projection():
    network, image = trained(), torch.randn(1, 3, 50, 70)
    assert network.small == (32, 32)
    with torch.no_grad():
        phi = network(image)
        assert torch.equal(phi, network(area_resize(image, (32, 32))))
        network.smoothness, network.target_classes = 0.5, (1, 2)
        network.training = True  # with the statistics of evaluation
        network.network.training = True
        output = network(image)
    assert isinstance(output, SamplingOutput)
    assert (output.smoothness, output.target_classes) == (0.5, (1, 2))
    assert not torch.equal(output.phi, phi)
    assert torch.equal(project(output.phi), phi)
