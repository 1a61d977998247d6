"""The command as a whole: what it lists, and that it imports nothing to do so."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from typer.testing import CliRunner

from fullres.jobs.cli import COMMANDS, app


def test_help_imports_no_job():
    code = (
        "import sys; from fullres.jobs.cli import app; app(['--help'], standalone_mode=False);"
        "print([m for m in ('torch', 'ray', 'numba', 'cv2', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_of_itself_what_the_list_says(name):
    group = typer.main.get_command(app)
    own = group.get_command(None, name).help
    assert " ".join(own.split("\n\n")[0].split()) == COMMANDS[name]
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert f"{name} [OPTIONS]" in result.stdout


def test_an_unknown_command_is_named():
    result = CliRunner().invoke(app, ["lable"])
    assert result.exit_code == 2
    assert "No such command 'lable'" in result.stderr


def test_no_arguments_are_a_call_for_help():
    assert "Usage" in CliRunner().invoke(app, []).output


def test_the_version_is_printed():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"fullres {version('fullres')}\n")
