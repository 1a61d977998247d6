"""Writes `pipeline/predict/published.csv` anew from the publishers' own tables.

    python tests/peers/list_published.py FOLDER

FOLDER: `mmseg/.mim/configs` of an installed mmsegmentation 1.2.2, whose metafiles have data set, mIoU of a
single scale and address of each checkpoint; the name of the file ends with the start of its SHA-256. Needs
PyYAML. What other publishers list is copied by hand: the HRNet authors' and the CCNet authors' from the
tables in their readmes, NVIDIA's from theirs, which names a folder for the file whose score it gives.
"""

import csv
import re
import sys
from pathlib import Path

import yaml

FIELDS = ("name", "model", "like", "dataset", "miou", "sha256", "address")
FAMILIES = {
    "pspnet": "pspnet", "fcn": "dilatedfcn", "upernet": "upernet", "ann": "ann", "dmnet": "dmnet",
    "ccnet": "ccnet", "deeplabv3plus": "deeplabv3plus",
}  # fmt: skip
DATASETS = {
    "cityscapes": "cityscapes", "ade20k": "ade20k", "voc12aug": "voc2012", "pascal-context": "context60",
    "pascal-context-59": "context59",
}  # fmt: skip
HRNET = "https://github.com/hsfzxjy/models.storage/releases/download/HRNet-OCR/"
DRIVE = "https://drive.google.com/"
# Those whose mIoU is of the validation images and of one scale, or of the network's own scales. HRNetV2's
# settings differ from file to file. Of CCNet those that attend twice, which files do not say.
BY_HAND = [
    ("hrnet:hrnet_ocr_cs_8162_torch11", "ocrnet48", "", "cityscapes", 81.6,
     f"{HRNET}hrnet_ocr_cs_8162_torch11.pth"),
    ("hrnet:hrnet_ocr_ade20k_4451_torch04", "ocrnet48", "", "ade20k", 44.5,
     f"{HRNET}hrnet_ocr_ade20k_4451_torch04.pth"),
    ("nvidia:cityscapes_ocrnet.HRNet_Mscale_outstanding-turtle", "hmsa48x3", "", "cityscapes", 86.92,
     f"{DRIVE}open?id=1fs-uLzXvmsISbS635eRZCc5uzQdBIZ_U"),
    ("ccnet:r2", "ccnet101", "ccnet", "cityscapes", 79.74,
     f"{DRIVE}open?id=1IxXm8qxKmfDPVRtT8uuDNEvSQsNVTfLC"),
    ("ccnet:r2_ohem", "ccnet101", "ccnet", "cityscapes", 80.00,
     f"{DRIVE}open?id=1eiX1Xf1o16DvQc3lkFRi4-Dk7IBVspUQ"),
]  # fmt: skip


def model_of(folder: str, name: str) -> str | None:
    """The network of the catalogue; None for one that it has not, as ResNets with another stem (r50b)."""
    if folder in FAMILIES and (found := re.match(rf"{folder}_r(50|101)(-d8)?_", name)):
        return FAMILIES[folder] + found[1]
    if found := re.match(r"(fcn|ocrnet)_hr(18|48)_", name):
        return {"fcn": "hrnet", "ocrnet": "ocrnet"}[found[1]] + found[2]
    return "deeplabv3plus-mobilenet" if name.startswith("deeplabv3plus_m-v2-d8_") else None


def rows_of(configs: Path) -> list[tuple[object, ...]]:
    rows = []
    for folder in (*FAMILIES, "hrnet", "ocrnet", "mobilenet_v2"):
        for entry in yaml.safe_load((configs / folder / "metafile.yaml").read_text())["Models"]:
            found = re.search(r"_([a-z0-9]+(?:-[a-z]+)?(?:-59)?)-\d+x\d+$", entry["Name"])
            if found is None or found[1] not in DATASETS or "Weights" not in entry:
                continue
            address = entry["Weights"]
            # The file's name: the entry of two ResNet-101 says ResNet-50.
            name, digest = re.fullmatch(r".*/(.+)[_-]\d{8}_\d{6}-([0-9a-f]{8})\.pth", address).groups()
            if (model := model_of(folder, name)) is None:
                continue
            miou = entry["Results"]["Metrics"]["mIoU"]
            like = "mmseg-aligned" if entry["Name"].endswith("-769x769") else "mmseg"
            rows.append((f"mmseg:{name}", model, like, DATASETS[found[1]], miou, digest, address))
    return rows


def main() -> None:
    rows = sorted(rows_of(Path(sys.argv[1])), key=lambda row: (row[1], row[3], row[0]))
    table = Path(__file__).parents[2] / "pipeline/predict/published.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([FIELDS, *rows])
        writer.writerows([*row[:5], "", row[5]] for row in BY_HAND)


if __name__ == "__main__":
    main()
