"""What stands under the names of a run folder: each a file or a folder, as a training makes them, or nothing.

A command that opens a run checks that first. What else may stand there (a pipe, a link that leads nowhere) would make a
reader wait for ever, or a writer write elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.base.command import UserError
from pipeline.base.layout import FILES, FOLDERS
from pipeline.base.regular import kind_of


def check_entries(run: Path) -> None:
    """Raise UserError where something else than the run's own file or folder stands under one of its names."""
    for name in (*FILES, *FOLDERS):
        path, wanted = run / name, "a folder" if name in FOLDERS else "a file"
        if (found := _found(path)) not in (None, wanted):
            raise UserError(f"{path} is {found}, where a run has {wanted}: move it away, and put the run's own back")


def _found(path: Path) -> str | None:
    """What `path` is, in words; None where nothing stands there. Raises PermissionError."""
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise
    except OSError:
        return "a link that leads to no file" if os.path.islink(path) else None
    return kind_of(mode)
