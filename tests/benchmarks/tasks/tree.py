"""Starts a grandchild that leaves the session, tells both process ids, and never ends."""

import os
import subprocess
import time


def do_action(engine, args):
    grandchild = subprocess.Popen(["setsid", "sleep", "600"])
    engine.log(f"{os.getpid()} {grandchild.pid}")
    time.sleep(600)
