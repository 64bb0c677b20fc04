import sys


def do_action(engine, args):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return
