"""The proof of an erasure: every file below a folder is opened and what it holds is compared with the ids that went.

Files that no table and no manifest names any more are read like all others. A column that holds ids of a known kind is
compared with the ids of that kind. In texts an id is found as a whole JSON value, and, where it has a digit and is long
enough to be told apart from other words, between characters that are no part of a word.
"""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from moonlake.embeddings.content_index import words_of
from moonlake.lake.vacuum import file_system
from moonlake.maintenance.erasure import Names, is_id, kind_of
from moonlake.settings import Settings

SQLITE = b"SQLite format 3\0"
UNREADABLE = (".safetensors", ".parquet.crc")
"""Ends of files that hold numbers only: weights, and Hadoop's checksums of Parquet files."""
ONLINE_KINDS = ("product", "user", "content")
ROWS_AT_A_TIME = 65_536


@dataclass(slots=True)
class Searched:
    """One store that was searched: a table of the lake, or a folder of the home.

    Attributes:
        files, rows: how many were read; a line of a text counts as a row.
        found: rows in which something was found, by file; a file that could not be read stands there with -1.
    """

    store: str
    files: int = 0
    rows: int = 0
    found: dict[str, int] = field(default_factory=dict)


class Search:
    """Looks for ids that went."""

    def __init__(self, names: Names) -> None:
        self.names = {kind: ids for kind, ids in names.items() if ids}
        self.subjects = frozenset[str]().union(*(names.get(kind, frozenset()) for kind in ("product", "user")))

    def rows_naming(self, name: str, column: pa.ChunkedArray | pa.Array) -> Any:
        """bool [rows]: in which rows of a column, which has this name, something is found."""
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        if isinstance(whole, pa.ChunkedArray):
            whole = pa.concat_arrays(whole.chunks)
        if pa.types.is_dictionary(whole.type):
            whole = whole.dictionary_decode()
        if pa.types.is_map(whole.type):
            whole = whole.cast(pa.list_(pa.struct({"key": whole.type.key_type, "value": whole.type.item_type})))
        if pa.types.is_list(whole.type) or pa.types.is_large_list(whole.type):
            found = np.zeros(len(whole), bool)
            rows = pc.list_parent_indices(whole).to_numpy(zero_copy_only=False)
            found[rows[self.rows_naming(name, pc.list_flatten(whole))]] = True
            return found
        if pa.types.is_struct(whole.type):
            parts = zip(whole.type, whole.flatten(), strict=True)
            found = np.zeros(len(whole), bool)
            for part, values in parts:
                found |= self.rows_naming(part.name if is_id(part.name) else name, values)
            return found
        if not (pa.types.is_string(whole.type) or pa.types.is_large_string(whole.type)):
            return np.zeros(len(whole), bool)
        if is_id(name):
            wanted = pa.array(sorted(self.names.get(kind_of(name) or "", ())), whole.type)
            return pc.is_in(whole, value_set=wanted).to_numpy(zero_copy_only=False)
        found = np.zeros(len(whole), bool)
        for each in self.spellings:
            like = pc.match_substring(whole, each, ignore_case="\\u" in each)  # \u00FC or \u00fc
            maybe = pc.fill_null(like, False).to_numpy(zero_copy_only=False)
            for row in np.flatnonzero(maybe & ~found):
                found[row] = self.in_text(whole[int(row)].as_py())
        return found

    def rows_of(self, rows: pa.Table | pa.RecordBatch) -> Any:
        """bool [rows]: in which rows of a table something is found."""
        found = np.zeros(rows.num_rows, bool)
        if set(rows.schema.names) == {"feature", "id"}:  # the vocabulary of a click model
            for name in pc.unique(rows["feature"]).to_pylist():
                found |= self.rows_naming(name, rows["id"]) & np.asarray(pc.equal(rows["feature"], name))
            return found
        if {"id_high", "id_low"} <= set(rows.schema.names):  # the vectors of a snapshot
            high, low = (rows[name].to_numpy() for name in ("id_high", "id_low"))
            of_contents = [each for each in self.names.get("content", ()) if len(each) == 32]
            gone_high, gone_low, _ = words_of(pa.array(of_contents, pa.string()))
            for one, two in zip(gone_high, gone_low, strict=True):
                found |= (high == one) & (low == two)
            return found
        for name in rows.schema.names:
            found |= self.rows_naming(name, rows[name])
        return found

    def in_text(self, text: str) -> bool:
        """Whether a text, JSON or not, names a product or user that went, or any id under a key of its kind."""
        stripped = text.lstrip()
        if stripped[:1] in ("{", "["):
            try:
                return self._in_json(json.loads(stripped), "")
            except ValueError:  # cut off, or no JSON
                pass
        return self._in_words(text)

    def in_bytes(self, content: bytes) -> bool:
        """Whether bytes hold an id as Feast's keys and values do, behind its length, or as a word that stands out."""
        return bool(self.stored.search(content)) or any(
            re.search(rb"(?<!\w)" + re.escape(each.encode()) + rb"(?!\w)", content)
            for each in self.subjects
            if _stands_out(each)
        )

    @cached_property
    def spellings(self) -> dict[str, str]:
        """The ids that went as a text may have them: plain, or escaped as JSON, or JSON inside JSON, escapes them."""
        found = {each: each for each in self.subjects}
        for each in self.subjects:
            for ascii_only in (True, False):
                escaped = each
                for _ in range(2):
                    escaped = json.dumps(escaped, ensure_ascii=ascii_only)[1:-1]
                    found.setdefault(escaped, each)
        return found

    @cached_property
    def stored(self) -> re.Pattern[bytes]:
        """Ids as Feast stores them online: behind their length, in an entity key or a protobuf value."""
        parts = []
        for kind in ONLINE_KINDS:
            for each in sorted(self.names.get(kind, ())):
                raw = each.encode()
                parts.append(re.escape(struct.pack("<I", len(raw)) + raw))
                if len(raw) > 2:
                    parts.append(b"[\x0a\x12]" + re.escape(_varint(len(raw)) + raw))
        return re.compile(b"|".join(parts) or rb"(?!)", re.DOTALL)

    def _in_json(self, value: Any, key: str) -> bool:
        if isinstance(value, dict):
            return any(self._in_json(each, name) or self._in_words(name) for name, each in value.items())
        if isinstance(value, list):
            return any(self._in_json(each, key) for each in value)
        if not isinstance(value, str):
            return False
        return value in self.names.get(kind_of(key) or "", ()) if is_id(key) else self.in_text(value)

    def _in_words(self, text: str) -> bool:
        for spelling, each in self.spellings.items():
            if spelling not in text:
                continue
            if text == each or f'"{spelling}"' in text or f'"{spelling}\\"' in text:  # the second as JSON inside JSON
                return True
            if _stands_out(each) and re.search(rf"(?<!\w){re.escape(spelling)}(?!\w)", text):
                return True
        return False


def search_home(settings: Settings, names: Names) -> list[Searched]:
    """Search results for every file below the home, and below the lake if it lies elsewhere, store by store."""
    search = Search(names)
    found = search_folder(str(settings.home), search, lambda path: _store_of(settings, path))
    if not Path(settings.lake).is_relative_to(settings.home):
        found += search_folder(settings.lake, search, lambda path: f"lake/{path.split('/')[0]}")
    return found


def search_folder(folder: str, search: Search, store_of: Callable[[str], str]) -> list[Searched]:
    """Search results for every file below a folder or URI, by the store that a file belongs to."""
    system, root = file_system(folder)
    stores: dict[str, Searched] = {}
    for info in system.get_file_info(pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True)):
        if info.type != pyarrow.fs.FileType.File:
            continue
        path = info.path.removeprefix(root).lstrip("/")
        store = store_of(path)
        searched = stores.setdefault(store, Searched(store))
        if path.endswith(UNREADABLE):
            continue
        searched.files += 1
        try:
            rows, hits = _search_file(system, info.path, search)
        except (pa.ArrowException, OSError, sqlite3.Error, UnicodeDecodeError):
            rows, hits = 0, -1
        searched.rows += rows
        if hits:
            searched.found[path] = hits
    return [stores[name] for name in sorted(stores)]


def _search_file(system: pyarrow.fs.FileSystem, path: str, search: Search) -> tuple[int, int]:
    """The number of rows in the file, and of those in which something was found."""
    if path.endswith(".parquet"):
        with system.open_input_file(path) as file:
            return _counted(search, pq.ParquetFile(file).iter_batches(ROWS_AT_A_TIME))
    if path.endswith(".arrow"):
        with system.open_input_file(path) as file:
            reader = pa.ipc.open_file(file)
            return _counted(search, (reader.get_batch(at) for at in range(reader.num_record_batches)))
    with system.open_input_file(path) as file:
        content = file.read()
    if content.startswith(SQLITE):
        rows, hits = _search_sqlite(path, search)
        return rows, hits or int(search.in_bytes(content))  # what was deleted may still lie in free pages
    if path.endswith((".json", ".jsonl", ".crc")) and b"\0" not in content:
        text = content.decode()
        try:
            json.loads(text)
            lines = [text]
        except ValueError:
            lines = text.splitlines()
        return len(lines), sum(map(search.in_text, lines))
    return 1, int(search.in_bytes(content))


def _counted(search: Search, batches: Iterator[pa.RecordBatch]) -> tuple[int, int]:
    rows = hits = 0
    for batch in batches:
        rows += batch.num_rows
        hits += int(search.rows_of(batch).sum())
    return rows, hits


def _search_sqlite(path: str, search: Search) -> tuple[int, int]:
    rows = hits = 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn:
        tables = [name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            quoted = table.replace('"', '""')
            for row in conn.execute(f'SELECT * FROM "{quoted}"'):
                rows += 1
                hits += any(
                    search.in_bytes(cell) if isinstance(cell, bytes) else isinstance(cell, str) and search.in_text(cell)
                    for cell in row
                )
    return rows, hits


def _store_of(settings: Settings, path: str) -> str:
    lake = Path(settings.lake)
    if lake.is_relative_to(settings.home):
        within = settings.home / path
        if within.is_relative_to(lake):
            return f"lake/{within.relative_to(lake).parts[0]}"
    return path.split("/")[0]


def _stands_out(text: str) -> bool:
    """True for an id that is hardly another word or number by chance."""
    digits = sum(map(str.isdigit, text))
    return bool(digits) and (len(text) >= 7 or (len(text) >= 4 and digits < len(text)))


def _varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
