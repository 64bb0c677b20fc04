def do_action(engine, args):
    return {"fine": 1, "bad": [object()]}
