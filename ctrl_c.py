"""Imported by a script before torch, whose import takes seconds: Ctrl-C then ends it without a traceback."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # run_as_script sets Python's own handler again
