"""mmsegmentation's IoUMetric of label maps in two folders. Runs in the environment of `make parity`, without
the project:

    python -P iou_metric.py PREDICTIONS LABELS CLASSES IGNORED

Prints JSON: the IoU of each class, None without one, and the metric's own summary in percent. -P: or the file
mmseg.py beside this one is imported for the package.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric
from PIL import Image


def read(path):
    return {"data": torch.from_numpy(np.array(Image.open(path)))}


def main():
    predictions, labels, classes, ignored = sys.argv[1:]
    MMLogger.get_instance("scores", log_level="ERROR")  # or it prints a table
    metric = IoUMetric(ignore_index=int(ignored))
    metric.dataset_meta = {"classes": [str(i) for i in range(int(classes))]}
    for path in sorted(Path(labels).iterdir()):
        sample = {"pred_sem_seg": read(Path(predictions) / path.name), "gt_sem_seg": read(path)}
        metric.process({}, [sample])
    summary = metric.compute_metrics(metric.results)
    areas = (sum(each) for each in zip(*metric.results, strict=True))
    iou = metric.total_area_to_metrics(*areas)["IoU"].tolist()
    plain = {name: float(value) for name, value in summary.items()}
    print(json.dumps({"iou": [None if value != value else value for value in iou], **plain}))


if __name__ == "__main__":
    main()
