def do_action(engine, args):
    raise ValueError("these arguments are wrong: " + ", ".join(map(str, args)))
