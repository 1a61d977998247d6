"""A page for people: image, truth and predictions side by side, with the table of scores.

`write_report` leaves a folder that can be copied anywhere: `index.html` and the pictures that it shows.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import jinja2
import numpy as np

from fullres.ops import metrics
from fullres.pipeline.data.files import write_bytes_atomically
from fullres.pipeline.data.images import list_images, read_image, read_labels, write_png
from fullres.pipeline.data.pictures import colour, shrunk
from fullres.pipeline.datasets import Dataset
from fullres.pipeline.datasets.pairs import pair_with_labels
from fullres.pipeline.review.evaluate import Evaluation, evaluate, match

THUMBNAIL = 960  # pixels along the longer side
CROP = (112, 224)  # (h, w) of the part shown enlarged
_RIGHT, _BETTER, _WORSE, _BOTH = (255, 255, 255), (26, 152, 80), (215, 48, 39), (150, 150, 150)
# What `predict --save points` leaves beside class ids.
_POINTS = {"grid": "where it was sampled", "sampled": "what was sampled", "points": "classes at the points"}
THIN = 7  # pixels: what is no wider, and the outline of what is


@dataclass(frozen=True)
class Prediction:
    """A folder that `fullres predict` wrote, and what to call it."""

    name: str
    folder: Path


@dataclass(frozen=True)
class _Cell:
    text: str
    best: bool
    difference: str  # to the first prediction, with its sign; empty for the first


@dataclass(frozen=True)
class _Panel:
    """One of the pictures of a frame: addresses relative to the page."""

    title: str
    note: str
    full: str
    thumbnail: str
    crop: str | None


def write_report(
    images: Path,
    labels: Path,
    known: Dataset,
    predictions: Sequence[Prediction],
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Evaluation]:
    """Write `out/index.html` and its pictures; returns the score of each prediction, in their order.

    Every image needs a label file and a class-id file in each prediction's folder, matched by relative path
    and name. The page is written last. `progress(frames done, frames in all)`.

    Raises FilesError or ImageError for what is missing or can't be read or compared.
    """
    evaluations = [evaluate(p.folder, labels, known) for p in predictions]
    label_to_prediction = [
        {label: path for path, label in match(p.folder, labels, known)} for p in predictions
    ]
    pairs = pair_with_labels(list_images([images]), labels, known, "image")
    frames = []
    for i, (image_path, label_path) in enumerate(pairs):
        found = [
            (p.name, files[label_path]) for p, files in zip(predictions, label_to_prediction, strict=True)
        ]
        name = (
            image_path.relative_to(images).with_suffix("").as_posix() if images.is_dir() else image_path.stem
        )
        frames.append((name, _frame(name, image_path, label_path, found, known, out)))
        progress(i + 1, len(pairs))
    template = (Path(__file__).parent / "report.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(template).render(
        dataset=known.name,
        names=[p.name for p in predictions],
        totals=_totals(evaluations),
        classes=_classes(evaluations, known),
        runs=_runs(predictions),
        frames=frames,
    )
    write_bytes_atomically(out / "index.html", page.encode(errors="backslashreplace"))
    return evaluations


def busiest_crop(labels: np.ndarray, ids: Sequence[int], size: tuple[int, int]) -> tuple[int, int]:
    """Where the crop of `size` lies that shows most of small and thin things: (top, left).

    Counts the pixels of the classes `ids` in `labels` (H x W uint8) that lie at most `THIN` / 2 pixels from
    another class: all of a pole, the outline of a near bus. Crops stay inside where they fit.
    """
    mask = np.isin(labels, np.asarray(ids, np.uint8)).astype(np.uint8)
    inside = cv2.erode(mask, np.ones((THIN, THIN), np.uint8), borderValue=1)
    sums = cv2.integral(mask - inside)  # (H + 1) x (W + 1)
    h, w = (min(c, n) for c, n in zip(size, labels.shape, strict=True))
    counts = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    top, left = np.unravel_index(counts.argmax(), counts.shape)
    return int(top), int(left)


def compared_errors(labels: np.ndarray, before: np.ndarray, truth: np.ndarray, ignored: int) -> np.ndarray:
    """Errors of one prediction beside another's, label maps of H x W uint8, as a picture: green where only
    `before` is wrong, red where only `labels` is, grey where both are, white elsewhere."""
    wrong, was = ((found != truth) & (truth != ignored) for found in (labels, before))
    table = np.array([_RIGHT, _BETTER, _WORSE, _BOTH], np.uint8)
    return table[2 * wrong + was]


def _frame(
    name: str, image_path: Path, label_path: Path, found: list[tuple[str, Path]], known: Dataset, out: Path
) -> list[_Panel]:
    """Write a frame's pictures."""
    image, truth = read_image(image_path), known.read(label_path)
    top, left = busiest_crop(truth, known.small_thin_ids, CROP)
    window = np.s_[top : top + CROP[0], left : left + CROP[1]]

    def panel(title: str, note: str, picture: np.ndarray, kind: str) -> _Panel:
        pictures = {"": picture, "_small": shrunk(picture, THUMBNAIL)}
        if picture.shape[:2] == truth.shape:
            pictures["_crop"] = picture[window]
        files = {size: f"pictures/{name}/{kind}{size}.png" for size in pictures}
        for size, file in files.items():
            write_png(out / file, pictures[size])
        links = {size: quote(os.fsencode(file)) for size, file in files.items()}
        return _Panel(title, note, links[""], links["_small"], links.get("_crop"))

    height, width = truth.shape
    panels = [
        panel("image", f"{width} x {height}", image, "image"),
        panel("truth", "labels", colour(truth, known.palette), "truth"),
    ]
    first = read_labels(found[0][1]) if found else truth
    for i, (title, path) in enumerate(found):
        labels = read_labels(path)
        confusion = metrics.confusion_matrix(labels, truth, len(known.classes), known.ignore_index)
        note = f"mean IoU here {_percent(metrics.mean_score(metrics.class_iou(confusion)))}"
        panels.append(panel(title, note, colour(labels, known.palette), f"prediction{i + 1}"))
        if i:
            errors = compared_errors(labels, first, truth, known.ignore_index)
            panels.append(panel(title, f"errors beside {found[0][0]}'s", errors, f"errors{i + 1}"))
        for kind, said in _POINTS.items():
            picture = path.with_name(f"{path.stem}_{kind}.png")
            if picture.exists():
                panels.append(panel(title, said, read_image(picture), f"{kind}{i + 1}"))
    return panels


def _totals(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[_Cell]]]:
    return [
        ("mean IoU", _cells([e.mean_iou for e in evaluations])),
        ("small and thin", _cells([e.small_thin_iou for e in evaluations])),
        ("pixel accuracy", _cells([e.pixel_accuracy for e in evaluations])),
    ]


def _classes(evaluations: Sequence[Evaluation], known: Dataset) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*known.palette[i]),
            "small_thin": name in known.small_thin,
            "cells": _cells([float(e.class_iou[i]) for e in evaluations]),
        }
        for i, name in enumerate(known.classes)
    ]


def _cells(scores: Sequence[float]) -> list[_Cell]:
    shown = [_percent(score) for score in scores]
    present = [score for score in scores if score == score]
    best = _percent(max(present)) if present and len(scores) > 1 else None
    cells = []
    for i, (score, text) in enumerate(zip(scores, shown, strict=True)):
        known = i > 0 and score == score and scores[0] == scores[0]
        cells.append(_Cell(text, text == best, f"{100 * (score - scores[0]):+.1f}" if known else ""))
    return cells


def _percent(score: float) -> str:
    return "–" if score != score else f"{100 * score:.1f}"  # nan: nothing of this class


def _runs(predictions: Sequence[Prediction]) -> list[tuple[str, list[str]]]:
    """Rows of what was run: a name, and a value for each prediction."""
    runs = [_run(p) for p in predictions]
    return [(name, [run[name] for run in runs]) for name in runs[0]] if runs else []


def _run(prediction: Prediction) -> dict[str, str]:
    """What the folder's summary.json says of how it was made; "–" where it says nothing."""
    row = dict.fromkeys(
        (
            "model",
            "parameters",
            "points",
            "GFLOP an image",
            "precision",
            "images",
            "seconds",
            "workers",
            "workers busy",
        ),
        "–",
    )
    try:
        summary = json.loads((prediction.folder / "summary.json").read_text())
    except (OSError, ValueError):
        return row
    settings, workers = summary.get("settings", {}), summary.get("workers", [])
    row |= {key: str(settings[key]) for key in ("model", "precision") if key in settings}
    if "parameters" in summary:
        row["parameters"] = f"{summary['parameters']:,}"
    if "sampling" in settings:
        down, across = settings["sampling"]["size"]
        row["points"] = f"{across}x{down}, {'adaptive' if settings['sampling']['downsampler'] else 'uniform'}"
    if "images" in summary:
        done = summary["images"].get("done", "–")
        row["images"] = str(done)
        if done and "tera_operations" in summary:
            row["GFLOP an image"] = f"{1000 * summary['tera_operations'] / done:,.2f}"
    if "wall_seconds" in summary:
        row["seconds"] = f"{summary['wall_seconds']:.1f}"
    if workers:
        row["workers"] = f"{len(workers)} ({', '.join(sorted({str(w.get('device')) for w in workers}))})"
        row["workers busy"] = f"{sum(w.get('busy_share', 0.0) for w in workers) / len(workers):.0%}"
    return row
