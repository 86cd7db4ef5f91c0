"""Run one command and write its wall time, peak memory and exit code as JSON.

    python -I -S measure.py RESULT.json TIMEOUT COMMAND [ARG ...]

Standard library only, and started as a process of its own: on Linux a child's peak resident size begins at its
parent's size, so the parent must be small for the figure to be the command's own (as with GNU time).
"""

import json
import os
import resource
import signal
import sys
import time


def main() -> None:
    result, timeout, command = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    begin = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.execvp(command[0], command)
    if timeout:
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(pid, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, timeout)
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(pid, signal.SIGKILL))
    _, status = os.waitpid(pid, 0)
    seconds = time.perf_counter() - begin
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(result, "w", encoding="utf-8") as file:
        # ru_maxrss is in KiB on Linux: the largest of the command's processes.
        json.dump({"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024,
                   "cpu_seconds": usage.ru_utime + usage.ru_stime,
                   "code": os.waitstatus_to_exitcode(status)}, file)


if __name__ == "__main__":
    main()
