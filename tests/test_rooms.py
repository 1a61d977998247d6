"""The contract between the rooms, as pyproject.toml writes it down."""

import os
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_a_room_imports_only_from_the_rooms_to_its_left():
    root = Path(__file__).parents[1]
    here = Path.cwd()
    os.chdir(root)
    try:
        assert (
            lint_imports(config_filename=str(root / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS
        )
    finally:
        os.chdir(here)
