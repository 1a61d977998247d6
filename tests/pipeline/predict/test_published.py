"""Published weights by name: the table, and what a name or an address is turned into."""

import re

import pytest

from fullres.models.catalogue import check
from fullres.models.weights import WeightsError
from fullres.pipeline.data import fetch as fetching
from fullres.pipeline.data.fetch import FetchError, place_of
from fullres.pipeline.datasets import DATASETS
from fullres.pipeline.predict.published import is_remote, local_weights, published

NAME = "mmseg:pspnet_r101-d8_512x1024_80k_cityscapes"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLRES_CACHE", str(tmp_path))


def put(address, content=b"weights"):
    place = place_of(address)
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    return place


def test_each_is_of_a_network_and_a_data_set_of_the_project():
    for row in published().values():
        check(row.model, row.like)
        assert row.dataset in DATASETS
        assert 20 < row.miou < 90
        assert row.address.startswith("https://")
        assert re.fullmatch(r"([0-9a-f]{8})?", row.sha256)
        assert row.sha256 in row.address
        assert row.by_hand == row.name.startswith(("nvidia:", "ccnet:"))
        if not row.by_hand:
            assert row.name.split(":")[1] in row.address
    assert len({row.place for row in published().values()}) == len(published())


def test_each_is_of_the_network_that_its_file_is_named_for():
    for row in published().values():
        if row.name.startswith("mmseg:"):
            found = re.search(r"_(?:r|hr)(50|101|18|48)(?:-d8)?_|_(m-v2)-d8_", row.name)
            depth = found[1] or "mobilenet"
            assert re.search(r"(50|101|18|48|mobilenet)$", row.model)[1] == depth
            assert row.like == ("mmseg-aligned" if "_769x769_" in row.name else "mmseg")
    others = {row.name: (row.model, row.like) for row in published().values() if row.like is None}
    others |= {row.name: (row.model, row.like) for row in published().values() if row.like == "ccnet"}
    assert others == {
        "hrnet:hrnet_ocr_cs_8162_torch11": ("ocrnet48", None),
        "hrnet:hrnet_ocr_ade20k_4451_torch04": ("ocrnet48", None),
        "nvidia:cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle": ("hmsa48x3", None),
        "ccnet:r2": ("ccnet101", "ccnet"),
        "ccnet:r2_ohem": ("ccnet101", "ccnet"),
    }


def test_what_browsers_alone_can_have_is_put_there_by_hand(tmp_path):
    with pytest.raises(WeightsError) as caught:
        local_weights("ccnet:r2")
    assert str(caught.value) == (
        "weights ccnet:r2: their publisher has them behind a page for browsers: save the file of "
        "https://drive.google.com/open?id=1IxXm8qxKmfDPVRtT8uuDNEvSQsNVTfLC as "
        f"{tmp_path}/by-hand/ccnet-r2.pth"
    )
    place = tmp_path / "by-hand" / "ccnet-r2.pth"
    place.parent.mkdir()
    place.write_bytes(b"weights")
    assert local_weights("ccnet:r2") == (place, published()["ccnet:r2"])


def test_a_name_of_the_table_is_its_file():
    row = published()[NAME]
    assert (row.model, row.dataset, row.miou) == ("pspnet101", "cityscapes", 79.76)
    put(row.address, b"another")
    with pytest.raises(FetchError, match=f"not {row.sha256}...: remove it"):
        local_weights(NAME)


def test_addresses(monkeypatch):
    place = put("https://example.org/a/b.pth?x=1")
    assert local_weights("https://example.org/a/b.pth?x=1") == (place, None)
    assert place.name == "b.pth"
    place = put("https://huggingface.co/owner/repo/resolve/main/folder/b.safetensors")
    assert local_weights("hf://owner/repo/folder/b.safetensors") == (place, None)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org/")
    place = put("https://mirror.example.org/owner/repo/resolve/v1/b.safetensors")
    assert local_weights("hf://owner/repo@v1/b.safetensors") == (place, None)


@pytest.mark.parametrize("path", ["a.pth", "folder/a.pth", "/a.pth", "c:/a.pth", "mmseg/a.pth", "./mmseg:a"])
def test_paths_are_as_they_are(path):
    assert not is_remote(path)
    assert str(local_weights(path)[0]) == path.removeprefix("./")


def test_a_name_that_is_not_there_is_told_with_near_ones():
    with pytest.raises(WeightsError, match=rf"^weights {NAME[:-1]}: not in the table; near ones: {NAME}, "):
        local_weights(NAME[:-1])
    for wrong in ("hf://owner", "hf://owner/repo", "hf://owner//file"):
        with pytest.raises(WeightsError, match=f"^weights {wrong}: hf://owner/repository/file$"):
            local_weights(wrong)


def test_offline_it_says_where_the_file_may_be_put(monkeypatch):
    monkeypatch.setattr(fetching, "_PAUSE", 0.0)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"the proxy cannot be reached; the file may be put at /.*\.pth$"):
        local_weights(NAME)
