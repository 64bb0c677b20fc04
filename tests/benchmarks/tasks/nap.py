from work import nap


def do_action(engine, args):
    return nap(*args)
