import json

import pytest
import torch
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.models.catalogue import CATALOGUE, build


def run(*arguments):
    return CliRunner().invoke(app, ["models", *arguments])


def test_the_list_has_each_in_order(monkeypatch):
    """The smallest of each paper: all take half a minute."""
    some = {next(name for name in CATALOGUE if CATALOGUE[name].paper == e.paper) for e in CATALOGUE.values()}
    some = {name: entry for name, entry in CATALOGUE.items() if name in some}
    monkeypatch.setattr("fullres.jobs.models.CATALOGUE", some)
    rows = json.loads(run("--json", "--size", "97x65").stdout)
    assert [row["model"] for row in rows] == list(some)
    assert all(row["macs"] > 0 and row["parameters"] > 0 for row in rows)


def test_figures(monkeypatch):
    some = {name: CATALOGUE[name] for name in ("smp18", "fcn32s18", "pspnet101", "spgnet18x2")}
    monkeypatch.setattr("fullres.jobs.models.CATALOGUE", some)
    result = run("--json", "--size", "2049x1025")
    assert result.exit_code == 0, result.output
    rows = {row["model"]: row for row in json.loads(result.stdout)}
    assert rows["pspnet101"]["parameters"] == 65_707_475
    assert rows["pspnet101"]["macs"] == pytest.approx(2117.33e9, rel=1e-4)
    assert rows["spgnet18x2"]["macs"] == pytest.approx(217.97e9, rel=1e-3)
    assert rows["smp18"]["labelled_by"] == "split-merge"
    assert rows["smp18"]["parameters"] == rows["fcn32s18"]["parameters"] == 11_186_259


def test_the_table_has_whole_names_and_figures(monkeypatch):
    some = {name: CATALOGUE[name] for name in ("smp18", "pspnet269", "deeplabv3plus-mobilenet")}
    monkeypatch.setattr("fullres.jobs.models.CATALOGUE", some)
    result = run("--size", "64x64")
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.split()}
    assert lines.keys() >= some.keys()
    assert lines["smp18"].split()[-2] == "45.8"
    assert lines["pspnet269"].split()[-3:-1] == ["123.23M", "7.81"]
    assert "…" not in result.stdout


def test_a_size_that_is_none():
    result = run("--size", "64")
    assert result.exit_code == 2
    assert "--size is '64': width x height" in result.stderr


@pytest.mark.parametrize("name", [e.name for e in CATALOGUE.values() if e.labelled_by == "windows"])
def test_every_network_labels_an_image_of_odd_size(name):
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = build(name, 5, 1 / 16).eval()(torch.randn(1, 3, 65, 49))
    assert logits.shape == (1, 5, 65, 49)
    assert logits.isfinite().all()
