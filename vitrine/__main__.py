"""`vitrine`, also as `python -m vitrine`: one line and an exit code for everything that goes wrong."""

import os
import sys
import traceback

from vitrine.cli import app
from vitrine.exits import FAILED, INTERRUPTED, USAGE, InterruptedCommandError, line_of, status_of, usage_line_of
from vitrine.printable import printable


def main() -> None:
    """Run the command line, and leave with its exit code."""
    # OpenMP reads it when torch is loaded: waiting threads sleep. Spinning ones slow other processes manyfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line on `arguments`, and give its exit code."""
    try:
        # Typer returns the code of typer.Exit, and raises everything else.
        return int(app(arguments, prog_name="vitrine", standalone_mode=False) or 0)
    except InterruptedCommandError as stopped:
        return _refuse(str(stopped), INTERRUPTED, arguments)
    except KeyboardInterrupt:
        return _refuse("interrupted; run the same command to go on", INTERRUPTED, arguments)
    except BrokenPipeError:
        # The reader went away, as `| head` does; nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # the last line of defence: nothing that a user types ends in a traceback
        if os.environ.get("VITRINE_DEBUG"):
            traceback.print_exc()
        if hasattr(error, "format_message"):
            return _refuse(f"error: {usage_line_of(error)}", USAGE, arguments)
        return _refuse(f"error: {line_of(error)}", status_of(error), arguments)


def _refuse(line: str, code: int, arguments: list[str]) -> int:
    """One line on standard error; with --json also one object on standard output, as a program expects there."""
    line = printable(line)
    print(f"vitrine: {line}", file=sys.stderr)
    if "--json" in arguments:
        from vitrine.output import print_json

        print_json({"error": line.removeprefix("error: "), "exit_code": code})
    return code


if __name__ == "__main__":
    main()
