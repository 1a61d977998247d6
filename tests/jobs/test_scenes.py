import numpy as np
import pytest
from typer.testing import CliRunner

from fullres.jobs.cli import app
from fullres.pipeline.data.images import read_image, read_labels
from tests.scenes import render_scene


def run(*arguments):
    return CliRunner().invoke(app, ["scenes", *map(str, arguments)])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes")
    result = run("--out", out, "--count", 2, "--first-seed", 5, "--height", 48, "--width", 80)
    assert result.exit_code == 0, result.output
    return out


def test_writes_images_and_labels_of_the_seeds(rendered):
    for seed in (5, 6):
        image, labels = render_scene(seed, 48, 80)
        np.testing.assert_array_equal(read_image(rendered / f"images/scene_{seed:06}.png"), image)
        np.testing.assert_array_equal(read_labels(rendered / f"labels/scene_{seed:06}.png"), labels)
    assert sum(path.is_file() for path in rendered.rglob("*")) == 4


def test_goes_on_where_it_was_stopped(rendered):
    kept, lost = (rendered / f"{kind}/scene_000005.png" for kind in ("labels", "images"))
    there = rendered / "images/scene_000006.png"
    before, written = lost.read_bytes(), there.stat().st_mtime_ns
    lost.unlink()
    assert (
        run("--out", rendered, "--count", 2, "--first-seed", 5, "--height", 48, "--width", 80).exit_code == 0
    )
    assert lost.read_bytes() == before
    assert kept.exists()
    assert there.stat().st_mtime_ns == written


def test_scenes_of_another_size_are_not_taken_for_these(rendered):
    result = run("--out", rendered, "--count", 1, "--first-seed", 5, "--height", 48, "--width", 96)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        f"error: {rendered}/images/scene_000005.png: 80x48 pixels, not 96x48: remove it or change --out"
    )
    assert "scenes of" not in result.stdout


def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    result = run("--out", tmp_path / "file", "--count", 1, "--height", 16, "--width", 16)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: [Errno 20] Not a directory: ")


def test_a_size_too_small_is_one_clear_error(tmp_path):
    result = run("--out", tmp_path / "out", "--height", 15)
    assert result.exit_code == 2
    assert "--height" in result.stderr
    assert not (tmp_path / "out").exists()
