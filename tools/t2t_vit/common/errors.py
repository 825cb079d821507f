"""Errors that a user can fix, and the words of one-line messages."""

import unicodedata


class UserError(Exception):
    """A user's mistake or an external problem. Its message is one line that names the file, key or value."""


def one_line(error: BaseException) -> str:
    """Return the message of an error as one printable line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {text}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 epoch", "1,437 images", "2 processes"."""
    plural = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{plural}"


def printable(text: object) -> str:
    """`text` with line breaks and other control characters escaped, such as \\x1b or \\u202e.

    File and class names may come from an untrusted source. An escape sequence could control the terminal, and a line
    break could fake a log line.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char.encode("unicode_escape").decode() if _is_control(char) else char for char in text)


def _is_control(char):
    # Cc: control, Cf: format (writing direction), Cs: surrogates of undecodable names, Zl and Zp: line breaks. The two
    # zero-width joiners are kept, because Persian words and emoji need them.
    return unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in "\u200c\u200d"
