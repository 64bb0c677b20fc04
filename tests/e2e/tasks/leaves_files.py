from pathlib import Path


def do_action(engine, args):
    Path("outputs/deep").mkdir()
    for name, folder in zip(args, ("", "deep/"), strict=True):
        Path(f"outputs/{folder}{name}.txt").write_text(f"this is {name}")
