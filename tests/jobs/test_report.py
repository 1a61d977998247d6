import numpy as np
import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.images import write_png


@pytest.fixture
def run(tmp_path):
    write_png(tmp_path / "images/a.png", np.zeros((20, 30, 3), np.uint8))
    for folder in ("labels", "one", "two"):
        write_png(tmp_path / folder / "a.png", np.zeros((20, 30), np.uint8))

    def invoke(*predictions, dataset="scenes"):
        arguments = ["--images", tmp_path / "images", "--labels", tmp_path / "labels", "--dataset", dataset]
        for prediction in predictions:
            arguments += ["--pred", prediction]
        return CliRunner().invoke(app, ["report", *map(str, arguments), "--out", str(tmp_path / "out")])

    return invoke


def test_prints_scores_and_the_page(run, tmp_path):
    result = run(f"One={tmp_path / 'one'}", f"Two={tmp_path / 'two'}")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out/index.html")
    assert any(line.split("│")[1:3] == [" Two ", "    100.0 "] for line in result.stdout.splitlines())
    assert (tmp_path / "out/index.html").exists()


@pytest.mark.parametrize(
    ("predictions", "dataset", "message"),
    [
        (["one"], "scenes", "--pred is 'one': write NAME=DIR"),
        (["A=x", "A=y"], "scenes", "--pred: two predictions of one name"),
        (["A=x"], "kitti", "--dataset: no data set 'kitti'; there are cityscapes"),
        (["A=nowhere"], "scenes", "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_clear_error(run, tmp_path, predictions, dataset, message):
    result = run(*predictions, dataset=dataset)
    assert result.exit_code == 2
    assert result.stderr.strip().startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()
