"""Who writes into a training's folder."""

import json

import pytest
import torch

from fullres.pipeline.data.storage import Storage
from fullres.pipeline.train.config import TrainingConfig
from fullres.pipeline.train.loop import fit
from fullres.pipeline.train.ownership import OwnFolder, Superseded
from tests.cluster.trainings import write_root


def test_the_last_who_claims_a_folder_writes_there(tmp_path):
    first = OwnFolder(str(tmp_path), "training")
    first.write("lines", b"a\n")
    first.append("lines", b"b\n")
    second = OwnFolder(str(tmp_path), "training")

    for write in (lambda: first.write("lines", b""), lambda: first.append("lines", b"c\n")):
        with pytest.raises(RuntimeError, match="others go on with this training"):
            write()
    with pytest.raises(RuntimeError, match="others go on with this training"):
        first.remove("lines")
    assert Storage(str(tmp_path)).names() == ["lines"]
    assert first.read("lines") == b"a\nb\n"
    second.remove("lines")
    assert not first.exists("lines")


def test_a_file_that_is_being_written_when_others_claim_the_folder_does_not_appear(tmp_path):
    folder = OwnFolder(str(tmp_path), "training")
    with pytest.raises(RuntimeError), folder.create("file") as file:  # noqa: PT012
        file.write(b"half")
        OwnFolder(str(tmp_path), "training")
    assert Storage(str(tmp_path)).names() == []


def test_a_second_training_in_the_same_folder_ends_the_first(tmp_path):
    root, out = write_root(tmp_path / "root"), tmp_path / "out"
    config = TrainingConfig(
        model={"name": "fcn8s18", "width": 0.0625}, steps=4, batch_size=2, crop=(64, 64), report_every=1,
        data={"dataset": "folder", "classes": 19, "root": str(root), "workers": 0}, out=str(out),
    )  # fmt: skip
    device = torch.device("cpu")

    def begin_another(report):
        if report.step == 2:
            fit(config, device)

    with pytest.raises(Superseded, match="another training has begun in this folder"):
        fit(config, device, begin_another)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
