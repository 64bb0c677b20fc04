def do_action(engine, args):
    client, number = args
    return f"task {number} of {client}", "no error"
