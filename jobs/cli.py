"""The `fullres` command: one file a job, put together here."""

import typer

from fullres.jobs import bench, targets
from fullres.jobs.datasets import datasets
from fullres.jobs.evaluate import evaluate
from fullres.jobs.explain import explain
from fullres.jobs.models import models
from fullres.jobs.plan import plan
from fullres.jobs.predict import predict
from fullres.jobs.report import report
from fullres.jobs.scenes import scenes
from fullres.jobs.train import train

app = typer.Typer(
    help="Every pixel's class at full resolution, on as many GPUs as a cluster has.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(predict)
app.command()(plan)
app.command()(evaluate)
app.command()(report)
app.command()(explain)
app.command()(scenes)
app.command()(train)
app.command()(datasets)
app.command()(models)
app.add_typer(targets.app, name="targets")
app.add_typer(bench.app, name="bench")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
