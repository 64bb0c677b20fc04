def do_action(engine, args):
    return [int(number) ** 2 for number in args], "no error"
