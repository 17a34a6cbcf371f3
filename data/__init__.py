"""Reading and fetching GLUE, E2E, SQuAD and checkpoints; batching; the bundled mini set."""

from pathlib import Path


class UserError(ValueError):
    """What the user can mend: a file, a line, an argument. Scripts print its message as one line and exit with 2."""


def read_text(path, hint):
    """A file's text, without a byte order mark. Raises UserError if it is missing (with `hint`) or not UTF-8."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: {hint}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x}; convert the file"
        ) from None
