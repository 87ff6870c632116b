"""Errors made for the person who runs the program."""


class UserError(ValueError):
    """Something in the input or the configuration is wrong.

    The message says what was seen, what is needed and which option or line fixes it. The command line prints it
    without a traceback and exits with status 2.
    """
