"""The least rights that a user of the store needs: commands and patterns of keys, as ACL lines, and what is missing.

Scripts call commands with the rights of the user who runs them, so the commands of all scripts are listed, too. A
script asks the server whether each one is allowed (`acl_check_cmd`, Redis 7.0), which runs none of them.
"""

from collections.abc import Sequence
from typing import Any

KEYS = "automr:*", "{automr:items}:*"
SAMPLES = "automr:probe", "{automr:items}:probe"  # a key of each pattern
_BOTH = {1, 2}
CONNECTING = ["client|setinfo", "client|setname"]
READING = [
    "eval", "evalsha", "exists", "get", "getrange", "hexists", "hget", "hgetall", "hkeys", "hlen", "hmget", "hscan",
    "lrange", "scan", "sismember", "smembers", "strlen", "time", "ttl", "type", "xlen", "xrange", "xrevrange",
    "zcard", "zrange", "zrangebyscore", "zrevrange", "zscore",
]  # fmt: skip
WRITING = [
    "append", "del", "expire", "getdel", "hdel", "hincrby", "hincrbyfloat", "hset", "incr", "llen",
    "lpush", "ltrim", "rename", "rpush", "sadd", "set", "setrange", "unlink", "xack", "xadd", "xautoclaim",
    "xclaim", "xdel", "xgroup|create", "xgroup|delconsumer", "xinfo|consumers", "xpending", "xreadgroup", "zadd",
    "zrem",
]  # fmt: skip
_WITH_KEYS = {*READING, *WRITING} - {"eval", "evalsha", "scan", "time", "xreadgroup"}  # as `MISSING` calls them
DURABILITY = ["wait", "waitaof"]
FILES = ["bgrewriteaof", "bgsave", "config|get", "info"]  # `bgsave` and `config|get` are for a store with snapshots
CLUSTER = ["asking", "cluster|slots", "command"]
SERVER = sorted([*CONNECTING, *READING, *WRITING, *DURABILITY, *FILES])
EXPORTER = sorted([*CONNECTING, *READING])

# ARGV: two sample keys, commands  ->  (command, number of the sample)* that the user is not allowed
MISSING = """
local missing = {}
if not redis.acl_check_cmd then return missing end
for i = 3, #ARGV do
  for sample = 1, 2 do
    local name, part = string.match(ARGV[i], '^([^|]+)|?(.*)$')
    local key, is_allowed = ARGV[sample], nil
    if part ~= '' then is_allowed = redis.acl_check_cmd(name, part, key, key)
    else is_allowed = redis.acl_check_cmd(name, key, key, key) end
    if not is_allowed then missing[#missing + 1] = {ARGV[i], sample} end
  end
end
return missing
"""


def acl_line(name: str, commands: Sequence[str]) -> str:
    """The command that makes the user; PASSWORD is to be replaced."""
    keys, allowed = " ".join(f"~{each}" for each in KEYS), " ".join(f"+{each}" for each in commands)
    return f"ACL SETUSER {name} reset on >PASSWORD {keys} {allowed}"


def words_of(missing: Sequence[Sequence[Any]], commands: Sequence[str]) -> str:
    """What is missing, as an ACL names it: patterns of which no key may be used, and commands. '' if nothing is."""
    refused: dict[str, set[int]] = {}
    for command, sample in missing:
        refused.setdefault(command.decode(), set()).add(int(sample))
    keyed = [each for each in commands if each in _WITH_KEYS]
    closed = {sample for sample in _BOTH if keyed and all(sample in refused.get(each, ()) for each in keyed)}
    texts = [f"~{KEYS[sample - 1]}" for sample in sorted(closed)]
    for command, samples in refused.items():
        rest = samples - closed
        if rest == _BOTH - closed and rest:
            texts.append(f"+{command}")
        else:
            texts += [f"+{command} on ~{KEYS[sample - 1]}" for sample in sorted(rest)]
    return ", ".join(texts)
