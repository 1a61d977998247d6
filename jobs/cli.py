"""The `fullres` command: one file a job, put together here.

A job's file, and with it torch or Ray, is imported when its command runs: `fullres --help` knows the commands
by the table below.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

# The first line of what each says of itself.
COMMANDS = {
    "predict": "Label every pixel at full resolution; started again, it does what is left.",
    "plan": (
        "Print the tree that would run: grains, work, memory, bytes, and how well N workers would be used."
    ),
    "evaluate": (
        "Score predictions: IoU of each class, their mean, pixel accuracy, mean of small and thin classes."
    ),
    "report": "Write a page that shows each image, its truth and its predictions, and the table of scores.",
    "explain": (
        "Show where a network finds its evidence for a class (Grad-CAM): a picture for each image and class."
    ),
    "scenes": (
        "Render street scenes with pixel-accurate labels (Cityscapes' 19 classes); goes "
        "on where it was stopped."
    ),
    "train": "Train the network of a configuration file; started again, it goes on from its last checkpoint.",
    "export": (
        "Write a trained network for elsewhere: its weights or its encoder's, a graph for torch or ONNX."
    ),
    "convert": (
        "Write anybody's checkpoint as weights of the project; say what was recognised, left out, assumed."
    ),
    "datasets": "List data sets, show one, or check a folder that should hold one.",
    "models": "List every network: backbone, output stride, parameters, multiply-adds of one image, paper.",
    "weights": "List published weights that are known by name: network, data set, mean IoU as published.",
    "targets": "Training targets for a whole data set, in Parquet.",
    "bench": "Side-by-side measurements, in one run.",
}


class _Jobs(TyperGroup):
    """The commands in the order of the table."""

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if self.listing:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name])
        module = import_module(f"fullres.jobs.{cmd_name}")
        job = getattr(module, "app", None)
        if job is None:
            job = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
            job.command()(getattr(module, cmd_name))
        command = typer.main.get_command(job)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True
        super().format_help(ctx, formatter)
        self.listing = False


app = typer.Typer(
    cls=_Jobs,
    help="Every pixel's class at full resolution, on as many GPUs as a cluster has.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"fullres {version('fullres')}")
        raise typer.Exit


@app.callback()
def fullres(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Every pixel's class at full resolution, on as many GPUs as a cluster has."""


def main() -> None:
    # Names of files need not be UTF-8.
    cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
