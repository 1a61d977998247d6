import numpy as np

from fullres.pipeline.data.pictures import colour, heat, overlay, shrunk, stacked

PALETTE = ((10, 20, 30), (200, 100, 50))


def test_colours_are_the_palette_in_rgb_and_others_black():
    painted = colour(np.uint8([[0, 1, 255]]), PALETTE)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[10, 20, 30], [200, 100, 50], [0, 0, 0]]]


def test_overlay_weighs_image_and_colours():
    image = np.full((1, 2, 3), 100, np.uint8)
    laid = overlay(image, np.uint8([[0, 1]]), PALETTE, alpha=0.2)
    assert laid.tolist() == [[[82, 84, 86], [120, 100, 90]]]
    assert overlay(image, np.uint8([[0, 1]]), PALETTE, alpha=0).tolist() == image.tolist()


def test_heat_goes_from_blue_to_red_over_the_image():
    image = np.full((1, 2, 3), 100, np.uint8)
    assert heat(image, np.float32([[0, 1]])).tolist() == [[[50, 50, 114], [114, 50, 50]]]


def test_pictures_are_shrunk_to_their_longer_side_and_never_enlarged():
    picture = np.full((40, 100, 3), 7, np.uint8)
    assert shrunk(picture, 50).shape == (20, 50, 3)
    assert (shrunk(picture, 50) == 7).all()
    assert shrunk(picture, 100) is picture


def test_pictures_of_any_sizes_stand_below_each_other():
    both = stacked([np.zeros((2, 3, 3), np.uint8), np.ones((1, 5, 3), np.uint8)], gap=1)
    assert both[..., 0].tolist() == [[0, 0, 0, 255, 255], [0, 0, 0, 255, 255], [255] * 5, [1] * 5]
