"""What the zoo refuses on purpose, in words for people."""


class UserError(ValueError):
    """Something that a user can mend; the message says what was wrong, what is allowed, and what to do.

    It alone is shown without a traceback. Everything else that is raised keeps its own.
    """
