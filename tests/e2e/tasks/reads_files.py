from pathlib import Path


def do_action(engine, args):
    return [[name, Path(name).read_text()] for name in args]
