"""Errors whose message is the sentence a user reads: what is wrong, where, and what to do."""


def one_line(text: str) -> str:
    """`text` with everything that is not for printing (line breaks, control characters) spelled out, as in '\\n'."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class TpecError(Exception):
    """A failure the user can act on; the message is one complete sentence on one line, whatever names it quotes."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Interrupted(TpecError):
    """The user asked to stop; nothing is left behind."""
