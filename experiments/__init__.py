import sys

if sys.argv[0] == "-m":  # a script of this folder is being started
    import ctrl_c  # noqa: F401
