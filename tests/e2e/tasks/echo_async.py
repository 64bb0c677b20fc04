import asyncio


async def do_action(engine, args):
    await asyncio.sleep(0)
    return args, "no error"
