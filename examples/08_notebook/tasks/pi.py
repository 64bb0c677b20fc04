from random import Random


def do_action(engine, args):
    seed, points = args
    draw = Random(seed).random
    inside = sum(draw() ** 2 + draw() ** 2 < 1 for _ in range(points))
    return {"points": points, "pi": 4 * inside / points}
