"""python -m tpec"""

import contextlib
import os
import sys
import threading

#: Bytes of the input that the disk may fetch while Python imports PyTorch, which takes seconds.
_FETCH = 4 << 30


def _fetch_inputs(arguments: list[str]) -> None:
    """Ask the system to read the beginning of the models named on the command line (Linux)."""
    room = min(_FETCH, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    for name in arguments:
        if name.endswith(".safetensors") and os.path.isfile(name):
            # What is wrong with the file is said later, in one sentence.
            with contextlib.suppress(OSError), open(name, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, room, os.POSIX_FADV_WILLNEED)
            return


if __name__ == "__main__":
    if "quantize" in sys.argv[1:2] and hasattr(os, "posix_fadvise"):
        threading.Thread(target=_fetch_inputs, args=(sys.argv[2:],), daemon=True).start()

    from .cli import main

    sys.exit(main())
