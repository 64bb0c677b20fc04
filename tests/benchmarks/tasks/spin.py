from work import spin


def do_action(engine, args):
    return spin(*args)
