"""Adds up its arguments, after a moment."""

import time


def do_action(engine, args):
    time.sleep(0.02)
    return sum(args)
