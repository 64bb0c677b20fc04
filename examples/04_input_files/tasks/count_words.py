from pathlib import Path


def do_action(engine, args):
    text = Path(args[0]).read_text(encoding="utf-8")
    return {"lines": len(text.splitlines()), "words": len(text.split())}, "no error"
