import numpy as np

from fullres.pipeline.data.pictures import colour, heat, overlay

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
