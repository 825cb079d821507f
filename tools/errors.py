"""How a failure is told: the exception that means "the user can mend this", and one line for any."""


class UserError(Exception):
    """A mistake or a circumstance outside the program, told in one line that names the file, key or value."""


def one_line(error):
    """What an error says, without line breaks."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {text}"
