"""Errors whose message is the sentence a user reads: what is wrong, where, and what to do."""

import errno
import re

#: How CUDA, HIP, their libraries, Triton and the host's allocator say that memory ran out, where no exception of its
#: own does. A library that cannot make its handle has found no room for its workspace.
_NO_MEMORY = (
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|failed to allocate|bad_alloc"
    r"|OutOfMemory|MemoryAllocation|memory allocation failed|ALLOC_FAILED|rocblas_status_memory_error"
    r"|can't start new thread"
    r"|CUBLAS_STATUS_NOT_INITIALIZED|(STATUS_NOT_INITIALIZED|STATUS_INTERNAL_ERROR).*calling `\w*create")
#: What to do when the system says this, by its number.
_REMEDIES = {
    errno.ENOENT: "check the name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "allow it to this user, or use another folder",
    errno.EPERM: "allow it to this user, or use another folder",
    errno.EROFS: "use a folder on another disk",
    errno.ENOSPC: "make room on the disk",
    errno.EMFILE: "close other programs, or allow more open files",
    errno.ENFILE: "close other programs, or allow more open files",
    errno.EIO: "the disk or the way to it fails, use another one",
}
#: Characters of a message.
_LONGEST = 2000


def one_line(text: str) -> str:
    """`text` with everything that is not for printing (line breaks, control characters) spelled out, as in '\\n'."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory, on a device or the host, was not to be had.

    PyTorch's allocator raises OutOfMemoryError; workspaces of cuBLAS and cuSOLVER, kernels, pinned and plain host
    memory fail with a RuntimeError that only its words tell from others.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and re.search(_NO_MEMORY, str(error), re.IGNORECASE) is not None


def first_line(error: BaseException) -> str:
    """What an error says first, to be quoted within a sentence; what kind it is where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "").rstrip(". ") or type(error).__name__


def system_fault(error: OSError) -> str:
    """What the system says, and what to do about it: the end of a sentence, without its full stop."""
    return f"{error.strerror or error}; {_REMEDIES.get(error.errno or 0, 'run again, or use another disk')}"


def sentence(error: BaseException) -> str:
    """One line for the user about any error, those of PyTorch and of the system included."""
    if isinstance(error, TpecError):
        return str(error)
    if isinstance(error, OSError):
        return one_line(f"{error.filename or 'A file'} cannot be used: {system_fault(error)}.")
    cause = first_line(error)
    if is_out_of_memory(error):
        return one_line(f"Memory ran out ({cause}): close other programs, or use --device cpu if that was the GPU's.")
    return one_line(f"The run failed in PyTorch or below it ({type(error).__name__}: {cause}): on a GPU, try "
                    "--device cpu.")


class TpecError(Exception):
    """A failure the user can act on; the message is one complete sentence on one line, whatever names it quotes.

    Names can have millions of characters in a hostile file: of a message that long, beginning and end are kept.
    """

    def __init__(self, message: str) -> None:
        # Twice, as spelling out makes longer and takes time.
        super().__init__(_shortened(one_line(_shortened(message))))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST // 2 - 5]} ... {text[-_LONGEST // 2:]}"
