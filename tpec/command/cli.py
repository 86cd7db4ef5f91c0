"""The command line, python -m tpec: runs one command, and turns its failure into a sentence and an exit code."""

import io
import os
import signal
import sys
from collections.abc import Sequence

from ..errors import sentence
from .arguments import make_parser
from .terminal import FAILED, FAILURES, INTERRUPTED, complain


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (`arguments`, or those of the process) and return its exit code.

    0: done. 1: failed or found faulty, with one line on stderr. 2, by SystemExit: wrong usage. 130: interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # File and tensor names may hold what the terminal's encoding does not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = make_parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except FAILURES as error:
        complain(sentence(error))
        return FAILED
    finally:
        # Whoever ends the process while it winds up (torchrun, when another rank was quicker) gets no traceback.
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt
