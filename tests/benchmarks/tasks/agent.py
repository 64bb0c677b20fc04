"""Tells the process id of its agent, then takes a second."""

import os
import time


def do_action(engine, args):
    engine.log(os.getppid())
    time.sleep(1.0)
