import time


def do_action(engine, args):
    number, seconds = args
    time.sleep(seconds)
    return number**2
