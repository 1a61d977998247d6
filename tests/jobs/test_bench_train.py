import json

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app


def test_odd_batches_cannot_be_halved():
    result = CliRunner().invoke(app, ["bench", "train", "--batch-size", "3"])
    assert result.exit_code == 2
    assert "batch_size is 3, steps is 40: even numbers" in result.stderr


@pytest.mark.slow
def test_compares_small_trainings(tmp_path):
    small = ["--width", "0.0625", "--crop", "64", "--batch-size", "4", "--steps", "4", "--json"]
    result = CliRunner().invoke(app, ["bench", "train", *small, str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["layout"] for row in rows] == [
        "one process",
        "one worker",
        "two workers",
        "two bare processes",
    ]
    assert all(
        row["images_per_second"] > 0 and 0 <= row["waiting"] < 1 and row["memory"] > 100 for row in rows
    )
