"""Errors whose message is the sentence a user reads: what is wrong, where, and what to do."""


def one_line(text: str) -> str:
    """`text` with everything that is not for printing (line breaks, control characters) spelled out, as in '\\n'."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


#: How PyTorch, its libraries and systems word a refused request for memory, in small letters.
_NO_MEMORY = ("out of memory", "_alloc_failed", "cublas_status_not_initialized", "when calling `cusolverdncreate",
              "can't allocate memory", "cannot allocate memory", "not enough memory", "cudaerrormemoryallocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory, on a device or the host, was not to be had.

    PyTorch's allocator raises OutOfMemoryError; workspaces of cuBLAS and cuSOLVER, kernels, pinned and plain host
    memory fail with a RuntimeError that only its words tell from others.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


class TpecError(Exception):
    """A failure the user can act on; the message is one complete sentence on one line, whatever names it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Interrupted(TpecError):
    """The user asked to stop; nothing is left behind."""
