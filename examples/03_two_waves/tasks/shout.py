def do_action(engine, args):
    return " ".join(args).upper(), "no error"
