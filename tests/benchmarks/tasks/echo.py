from work import echo


def do_action(engine, args):
    return echo(*args)
