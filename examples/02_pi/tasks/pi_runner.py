def do_action(engine, args):
    print("This is a pi runner example, because this has not been done a million times!")
    result = engine.java_runner(args)
    return result, "no error"
