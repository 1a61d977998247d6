import json

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app


@pytest.mark.slow
def test_steps_of_more_and_more_parts(tmp_path):
    small = ["--width", "0.0625", "--crop", "64", "--steps", "4", "--json"]
    result = CliRunner().invoke(app, ["bench", "pipeline", *small, str(tmp_path / "rows.json")])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["parts"] for row in rows] == [2, 4, 8]
    assert [row["(P - 1) / (m + P - 1)"] for row in rows] == [1 / 3, 1 / 5, 1 / 9]
    assert all(row["stages, images/s"] > 0 for row in rows)
