"""Writes on Redis Cluster that are as durable as asked when they return.

WAIT and WAITAOF count for the writes of their own connection. So what one node takes, one more write (see
`durability.mark_command`) and one such command go over one connection of this node, in one round trip. A command that a
node sends elsewhere, because its slot has moved, is followed by WAIT there. A pipeline of `redis-py` sends it over
another connection instead, so none is used here.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError

from service.store.durability import mark_command
from service.store.keys import slot_tags
from service.store.requests import Command

_MOST_TRIES = 3
# After a failure redis-py closes the connections of a node. Whoever writes to one at this moment finds no writer in it
# (AttributeError), or a closed one (RuntimeError of uvloop).
CLOSED_MEANWHILE = AttributeError, RuntimeError


class Written(NamedTuple):
    """`confirmed`: the answer of WAIT or WAITAOF of each connection that took commands."""

    answers: list[Any]
    confirmed: list[Any]


async def write(client: RedisCluster, commands: Sequence[Command], wait: Command) -> Written:
    """Raises the first error, of a command or of `wait`. Then other commands may be done: repeating them all is safe.

    Connections break when a server restarts, so what broke off is tried again. What came too late is not.
    """
    await client.initialize()
    answers: dict[int, Any] = {}
    confirmed: list[Any] = []
    places, num_tries = list(range(len(commands))), 0
    while places:
        num_tries += 1
        parts = _by_node(client, commands, places)
        marks = [mark_command(_mark_key(client, commands[some[0]])) for _, some in parts]
        asked = zip(parts, marks, strict=True)
        outcomes = await asyncio.gather(*(_ask(node, commands, some, (mark, wait)) for (node, some), mark in asked))
        again: dict[int, Exception] = {}
        for found, waited in outcomes:
            again |= {place: each for place, each in found.items() if _may_try_again(each, num_tries)}
            answers |= {place: each for place, each in found.items() if place not in again}
            if not found.keys() <= again.keys():  # a node that took nothing confirms nothing
                confirmed.append(waited)
        failed = [each for each in (*answers.values(), *confirmed) if isinstance(each, Exception)]
        if failed:
            raise failed[0]
        places = sorted(again)
        await _learn_anew(client, again)
    return Written([answers[place] for place in range(len(commands))], confirmed)


def key_of(command: Command) -> str:
    """A key of a command that the store sends; all keys of one command are in one slot."""
    return str(command[3] if command[0] == "EVAL" else command[1])


def key_of_each_primary(client: RedisCluster) -> list[str]:
    """A key for each primary that has slots."""
    keys = {str(client.get_node_from_key(key)): key for key in (f"automr:{{{tag}}}" for tag in slot_tags().values())}
    return list(keys.values())


def _by_node(
    client: RedisCluster, commands: Sequence[Command], places: Sequence[int]
) -> list[tuple[ClusterNode, list[int]]]:
    """The nodes that get commands, and the places of these."""
    found: dict[str, tuple[ClusterNode, list[int]]] = {}
    for place in places:
        node = client.get_node_from_key(key_of(commands[place]))
        assert node is not None
        found.setdefault(str(node.name), (node, []))[1].append(place)
    return list(found.values())


async def _ask(
    node: ClusterNode, commands: Sequence[Command], places: Sequence[int], last: tuple[Command, Command]
) -> tuple[dict[int, Any], Any]:
    """What came of each place, and the answer of the last command, which waits. Errors are given, not raised."""
    sent = [PipelineCommand(place, *commands[place]) for place in places]
    marked, waited = (PipelineCommand(0, *each) for each in last)
    try:
        await node.execute_pipeline([*sent, marked, waited])
    except Exception as error:  # the connection could not be made, or broke while it was written to
        return dict.fromkeys(places, error), error
    confirmed = marked.result if isinstance(marked.result, Exception) else waited.result
    return {each.position: each.result for each in sent}, confirmed


def _mark_key(client: RedisCluster, command: Command) -> str:
    """In the slot of the command, and without a user's id."""
    return f"automr:{{{slot_tags()[client.keyslot(key_of(command))]}}}:probe"


def _may_try_again(answer: Any, num_tries: int) -> bool:
    return num_tries < _MOST_TRIES and isinstance(answer, (MovedError, RedisConnectionError, *CLOSED_MEANWHILE))


async def _learn_anew(client: RedisCluster, errors: Mapping[int, Exception]) -> None:
    """Which node has which slot; what else is connected to a server that has restarted is closed."""
    if not all(isinstance(each, MovedError) for each in errors.values()):
        await asyncio.gather(*(node.disconnect_free_connections() for node in client.get_primaries()))
    if errors:
        await client.nodes_manager.initialize()
