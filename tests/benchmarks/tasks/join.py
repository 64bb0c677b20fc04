from typing import Any

import work


def do_action(engine: object, args: list[Any]) -> int:
    return work.join(args[0])
