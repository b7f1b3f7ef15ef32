"""The errors that the zoo raises for mistakes of the user."""


class UserError(ValueError):
    """A mistake that the user can fix. The message says what was wrong, what is allowed, and what to do.

    The command line shows the message without a traceback. Other errors keep their traceback.
    """


class CheckpointError(UserError):
    """A checkpoint cannot be found, trusted or used. The message names the checkpoint and the reason."""
