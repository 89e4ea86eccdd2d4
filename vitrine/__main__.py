"""`vitrine`, also as `python -m vitrine`: one line and an exit code for everything that goes wrong."""

import os
import sys
import traceback

from vitrine.cli import app
from vitrine.exits import FAILED, INTERRUPTED, USAGE, line_of, status_of, usage_line_of


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
    except KeyboardInterrupt:
        _say("interrupted; run the same command to go on")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `| head` does; nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # the last line of defence: nothing that a user types ends in a traceback
        if os.environ.get("VITRINE_DEBUG"):
            traceback.print_exc()
        if hasattr(error, "format_message"):
            _say(f"error: {usage_line_of(error)}")
            return USAGE
        _say(f"error: {line_of(error)}")
        return status_of(error)


def _say(line: str) -> None:
    print(f"vitrine: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
