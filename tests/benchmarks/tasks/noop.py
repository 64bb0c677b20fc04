def do_action(engine, args):
    return None
