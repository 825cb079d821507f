"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake or a circumstance outside the program, told in one line that names the file, key or value."""
