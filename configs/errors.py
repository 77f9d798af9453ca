"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake or a broken input of the user's; its text is one line that says what is wrong and what to do.

    The command line prints the text and exits with code 2, without a traceback.
    """
