import time


def do_action(engine, args):
    time.sleep(args[0])
