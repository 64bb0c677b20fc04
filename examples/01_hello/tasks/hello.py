import os


def do_action(engine, args):
    print("the current working directory is:", os.getcwd())
    return f"Hello, {args[0]}!", "no error"
