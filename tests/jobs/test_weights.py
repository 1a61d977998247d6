"""`fullres weights` lists what is known by name."""

import json

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.fetch import place_of
from fullres.pipeline.predict.published import published

NAME = "mmseg:pspnet_r101-d8_512x1024_80k_cityscapes"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FULLRES_CACHE", str(tmp_path))


def run(*arguments):
    return CliRunner().invoke(app, ["weights", *arguments])


def test_all_are_listed_with_what_was_published():
    lines = [line.split() for line in run().stdout.splitlines()]
    assert [line[0] for line in lines[1:]] == list(published())
    assert [NAME, "pspnet101", "cityscapes", "79.76"] in lines


def test_those_of_a_network_or_a_data_set():
    rows = json.loads(run("--dataset", "ade20k", "--model", "upernet50", "--json").stdout)
    assert {(row["dataset"], row["model"]) for row in rows} == {("ade20k", "upernet50")}
    assert all(row["address"].startswith("https://") for row in rows)
    assert run("--dataset", "camvid").stdout.splitlines()[-1] == "none is known"


def test_those_that_were_fetched_are_marked():
    place = place_of(published()[NAME].address)
    place.parent.mkdir(parents=True)
    place.touch()
    marked = [line.split()[0] for line in run().stdout.splitlines() if line.rstrip().endswith(" here")]
    by_hand = [line.split()[0] for line in run().stdout.splitlines() if line.rstrip().endswith(" by hand")]
    assert marked == [NAME]
    assert by_hand == [row.name for row in published().values() if row.by_hand]


@pytest.mark.parametrize(
    ("option", "said"),
    [("--model", "model is 'boat': one of "), ("--dataset", "no data set 'boat'; there are ")],
)
def test_mistakes_are_one_line(option, said):
    result = run(option, "boat")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
