"""Published weights by name in the commands that are not `predict`, and in Python. The files are in the cache
already: how they come there is tested in tests/pipeline/data/test_fetch.py."""

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import fullres
from fullres.jobs.cli import app
from fullres.models.catalogue import build
from fullres.models.weights import WeightsInfo, load_network, save_weights
from fullres.pipeline.data.fetch import place_of
from fullres.pipeline.data.images import write_png
from fullres.pipeline.predict import published as table
from fullres.pipeline.predict.published import Published
from tests.scenes import render_scene

TRAINED = "https://example.org/trained.safetensors"
FOREIGN = "https://example.org/foreign.pth"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Two networks that one step hardly changes: one of the project's, and one whose file does not say that
    it is interpolated with align_corners."""
    monkeypatch.setenv("FULLRES_CACHE", str(tmp_path / "cache"))
    rows = [
        Published("mmseg:trained", "smp18", None, "scenes", 50.0, "", TRAINED),
        Published("mmseg:foreign", "hrnet18", "hrnet-aligned", "scenes", 50.0, "", FOREIGN),
    ]
    monkeypatch.setattr(table, "published", lambda: {row.name: row for row in rows})
    for row in rows:
        row.place.parent.mkdir(parents=True)
    torch.manual_seed(1)
    save_weights(build("smp18", 19, 1 / 8), rows[0].place, WeightsInfo("smp18", 1 / 8, 19, "scenes"))
    torch.save(build("hrnet18", 19, 1 / 8, "hrnet-aligned").state_dict(), rows[1].place)


@pytest.fixture
def train(tmp_path):
    for seed in (1, 2):
        image, labels = render_scene(seed, 64, 128)
        write_png(tmp_path / f"images/{seed}.png", image)
        write_png(tmp_path / f"labels/{seed}.png", labels)

    def run(model, *options):
        (tmp_path / "config.toml").write_text(
            f'out = "{tmp_path / "run"}"\nsteps = 1\nbatch_size = 2\ncrop = [64, 64]\nlearning_rate = 1e-30\n'
            f'[model]\nwidth = 0.125\n{model}\n[data]\ndataset = "scenes"\n'
            f'images = "{tmp_path}/images"\nlabels = "{tmp_path}/labels"\n'
        )
        return CliRunner().invoke(app, ["train", str(tmp_path / "config.toml"), *options])

    return run


@pytest.mark.parametrize("weights", ["mmseg:trained", TRAINED])
def test_a_training_starts_from_them(weights, cached, train, tmp_path):
    result = train(f'name = "smp18"\nweights = "{weights}"')
    assert result.exit_code == 0, result.output
    own, start = load_file(tmp_path / "run/weights.safetensors"), load_file(place_of(TRAINED))
    stood_still = (torch.allclose(own[name], start[name], 0, 1e-20) for name in own if "running" not in name)
    assert all(stood_still)
    # It goes on and ends without the file.
    place_of(TRAINED).unlink()
    assert train(f'name = "smp18"\nweights = "{weights}"').exit_code == 0


def test_a_training_says_as_whose_network_they_start_it(cached, train, tmp_path):
    result = train('name = "hrnet18"\nweights = "mmseg:foreign"')
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert said.endswith("mmseg:foreign: name = 'hrnet18', like = 'hrnet-aligned' under [model]")
    assert train('name = "hrnet18"\nlike = "hrnet-aligned"\nweights = "mmseg:foreign"').exit_code == 0
    network, info = load_network("hrnet18", tmp_path / "run/weights.safetensors")
    assert info.like == "hrnet-aligned"
    assert network.backbone.align_corners


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("mmseg:traind", "weights mmseg:traind: not in the table; near ones: mmseg:trained"),
        ("hf://a/b", "weights hf://a/b: hf://owner/repository/file"),
    ],
)
@pytest.mark.parametrize("workers", [[], ["--workers", "1"]])
def test_mistakes_end_a_training_before_any_work(weights, said, workers, cached, train, tmp_path):
    result = train(f'name = "smp18"\nweights = "{weights}"', *workers)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_plan_is_of_their_width(cached):
    for weights in ("mmseg:trained", TRAINED):
        result = CliRunner().invoke(app, ["plan", "256x128", "--weights", weights])
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("smp18 (width 0.125, of trained.safetensors) on 256x128 pixels")
    result = CliRunner().invoke(app, ["plan", "256x128", "--weights", "mmseg:foreign"])
    assert result.exit_code == 2
    assert "--model is 'smp18': mmseg:foreign is of hrnet18" in " ".join(result.stderr.split())


def test_python_loads_them(cached):
    for name in ("mmseg:trained", TRAINED):
        start = load_file(place_of(TRAINED))
        own = fullres.load(name).state_dict()
        assert all(torch.equal(own[key], start[key]) for key in start)
    assert fullres.load("mmseg:foreign").backbone.align_corners
    with pytest.raises(fullres.FullresError, match=r"\.pth: they do not say which network they are of$"):
        fullres.load(FOREIGN)
    with pytest.raises(fullres.FullresError, match=r"^weights mmseg:a: not in the table"):
        fullres.load("mmseg:a")
