import time


def do_action(engine, args):
    time.sleep(float(args[0]))
    return "slept"
