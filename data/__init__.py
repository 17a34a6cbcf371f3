"""Reading and fetching GLUE, E2E, SQuAD and checkpoints; batching; the bundled mini set."""


class UserError(ValueError):
    """What the user can mend: a file, a line, an argument. Scripts print its message as one line and exit with 2."""
