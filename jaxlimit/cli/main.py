"""The command: dispatch, exit codes, and its end after an interruption."""

import contextlib
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from jaxlimit.cli.errors import Terminated, UsageError

COMMANDS = ("run", "study", "prune", "compare", "plan", "bench", "new")


def entry(*command: str) -> None:
    """Run the command of this process, and end the process with its exit code.

    Args:
        *command: the command of a script that has only one; else the first argument names it.
    """
    signal.signal(signal.SIGTERM, _terminate)
    code = main([*command, *sys.argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader of a pipe may have ended
            stream.flush()
    if code >= 128:
        # Threads of a library may be in the middle of something; every file is whole at any time.
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run the command that the arguments ask for.

    Args:
        arguments: those of the command line, without the program.

    Returns:
        The exit code: 0; 1 for an error, with one line on it; 2 for a wrong name or argument; 130
        after Ctrl-C and 143 after SIGTERM.

    >>> main(["study", "no_such_file.py:task"])  # says on stderr that there is no such file
    2
    """
    arguments = list(arguments)
    show_all = "--traceback" in arguments
    arguments = [word for word in arguments if word != "--traceback"]
    try:
        return _dispatch(arguments)
    except UsageError as error:
        return _say(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _interrupted(arguments, "interrupted", 130)
    except Terminated:
        return _interrupted(arguments, "terminated", 143)
    except BrokenPipeError:
        return 141
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if show_all:
            raise
        if _is_users(error):
            traceback.print_exception(error)
            return 1
        said = " ".join(str(error).split()) or type(error).__name__
        return _say(f"error: {said}\n(--traceback shows where)", 1)


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["run"]:
        from jaxlimit.cli import experiment

        return experiment.run(arguments[1:])
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        from jaxlimit.cli.errors import near

        raise UsageError(f"there is no command {arguments[0]!r}; {near(arguments[0], COMMANDS)}")
    from jaxlimit._core.extras import require

    require("tyro", "study", "the command")
    from jaxlimit.cli import commands

    try:
        command = commands.parse(arguments or ["--help"])
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    return command()


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


def _interrupted(arguments: list[str], what: str, code: int) -> int:
    # Another signal during this message must not end in a traceback.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    again = shlex.join(["jaxlimit", *arguments])
    if arguments and arguments[0] in ("study", "run"):
        print(f"\n{what}: what is finished is kept. Go on with\n{again}", file=sys.stderr)
    else:
        print(f"\n{what}; start again with\n{again}", file=sys.stderr)
    return code


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def _is_users(error: BaseException) -> bool:
    """Return whether an error comes from the user's own code, so its traceback is shown."""
    return getattr(error, "in_users_code", False)
