"""Text files as they come: compressed or not, in one of several encodings.

In: a path. Out: its text as pieces of UTF-8 that end at line ends. Compression and encoding are found by looking at
the bytes. The name of a file decides nothing. A character that cannot be decoded is an error, never U+FFFD.
"""

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow
from tqdm import tqdm

from training.data.faults import DataError, Notes, one_line

BLOCK_BYTES = 1 << 24
MAX_LINE_BYTES = 1 << 28
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}
_NO_TEXT = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save it as CSV",
    b"PAR1": "a parquet file: use --format parquet",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save it as CSV",
    b"SQLite format 3": "an SQLite database: export its tables as CSV",
}
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError, ValueError)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # bytes that "surrogateescape" could not decode
_NOT_ASCII = re.compile("[^\x00-\x7f\udc80-\udcff]")
_CONTROLS = re.compile(rb"[\x80-\x9f]")  # letters and quotation marks in Windows-1252, not used in Latin-1
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # in Windows-1252


@dataclass(frozen=True)
class TextFile:
    path: Path
    compression: str | None  # gzip, zstd, bzip2, xz or None
    encoding: str  # utf-8, utf-8-sig, utf-16[-le|-be], windows-1252, latin-1, or what the caller named

    @classmethod
    def open(cls, path: Path, encoding: str | None, notes: Notes) -> "TextFile":
        """`encoding` None: found by looking at the whole file. Raises DataError."""
        try:
            with path.open("rb") as file:
                head = file.read(32)
            if encoding is not None:
                codecs.lookup(encoding)
        except OSError as error:
            raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
        except LookupError as error:
            raise DataError(f"--encoding: {error}") from error
        for magic, advice in _NO_TEXT.items():
            if head.startswith(magic):
                raise DataError(f"{path}: not text but {advice}")
        compression = next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)
        return cls(path, compression, encoding or _find_encoding(path, compression, notes))

    def first_line(self) -> str:
        """Without its line end; "" if the file is empty."""
        for piece in self.pieces(progress=False):
            return piece.partition(b"\n")[0].decode()
        return ""

    def pieces(self, *, progress: bool = True) -> Iterator[bytes]:
        """Whole lines in UTF-8 without a byte order mark. Each line ends with a line feed. Raises DataError."""
        decoder = codecs.getincrementaldecoder(self.encoding)("strict")
        is_utf8 = self.encoding == "utf-8"
        rest, num_lines = b"", 0
        for block in chain(_blocks(self.path, self.compression, progress=progress), [b""]):
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                wrong = f"not {self.encoding} ({error.reason})"
                raise DataError(f"{self.path} after line {num_lines}: {wrong}; --encoding names another") from error
            rest += block if is_utf8 else text.encode()
            if b"\n" not in rest and b"\r" in rest[:-1]:  # line ends of old Macs
                rest = rest.replace(b"\r", b"\n")
            whole, line_end, rest = rest.rpartition(b"\n")
            if line_end:
                num_lines += whole.count(b"\n") + 1
                yield (whole + line_end).replace(b"\r\n", b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise DataError(f"{self.path} line {num_lines + 1}: longer than {MAX_LINE_BYTES} bytes; not a table")
        if rest:
            yield rest.removesuffix(b"\r") + b"\n"

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered from 1, without line ends and blank lines."""
        number = 0
        for piece in self.pieces():
            for line in piece[:-1].split(b"\n"):
                number += 1
                if line.strip():
                    yield number, line


def _blocks(path: Path, compression: str | None, *, progress: bool = False) -> Iterator[bytes]:
    """The decompressed bytes. Progress, on a terminal only, counts bytes of the file itself."""
    with (
        path.open("rb") as raw,
        tqdm(
            total=path.stat().st_size,
            desc=path.name,
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar,
    ):
        try:
            plain = _decompressed(raw, compression)
            while block := plain.read(BLOCK_BYTES):
                yield block
                bar.update(raw.tell() - bar.n)
        except _DAMAGED as error:
            raise DataError(f"{path}: cut short or damaged ({one_line(error)}); download it again") from error


def _decompressed(raw: BinaryIO, compression: str | None) -> BinaryIO:
    match compression:
        case "gzip":
            return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        case "bzip2":
            return cast(BinaryIO, bz2.BZ2File(raw))
        case "xz":
            return cast(BinaryIO, lzma.LZMAFile(raw))
        case "zstd":
            return cast(BinaryIO, pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"))
        case _:
            return raw


def _find_encoding(path: Path, compression: str | None, notes: Notes) -> str:
    blocks = _blocks(path, compression)
    head = next(blocks, b"")
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    sample = head[:4096]
    zeros = [sample[start::2].count(0) / max(1, len(sample) // 2) for start in (0, 1)]
    if max(zeros) > 0.3:  # ASCII characters have one zero byte in UTF-16
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    try:
        for block in chain([head], blocks):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return _eight_bits(path, compression, notes)
    return "utf-8"


def _eight_bits(path: Path, compression: str | None, notes: Notes) -> str:
    """The encoding of a file that is not UTF-8: Windows-1252, or Latin-1 where both are the same.

    Raises DataError if at least half of the characters beyond ASCII are UTF-8: then the file is damaged, or a mixture.
    Where fewer are, the lines that have them are noted: their characters are read as two or three others.
    """
    num_lines, num_utf8, num_other, num_changed, num_mixed = 0, 0, 0, 0, 0
    first_line, first, first_mixed, is_windows = 0, b"", "", False
    for piece in TextFile(path, compression, "latin-1").pieces(progress=False):
        raw = piece.decode().encode("latin-1")
        text = raw.decode("utf-8", "surrogateescape")
        num_utf8 += len(_NOT_ASCII.findall(text))
        num_other += len(_NOT_UTF8.findall(text))
        is_windows = is_windows or _CONTROLS.search(raw) is not None
        if _UNDEFINED.search(raw) and num_other > num_utf8:
            raise DataError(f"{path}: neither UTF-8 nor Windows-1252; name its encoding with --encoding")
        for number, line in enumerate(text.split("\n"), start=num_lines + 1):
            if _NOT_UTF8.search(line):
                num_changed += 1
                first_line, first = (
                    (first_line, first) if first_line else (number, line.encode(errors="surrogateescape"))
                )
            if not line.isascii() and _NOT_ASCII.search(line):
                num_mixed += 1
                first_mixed = first_mixed or f"{path.name} line {number}: {one_line(_NOT_UTF8.sub('?', line))}"
        num_lines += piece.count(b"\n")
    encoding = "windows-1252" if is_windows else "latin-1"
    example = f"{path.name} line {first_line}: {one_line(first.decode(encoding, 'backslashreplace'))}"
    if num_utf8 >= num_other:
        raise DataError(f"{example}: this line is not UTF-8, others are; correct it, or name an encoding: --encoding")
    notes.add(f"lines_read_as_{encoding}", num_changed, example)
    notes.add(f"lines_of_utf-8_read_as_{encoding}", num_mixed, first_mixed)
    return encoding
