"""What a store has done since its counts were set back, by `INFO commandstats`."""

from redis.asyncio import Redis


async def calls(raw: Redis) -> dict[str, int]:
    """Number of calls of each command, those in scripts included. Both ways to call a script count as `eval`."""
    stats = await raw.info("commandstats")
    found = {name.removeprefix("cmdstat_"): int(facts["calls"]) for name, facts in stats.items()}
    if scripts := found.pop("evalsha", 0) + found.pop("eval", 0):
        found["eval"] = scripts
    return found
