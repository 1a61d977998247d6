"""`fullres bench memory`: estimates and measurements agree."""

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app


@pytest.mark.slow
def test_estimates_are_within_a_fifth():
    result = CliRunner().invoke(app, ["bench", "memory", "--crop", "256", "--batch-size", "2"])
    assert result.exit_code == 0, result.output
    rows = [line.rsplit(maxsplit=3) for line in result.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["no workers", "0", "1", "2", "3"]
    for _, _, _, ratio in rows:
        assert 0.8 <= float(ratio) <= 1.2


def test_a_batch_that_workers_cannot_divide_is_refused():
    result = CliRunner().invoke(app, ["bench", "memory", "--batch-size", "3"])
    assert result.exit_code == 2
    assert "batch_size is 3: no multiple of 2 workers" in result.stderr


def test_a_part_that_one_process_cannot_train_on_is_refused():
    asked = ["bench", "memory", "--model", "pspnet50", "--width", "0.25", "--batch-size", "2"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "a worker's part: batch_size is 1" in " ".join(result.stderr.split())
