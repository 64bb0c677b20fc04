import os


def do_action(engine, args):
    os._exit(3)
