"""Errors whose message is the sentence a user reads: what is wrong, where, and what to do."""


class TpecError(Exception):
    """A failure the user can act on; the message is one complete sentence."""


class Interrupted(TpecError):
    """The user asked to stop; nothing is left behind."""
