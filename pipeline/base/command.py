"""How every command ends: one-sentence errors and exit codes.

Messages go to standard error; the closing table and the `--json` line (tables.py) go to standard output.
"""

from __future__ import annotations

import difflib
import errno
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import NoReturn

from pipeline.base import leaving, output
from pipeline.base.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR
from pipeline.base.redaction import holds_secret, without_secrets
from pipeline.base.starting import imports_are_over
from pipeline.base.stopping import going_on

# What a command says after Ctrl-C: most keep nothing of their work, some go on with what is done.
BEGINS_ANEW = "interrupted before the end: the same command begins anew"
KEEPS = "interrupted: what is done is kept"


class UserError(Exception):
    """A mistake that the user can mend: one sentence says what is wrong, where, and what to do. Exit code 2."""


def check_at_least(least: int, section: object, *names: str, prefix: str = "") -> None:
    """Raise UserError where one of these values of a config section is below `least`; None passes.

    prefix: the section's name and a dot, as users type the key.
    """
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            raise UserError(f"{prefix}{name} is {value}: it must be at least {least}")


def check_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise UserError where `name` is not one of the `known` names of this kind of thing."""
    valid = list(known)
    if name not in valid:
        raise UserError(f"there is no {kind} '{name}': {nearest(name, valid)}")


def check_without_secrets(name: str, address: str | None, remedy: str) -> None:
    """Raise UserError where an address that becomes part of a run, and so of its folder and of MLflow, holds a secret."""
    if address and holds_secret(address):
        raise UserError(
            f"{name} holds a password or a token, which would become part of the run: leave it out and {remedy}"
        )


def run(main: Callable[[], int | None], interrupted: str = BEGINS_ANEW, *, kept: bool = False) -> NoReturn:
    """Call `main` as a command. The exit code is its result (None: 0), or that of the error that it raises.

    interrupted: what is true after Ctrl-C. The command that goes on is added where some work was kept. kept: the command keeps
    its work in files; otherwise it has failed where what it printed could not be written (`check_printed`).
    """
    output.prepare()
    try:
        imports_are_over()
        code = main() or 0
        if code == 0 and not kept:
            check_printed()
    except KeyboardInterrupt:
        print(going_on(interrupted) if interrupted == KEEPS else interrupted, file=sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception as error:
        if sentence := describe_user_error(error):
            print(f"error: {sentence}", file=sys.stderr)
            code = EXIT_USER_ERROR
        elif leaving.cleanup_is_skipped():
            traceback.print_exc()  # as Python does
            code = EXIT_FAILED
        else:
            raise
    leaving.leave(code)


def check_printed() -> None:
    """Called where a command has printed all that it is for: raise UserError where standard output did not take it.

    A reader that has gone (`| head -1`) had what it wanted.
    """
    if (error := output.lost()) and not output.reader_has_gone():
        raise UserError(f"standard output could not be written ({error.strerror}): send it elsewhere")


def describe_user_error(error: Exception) -> str | None:
    """The sentence for an error that the user can mend, without secrets; None for any other."""
    if isinstance(error, UserError):
        return without_secrets(str(error))
    return describe_os_error(error) if isinstance(error, OSError) else None


def describe_os_error(error: OSError) -> str | None:
    """The sentence for an operating-system error that the user can mend (a full disk ...); None for any other error."""
    remedies = {
        errno.ENOSPC: "the disk is full: free some space and start the same command again",
        errno.EDQUOT: "the disk quota is used up: free some space and start the same command again",
        errno.EROFS: "the file system is read-only: choose a folder that can be written",
        errno.EMFILE: "too many open files: raise their hard limit (ulimit -Hn) and start the same command again",
        errno.EACCES: "permission denied: choose a folder that this user can read and write",
        errno.EISDIR: "it is a folder, where a file is expected: move it away",
        errno.ENOTDIR: "a part of it is a file, where a folder is expected: move that away",
        errno.EEXIST: "it is a file, where a folder is expected: move it away",
        errno.ENXIO: "it is a FIFO, a socket or a device, where a file is expected: move it away",
        errno.ELOOP: "it is a link that leads to itself: remove it",
        errno.ENAMETOOLONG: "the name is too long for the file system: choose a shorter one",
        errno.EIO: "the storage fails (input/output error): put a copy of it elsewhere",
    }
    if error.errno not in remedies:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return place + remedies[error.errno]


def nearest(name: str, valid: Iterable[str]) -> str:
    """A clause that offers the valid names nearest to a misspelt one: `did you mean 'a' or 'b'?`, or all of them."""
    names = sorted(valid)
    if close := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        return "did you mean " + " or ".join(f"'{match}'" for match in close) + "?"
    return "valid: " + ", ".join(names)
