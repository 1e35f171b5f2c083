"""The connection to Redis: commands in round trips, errors in the terms of the service, and a circuit breaker.

The breaker: callers do not wait again and again for a store that hangs. After `MOST_TIMEOUTS` commands in a row that
did not answer in time, further ones fail at once. Meanwhile a task asks the store every `PROBE_EVERY_S`; its first
answer lets commands through again. Other errors do not count, because they come at once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Self, TypeVar

import structlog
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

from service.ending import cancel_and_wait
from service.errors import NotDurable, StartupError, StoreCorrupt, StoreUnavailable
from service.logs import RepeatedWarnings
from service.store.durability import Durability, lack_of, lacks_wait, mark_command, wait_command
from service.store.keys import PROBE
from service.store.lua import scripts
from service.store.reasons import NO_RIGHTS, SLOW, is_about_data, reason_of, reply_of, words_for
from service.store.requests import Command, eval_command
from service.store.servers import cluster, rights
from service.store.servers.texts import Texts
from service.store.servers.tls import Certificates, client_options
from service.tracing.spans import span, without_span

Answer = TypeVar("Answer")
log = structlog.get_logger("service.store.connection")
repeated = RepeatedWarnings(log)

MAX_CONNECTIONS = 64
SCHEMES = "redis://, rediss://, unix://, redis+cluster://, rediss+cluster://"
NONE = Certificates()
MOST_TIMEOUTS = 3
PROBE_EVERY_S = 0.5
PROBED_FOR_S = 1.0
STORE_ERRORS: tuple[type[Exception], ...] = (RedisError, RedisClusterException, OSError)


class StoreConnection:
    """One per process and event loop. Its coroutines may run concurrently; they share a pool of connections."""

    def __init__(self, client: Redis | RedisCluster, *, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self.problem_of_server: Callable[[], str] = str  # why a server of our own does not run, "" if that is not known
        self.num_replicas = 1  # that confirm a write for the durability `replicated`
        self.breaker = Breaker(self.ping)
        self._probing, self._probe_again_at = asyncio.Lock(), 0.0
        self._texts = Texts()
        self.is_cluster = isinstance(client, RedisCluster)
        # A cluster client raises an error when all connections are in use. Only the pool of the other client waits.
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS // 2) if self.is_cluster else nullcontext()
        self._errors = (*STORE_ERRORS, *(cluster.CLOSED_MEANWHILE if self.is_cluster else ()))

    @classmethod
    async def connect(
        cls, url: str, *, timeout_s: float = 2.0, client_name: str = "automr", certificates: Certificates = NONE
    ) -> Self:
        """A store for a URL of one of `SCHEMES`. Does not contact the server: see `ping`.

        Raises StartupError for a URL or a file of `certificates` (for the schemes with TLS) that cannot be used.
        """
        options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "client_name": client_name,
            "max_connections": MAX_CONNECTIONS,
            # One retry, for pooled connections that broke when the server restarted. No retry after a timeout.
            "retry": Retry(ExponentialBackoff(cap=0.05, base=0.01), 1, (RedisConnectionError,)),
        }
        scheme, _, rest = url.partition("://")
        if scheme.startswith("rediss"):
            options |= client_options(certificates)
        try:
            if scheme.endswith("+cluster"):
                return cls(RedisCluster.from_url(f"{scheme[:-8]}://{rest}", **options), timeout_s=timeout_s)
            pool = BlockingConnectionPool.from_url(url, timeout=timeout_s, **options)
        except ValueError as error:
            reason = f"{scheme}://: {error}; known are {SCHEMES}"
            raise StartupError(f"cannot read the store URL ({reason})") from error
        return cls(Redis.from_pool(pool), timeout_s=timeout_s)

    def _translated_errors(self) -> AbstractContextManager[None]:
        """Errors of the client become errors of the service."""
        return _translated(self._errors)

    async def close(self) -> None:
        await self.breaker.close()
        with self._translated_errors():
            await self._client.aclose()

    async def ping(self) -> None:
        """Raises `StoreUnavailable` if the server does not answer, or does not do what a change of a user needs.

        Asks also while the breaker is open.
        """
        try:
            lacks = await self.lacking_rights([*rights.READING, *rights.WRITING])
            if not lacks:
                await self._ask([eval_command(scripts.PROBE, [PROBE])])
        except StoreUnavailable as error:
            if problem := self.problem_of_server():
                raise StoreUnavailable(f"The memory store does not run: {problem}.") from error
            raise
        if lacks:
            repeated.warning("the store does not serve", reason=NO_RIGHTS.name, error=lacks)
            raise StoreUnavailable(f"The memory store does not allow its user {lacks}.")

    async def lacking_rights(self, commands: Sequence[str]) -> str:
        """Which of these commands, and which keys, the user may not use: as an ACL names them, '' for none."""
        probe = eval_command(rights.MISSING, [PROBE], *rights.SAMPLES, *commands)
        return rights.words_of((await self._ask([probe]))[0], commands)

    async def scan_node(self, node: int, place: int, *options: Any) -> tuple[int, list[bytes], int]:
        """One step of SCAN on a node (0 unless it is a cluster): where to go on, keys, and the number of nodes."""
        if not isinstance(self._client, RedisCluster):
            return (*await self._call("SCAN", place, *options), 1)
        with self._translated_errors():
            nodes = sorted((await self._client.initialize()).get_primaries(), key=lambda each: str(each.name))
            if node >= len(nodes):
                return 0, [], len(nodes)  # the cluster has fewer nodes than before
            by_node, keys = await self._client.execute_command("SCAN", place, *options, target_nodes=nodes[node])
            return by_node.popitem()[1], keys, len(nodes)

    async def probe(self) -> None:
        """`ping`, but a good answer counts for `PROBED_FOR_S`: anyone may ask for readiness, and each ping is a write.

        Callers at the same time share one ping.
        """
        async with self._probing:
            if time.monotonic() >= self._probe_again_at:
                await self.ping()
                self._probe_again_at = time.monotonic() + PROBED_FOR_S

    async def node_names(self) -> list[str]:
        """All servers of a cluster, replicas included; one name where it is no cluster."""
        if not isinstance(self._client, RedisCluster):
            return [""]
        with self._translated_errors():
            return sorted(str(node.name) for node in (await self._client.initialize()).get_nodes())

    async def ask_node(self, name: str, *command: Any) -> Any:
        """The answer of one server to a command without keys."""
        if not isinstance(self._client, RedisCluster):
            return await self._call(*command)
        with self._translated_errors():
            node = self._client.get_node(node_name=name)
            if node is None:
                raise StoreUnavailable("A node has left the cluster.")
            return await self._client.execute_command(*command, target_nodes=node)

    async def _call(self, *command: Any) -> Any:
        return (await self.run([command]))[0]

    async def _script(self, script: str, keys: Sequence[str], *args: Any) -> Any:
        return (await self.run([eval_command(script, keys, *args)]))[0]

    async def write(self, commands: Sequence[Command], durability: Durability) -> list[Any]:
        """`run` for writes that must be as durable as asked when it returns, see `durability.py`.

        Raises NotDurable if they are not: they are done, and repeating them is safe. On a cluster each node that takes
        some of them must confirm these.
        """
        answers, lack = await self.try_to_write(commands, durability)
        if lack:
            raise NotDurable(lack)
        return answers

    async def try_to_write(self, commands: Sequence[Command], durability: Durability) -> tuple[list[Any], str | None]:
        """`write`, but what was not reached is told (None if all was), not raised."""
        if durability == "stored" or not commands:
            return await self.run(commands), None
        wait = wait_command(durability, self.num_replicas, round(500 * self._timeout_s))
        try:
            if isinstance(self._client, RedisCluster):
                self.breaker.check()
                write = partial(cluster.write, self._client, commands, wait)
                answers, confirmed = await self._guarded(len(commands), write)
            else:
                *answers, _, last = await self.run([*commands, mark_command(PROBE), wait])
                confirmed = [last]
        except StoreUnavailable as error:
            if lacks_wait(reply_of(error.__cause__ or error)):
                raise NotDurable(f"The store has what was sent, but it cannot promise `{durability}`.") from error
            raise
        lacks = (lack_of(durability, self.num_replicas, each) for each in confirmed)
        return answers, next(filter(None, lacks), None)

    async def check_durability(self, durability: Durability) -> None:
        """Raises NotDurable if a server that takes writes cannot keep it at the moment. Writes a key that expires."""
        keys = [PROBE]
        if isinstance(self._client, RedisCluster):
            with self._translated_errors():
                keys = cluster.key_of_each_primary(await self._client.initialize())
        await self.write([eval_command("return 1", [key]) for key in keys], durability)

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, from one round trip (on a cluster one per node), or the first error."""
        self.breaker.check()
        return await self._ask(commands)

    async def run_on(self, make: Callable[[], Sequence[Command]]) -> list[Any]:
        """`run`, but a command that answers nothing is made again and repeated: it does its work in steps."""
        answers = await self.run(make())
        while left := [place for place, answer in enumerate(answers) if answer is None]:
            await asyncio.sleep(0)  # other callers come first
            commands = make()
            again = await self.run([commands[place] for place in left])
            for place, answer in zip(left, again, strict=True):
                answers[place] = answer
        return answers

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        """`run`, also while the breaker is open."""
        return await self._guarded(len(commands), partial(self._pipelined, commands))

    async def _pipelined(self, commands: Sequence[Command]) -> list[Any]:
        """Sends the texts of scripts only where the server does not know them; a cluster client always sends them."""
        if self.is_cluster:
            return list(await self._execute(commands))
        sent = self._texts.shortened(commands)
        answers = await self._execute(sent, raise_on_error=False)
        failed = [answer for answer in answers if isinstance(answer, Exception)]
        is_news = failed or any(command[0] == "EVAL" for command in sent)
        if is_news and (unknown := self._texts.learn(commands, answers)):
            with_texts = [commands[place] for place in unknown]
            again = await self._execute(with_texts, raise_on_error=False)
            self._texts.learn(with_texts, again)
            for place, answer in zip(unknown, again, strict=True):
                answers[place] = answer
            failed = [answer for answer in answers if isinstance(answer, Exception)]
        if failed:
            raise failed[0]
        return answers

    async def _execute(self, commands: Sequence[Command], *, raise_on_error: bool = True) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[Any] = await pipeline.execute(raise_on_error=raise_on_error)
        return answers

    async def _guarded(self, num_commands: int, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `ask` gives, with errors of the service. The breaker learns of the outcome."""
        try:
            with span("store", commands=num_commands), self._translated_errors():
                async with self._slots:
                    answer = await ask()
        except StoreUnavailable as error:
            if reason_of(error) is SLOW:
                self.breaker.timed_out()
            raise
        self.breaker.answered()
        return answer


class Breaker:
    """`probe` asks the store once, and raises StoreUnavailable when it does not answer."""

    def __init__(self, probe: Callable[[], Awaitable[None]]) -> None:
        self._probe = probe
        self._num_timeouts = 0
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._num_timeouts >= MOST_TIMEOUTS

    def check(self) -> None:
        """Raises StoreUnavailable while the store hangs."""
        if self.is_open:
            raise StoreUnavailable("The memory store did not answer several times and is not asked until it does.")

    def answered(self) -> None:
        if self.is_open:
            log.info("the store answers again")
        self._num_timeouts = 0

    def timed_out(self) -> None:
        self._num_timeouts += 1
        if self.is_open and (self._probing is None or self._probing.done()):
            log.error("the store hangs, requests are answered without it until it answers")
            self._probing = asyncio.create_task(self._ask(), name="store-probe", context=without_span())

    async def close(self) -> None:
        if self._probing is not None:
            await cancel_and_wait(self._probing)

    async def _ask(self) -> None:
        while self.is_open:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                await self._probe()
            except StoreUnavailable:
                continue
            self.answered()


@contextmanager
def _translated(errors: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        if is_about_data(error):
            raise StoreCorrupt("A key of the memory store has a value of a wrong type or form.") from error
        reason = reason_of(error)
        repeated.warning("the store does not serve", reason=reason.name, error=type(error).__name__)
        raise StoreUnavailable(f"The memory store {words_for(error)}.") from error
