"""Reading and fetching data and checkpoints, batching, the bundled mini set. Here: text and JSON."""

import contextlib
import json
import math
from pathlib import Path

from model import write_file


class UserError(ValueError):
    """An error that the user can fix. Scripts print it as one line and exit with 2."""


@contextlib.contextmanager
def as_user_error(where=""):
    """Turns ValueError into UserError, around calls to modules that do not import it, such as hut.py."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{where}{error}") from None


def read_text(path, hint):
    """A file's text, without a byte order mark. Raises UserError, with `hint`, if it can't be read."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: {hint}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8: byte 0x{raw[error.start]:02x}: convert it") from None


def parse_json(text):
    """What JSON says. Raises ValueError if it is broken, or has half of a character (a lone surrogate)."""
    content = json.loads(text)
    json.dumps(content, ensure_ascii=False).encode()
    return content


def write_text(path, text):
    write_file(path, lambda file: file.write(text.encode()))


def write_json(path, content):
    write_text(path, json.dumps(no_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path, rows):
    write_text(path, "".join(json.dumps(no_nan(row), allow_nan=False) + "\n" for row in rows))


def no_nan(content):
    """`content` with None for NaN and infinities, which JSON does not have."""
    if isinstance(content, dict):
        return {key: no_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [no_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def listed(values, floats="g"):
    """{"lr": 0.01, "epochs": 8} -> "lr 0.01, epochs 8"."""
    return ", ".join(f"{k} {format(v, floats) if isinstance(v, float) else v}" for k, v in values.items())
