def do_action(engine, args):
    return args
