"""The error that the zoo raises on purpose."""


class UserError(ValueError):
    """A mistake that a user can mend. The message says what was wrong, what is allowed, and what to do.

    The command line shows it without a traceback. Every other error keeps its traceback.
    """


class CheckpointError(UserError):
    """A checkpoint that cannot be found, trusted or used; the message says which and why."""
