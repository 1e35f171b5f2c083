"""The texts of scripts are sent once; from then on a script is called by the SHA-1 of its text (EVALSHA).

A text has up to 10 kB. To send it, and to look it up by its SHA-1, takes the server longer than most scripts do. A
server that has restarted does not know the texts any more, and says so before it does anything: then they are sent
again. Pure.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from service.store.requests import Command

_WAITS = "WAIT", "WAITAOF"


class Texts:
    """Of one server, which every connection reaches. `names`: those of the texts that the server knows."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def shortened(self, commands: Sequence[Command]) -> list[Command]:
        """The commands with names in the place of texts. If they have several texts, each text is sent once with the
        first command that has it. With names alone, a server that knows only some of the texts would run those
        commands first.
        """
        texts = [command[1] for command in commands if command[0] == "EVAL"]
        named = set() if len(set(texts)) > 1 else set(texts)
        short: list[Command] = []
        for command in commands:
            name = self.names.get(command[1]) if command[0] == "EVAL" else None
            short.append(("EVALSHA", name, *command[2:]) if name and command[1] in named else command)
            named |= {command[1]} if command[0] == "EVAL" else set()
        return short

    def learn(self, commands: Sequence[Command], answers: Sequence[Any]) -> list[int]:
        """Places of the commands that are to be sent again with their texts. What waits for them is sent again, too:
        it comes last, after a mark (see `durability.py`).
        """
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            self.names.clear()
            waits = commands[-1][0] in _WAITS
            return sorted({*unknown, len(commands) - 2, len(commands) - 1}) if waits else unknown
        for command, answer in zip(commands, answers, strict=True):
            if command[0] == "EVAL" and command[1] not in self.names and not isinstance(answer, Exception):
                self.names[command[1]] = hashlib.sha1(command[1].encode(), usedforsecurity=False).hexdigest()
        return []
