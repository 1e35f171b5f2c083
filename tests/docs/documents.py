"""Markdown documents of the repository, read for the tests: code blocks, links, headings, tables.

A code block starts with a fence and an info string: the language, then words of ours.

    ```bash               run as it stands; must end with exit code 0
    ```bash serves        started, waited for until it is ready, and stopped before the next one
    ```bash needs=THING   not run, because a test machine may lack THING; what can be checked is checked
    ```json               the shape of the answer that the block before it prints
"""

import re
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_SKIPPED = {"bundles", "var", "data", "raw", "reports", "build", "dist"}


@dataclass(frozen=True)
class Block:
    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def is_shell(self) -> bool:
        return self.language in ("bash", "console")

    @property
    def is_serving(self) -> bool:
        return "serves" in self.words

    @property
    def needs(self) -> str | None:
        """What a test machine may lack."""
        return next((word.removeprefix("needs=") for word in self.words if word.startswith("needs=")), None)

    @property
    def script(self) -> str:
        """The commands. In a console block they follow `$ `; its other lines are output."""
        if self.language == "bash":
            return self.text
        return "\n".join(line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ "))


@dataclass(frozen=True)
class Document:
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        return [self._block(match) for match in _FENCE.finditer(self.text)]

    @cached_property
    def prose(self) -> str:
        """The text without code blocks."""
        return _FENCE.sub("", self.text)

    @property
    def links(self) -> list[str]:
        return [match["target"] for match in _LINK.finditer(self.prose)]

    @cached_property
    def anchors(self) -> set[str]:
        """As GitHub makes them from headings."""
        found: set[str] = set()
        for heading in _HEADING.findall(self.prose):
            kept = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            numbered = (f"{kept}-{number}" for number in range(1, 100))
            found.add(kept if kept not in found else next(each for each in numbered if each not in found))
        return found

    @cached_property
    def code_words(self) -> set[str]:
        """Every word of every `code span`."""
        return {word for span in re.findall(r"`([^`\n]+)`", self.prose) for word in re.findall(r"\w+", span)}

    def rows(self, heading: str) -> list[list[str]]:
        """Cells of all table rows below the heading and before the next one of any level."""
        section = re.split(r"^#+ ", self.text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
        lines = [line for line in section.splitlines() if line.startswith("|") and not set(line) <= set("|-: ")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    def _block(self, match: re.Match[str]) -> Block:
        language, *words = match["info"].split() or [""]
        return Block(
            language, tuple(words), textwrap.dedent(match["text"]), self.text.count("\n", 0, match.start()) + 1
        )


def documents() -> list[Document]:
    """Every Markdown file of the repository."""
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*.md")]
    kept = [path for path in found if not any(part.startswith(".") or part in _SKIPPED for part in path.parts)]
    return [Document(ROOT / path) for path in sorted(kept)]


def document(name: str) -> Document:
    return Document(ROOT / name)
