"""A place for Unix sockets: their paths are short, and the temporary folder that a scheduler sets may be long."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pipeline.base.command import UserError

_LONGEST = 107  # bytes of a socket's path on Linux: sun_path has 108, the last of them 0
_SHORT = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


def short_temporary_folder(room: int) -> Path:
    """Return an existing folder in which this user can make files, and sockets whose paths are up to `room` bytes longer.

    It is the system's temporary folder (TMPDIR) if that is short enough. It may belong to everybody: use `tempfile.mkdtemp`
    in it. `room` counts the slash. Raises UserError if there is none.
    """
    usual = Path(tempfile.gettempdir())
    for folder in (usual, *_SHORT):
        if len(os.fsencode(folder)) + room <= _LONGEST and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise UserError(
        f"{usual} is too long a path for sockets, and {' and '.join(map(str, _SHORT))} cannot be written: "
        f"set TMPDIR to a folder of at most {_LONGEST - room} bytes"
    )
