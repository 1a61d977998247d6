"""The weights that come with the project are what their places say, and are found by network and data set."""

import pytest

from fullres.models.weights import WeightsError, load_network, shipped_weights
from fullres.pipeline.datasets import dataset
from fullres.pipeline.predict.shipped import needed_weights, shipped_for


@pytest.mark.parametrize(("trained_on", "model"), shipped_weights())
def test_files_are_what_their_places_say(trained_on, model):
    path = shipped_weights()[trained_on, model]
    info = load_network(model, path)[1]
    assert (info.model, info.dataset) == (model, trained_on)
    assert info.num_classes == len(dataset(trained_on).classes)
    assert path.stat().st_size < 4_000_000


@pytest.mark.parametrize("model", ["smp18", "fcn32s18", "fcn8s18"])
def test_the_drawn_scenes_where_nothing_else_is_asked_for(model):
    scenes = shipped_weights()["scenes", model]
    assert {shipped_for(model, name) for name in (None, "scenes", "cityscapes", "gta5", "folder")} == {scenes}


def test_photographs_by_camvids_classes():
    assert needed_weights("smp18", "camvid") == shipped_weights()["camvid", "smp18"]


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("smp101", None, r"^no weights come with smp101, name a file \(there are some of .*smp18 for"),
        ("fcn8s18", "camvid", r"^no weights come with fcn8s18 for camvid, name a file .*fcn8s18 for scenes"),
        ("smp18", "ade20k", r"^no weights come with smp18 for ade20k, name a file"),
    ],
)
def test_pairs_without_weights(model, name, message):
    assert shipped_for(model, name) is None
    with pytest.raises(WeightsError, match=message):
        needed_weights(model, name)
