"""How a failure is told: the exception that means "the user can mend this", and one line for any."""

import unicodedata


class UserError(Exception):
    """A mistake or a circumstance outside the program, told in one line that names the file, key or value."""


def one_line(error):
    """What an error says, without line breaks and control characters."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {text}"


def printable(text):
    """`text` for a terminal or a log: line breaks and other control characters escaped, such as \\x1b or \\u202e.

    Names of files and classes are chosen by strangers: an escape sequence would act on the terminal, a line break forge
    a line of ours.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char.encode("unicode_escape").decode() if _is_control(char) else char for char in text)


def _is_control(char):
    # Cc: control, Cf: format (writing direction), Cs: surrogates of undecodable names, Zl, Zp: line breaks. The two
    # joiners belong to Persian words and emoji.
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\u200c\u200d"
