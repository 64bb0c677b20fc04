import time
from pathlib import Path


def do_action(engine, args):
    with Path(args[0]).open("a") as file:
        file.write("began\n")
    runs = len(Path(args[0]).read_text().splitlines())
    if runs == 1:
        time.sleep(600)
    return runs
