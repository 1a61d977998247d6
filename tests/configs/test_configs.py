"""The configurations that come with the project: possible, and with the values that the papers print."""

from functools import cache
from pathlib import Path

import pytest
import torch

from fullres.jobs.train import read_config
from fullres.models.catalogue import CATALOGUE
from fullres.pipeline.train.network import initial_network
from fullres.pipeline.train.objectives import SegmentationLoss

CONFIGS = Path(__file__).parents[2] / "configs"
BASES = sorted(path for path in CONFIGS.rglob("*.toml") if path.name == "base.toml")
FILES = sorted(path for path in CONFIGS.rglob("*.toml") if path.name != "base.toml")


def named(path):
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def read(name):
    return read_config(CONFIGS / f"{name}.toml", [])


@cache
def objective_of(model, classes):
    """Without the files that it starts from."""
    with torch.device("meta"):
        return SegmentationLoss(initial_network(model, classes))


@pytest.mark.parametrize("name", [named(path) for path in FILES])
def test_the_network_and_its_objective_can_be_made(name):
    config = read(name)
    model = config.model.model_copy(update={"weights": None, "backbone_weights": None})
    objective = objective_of(model, len(config.data.known().classes))
    assert objective.network.training
    assert objective.loss == config.model.loss
    heads = getattr(objective.network, "auxiliary", None)
    assert heads is not None or config.model.auxiliary != "class_probability"


def test_no_two_trainings_meet():
    outs = [read(named(path)).out for path in FILES]
    assert len(set(outs)) == len(outs)


@pytest.mark.parametrize("path", BASES, ids=named)
def test_every_base_says_what_it_is_and_is_used(path):
    assert path.read_text().startswith("# ")
    assert any('base = "base.toml"' in file.read_text() for file in path.parent.glob("*.toml"))


@pytest.mark.parametrize("folder", ["smp", "pspnet", "spgnet", "cpp", "seethroughnet"])
def test_every_training_of_a_paper_says_which_it_is(folder):
    """With the section or table, and the score that it prints, or that there is none."""
    for path in FILES:
        if path.is_relative_to(CONFIGS / folder):
            comment = " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
            assert "mean IoU" in comment or "80.2 in the abstract" in comment or "no score" in comment, path


# By file, what the papers print for it; "model.name" and so on of the sections.
SMP = {
    "batch_size": 10,
    "crop": (512, 512),
    "optimizer": "adam",
    "learning_rate": 1e-5,
    "weight_decay": 5e-4,
    "phases": (1, 1, 1, 1),
    "augmentation.mirror": True,
    "augmentation.scale": (1, 1),
}
PSPNET = {
    "batch_size": 16,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "schedule": "poly",
    "augmentation.scale": (0.5, 2),
    "augmentation.mirror": True,
    "model.auxiliary": "cross_entropy",
}
SPGNET = {
    "batch_size": 8,
    "steps": 80_000,
    "crop": (769, 769),
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "schedule": "poly",
    "augmentation.scale": (0.5, 2),
    "augmentation.scale_step": 0.25,
    "augmentation.mirror": True,
    "data.split": "train",
}
SMALLER = {"batch_size": 28, "steps": 30_000, "crop": (513, 513), "schedule": "poly"}
FOUR = (0, 1, 2, 3)
PRINTED = {
    "smp/cityscapes-smp34": SMP | {"model.name": "smp34", "data.dataset": "cityscapes"},
    "smp/cityscapes-fcn8s101": SMP | {"model.name": "fcn8s101", "loss_stride": 1},
    "smp/gta5-fcn32s18": SMP | {"model.name": "fcn32s18", "data.dataset": "gta5"},
    "pspnet/ade20k-269": PSPNET
    | {"steps": 150_000, "augmentation.rotation": 10, "data.dataset": "ade20k", "model.name": "pspnet269"},
    "pspnet/ade20k-dilatedfcn50-no-auxiliary": PSPNET
    | {"model.auxiliary": "none", "augmentation.rotation": 10},
    "pspnet/ade20k-dilatedfcn50-no-augmentation": PSPNET
    | {
        "model.auxiliary": "none",
        "augmentation.scale": (1, 1),
        "augmentation.rotation": 0,
        "augmentation.mirror": False,
        "augmentation.blur": None,
    },
    "pspnet/voc-101": PSPNET | {"steps": 30_000, "data.split": "trainaug", "augmentation.rotation": 10},
    # The crop is of the authors' code; rotation and blur are for the two others.
    "pspnet/cityscapes-101": PSPNET
    | {"steps": 90_000, "crop": (713, 713), "augmentation.rotation": 0, "augmentation.blur": None},
    "spgnet/cityscapes-18": SPGNET | {"model.name": "spgnet18", "model.loss": "cross_entropy"},
    "spgnet/cityscapes-18x2-softmax": SPGNET | {"model.loss": "cross_entropy"},
    "spgnet/cityscapes-50x2": SPGNET | {"model.name": "spgnet50x2", "model.loss": "ohem"},
    "spgnet/cityscapes-50x2-no-ohem": SPGNET | {"model.name": "spgnet50x2", "model.loss": "cross_entropy"},
    "spgnet/cityscapes-101x2-d256": SPGNET | {"model.name": "spgnet101x2-d256", "model.loss": "ohem"},
    "spgnet/voc-50x2": SMALLER | {"data.dataset": "voc2012"},
    "spgnet/person-part-50x2": SMALLER | {"data.dataset": "person-part"},
    "cpp/cityscapes/ocrnet48-baseline": {"model.auxiliary": "cross_entropy", "model.auxiliary_stages": FOUR},
    "cpp/nyu/ann101-cpp": {"model.auxiliary": "class_probability", "data.dataset": "nyu-depth-v2"},
    "seethroughnet/cityscapes": {"model.name": "seethroughnet48", "model.loss": None},
    "seethroughnet/cityscapes-no-rmi": {"model.name": "seethroughnet48", "model.loss": "cross_entropy"},
}


@pytest.mark.parametrize("name", PRINTED)
def test_printed_values(name):
    config = read(name)
    found = {}
    for field in PRINTED[name]:
        *section, last = field.split(".")
        found[field] = getattr(getattr(config, section[0]) if section else config, last)
    assert found == PRINTED[name]


def test_there_is_a_file_for_every_row():
    names = {named(path) for path in FILES}
    seven = ("ocrnet48", "deeplabv3plus101", "upernet101", "dmnet101", "ccnet101", "pspnet101", "ann101")
    assert names >= {
        f"cpp/{data}/{network}-{kind}"
        for data in ("cityscapes", "voc", "context", "nyu")
        for network in seven
        for kind in ("baseline", "cpp")
    }
    families = ("fcn32s", "fcn8s", "smp")
    assert names >= {f"smp/cityscapes-{family}{depth}" for family in families for depth in (34, 101)}
    assert names >= {f"smp/gta5-{family}{depth}" for family in families for depth in (18, 34, 101)}
    assert names >= {f"pspnet/ade20k-{depth}" for depth in (50, 101, 152, 269)}


@pytest.mark.parametrize(("folder", "paper"), [("spgnet", "SPGNet"), ("seethroughnet", "SeeThroughNet")])
def test_every_network_of_the_tables_is_trained(folder, paper):
    trained = {read(named(path)).model.name for path in FILES if path.parent == CONFIGS / folder}
    assert trained >= {entry.name for entry in CATALOGUE.values() if entry.paper == paper}


def test_cityscapes_goes_on_from_mapillary():
    first, second = read("seethroughnet/mapillary"), read("seethroughnet/cityscapes-after-mapillary")
    assert Path(second.model.weights) == Path(first.out, "weights.safetensors")
    assert second.model.name == first.model.name
