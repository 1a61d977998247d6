import json

import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app


def run(job, *arguments):
    return CliRunner().invoke(app, ["bench", job, *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nosuch"], "error: --model is 'nosuch': one of smp18, smp34,"),
        (["--model", "pspnet50"], "error: --model is 'pspnet50': one of smp18, smp34,"),
        (["--model", "smp34"], "error: --width: no weights come with smp34;"),
        (["--width", 0], "--width"),
        (["--precision", "fp17"], "--precision"),
        (["--height", 0], "--height"),
        (["--memory-budget", "much"], "'much' is no amount of memory"),
    ],
)
@pytest.mark.parametrize("job", ["smp", "scaling"])
def test_what_cannot_be_measured_is_one_clear_error(job, arguments, said):
    result = run(job, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "round" not in result.stderr


@pytest.mark.parametrize("workers", ["0", "1,,2", "two", "-1"])
def test_numbers_of_workers(workers):
    result = run("scaling", "--workers", workers)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: --workers is '{workers}': whole numbers from 1")


def test_an_image_that_is_not_there():
    result = run("smp", "--image", "nosuch.png")
    assert result.exit_code == 2
    assert result.stderr == "error: nosuch.png: no such file or directory\n"


def test_compares_on_a_small_scene(tmp_path):
    out = tmp_path / "figures.json"
    result = run(
        "smp",
        "--width",
        0.0625,
        "--height",
        64,
        "--scene-width",
        96,
        "--rounds",
        1,
        "--no-peers",
        "--json",
        out,
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())["rows"]
    assert list(rows) == ["split-merge", "bare convolutions (floor)"]
    assert all(row["seconds"] > 0 for row in rows.values())
