def do_action(engine, args):
    return "half of it", "the other half is missing"
