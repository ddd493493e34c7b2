"""Damage, drawn by a random generator: JSON texts, tensor files, and files of any kind."""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

__all__ = ["FILE_DAMAGE", "JSON_DAMAGE", "TENSOR_DAMAGE", "metadata_keys", "metadata_text", "with_metadata_text"]

Damage = Callable[[bytes, Random], bytes]

# -- JSON ----------------------------------------------------------------------------------------------------------

_HOSTILE = (
    "[/red]",
    "[bold]x[/",
    "\x1b]0;owned\x07",
    "\x1b[2J",
    "\r\x00\x08",
    "\ud800",
    "\u202e",
    "%s%n{0}{}",
    "'; --",
    "\n\n",
)
_PATHS = ("../../x", "..", "/etc/passwd", "a/b", "~/x", "C:\\x", ".", "", "\x00")


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a JSON value that is no container."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything in a JSON value but the whole."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _nodes(item, (*path, key))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _set(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    _at(value, path[:-1])[path[-1]] = new
    return value


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=True).encode()


def _choose(value: Any, random: Random, wanted: Callable[[Any], bool] = lambda _: True) -> tuple[Any, ...] | None:
    paths = [path for path in _leaves(value) if wanted(_at(value, path))]
    return random.choice(paths) if paths else None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flip_digit(text: bytes, random: Random) -> bytes:
    places = [place for place, byte in enumerate(text) if 48 <= byte <= 57]
    if not places:
        return text[:-1]
    place = random.choice(places)
    digit = random.choice([digit for digit in range(48, 58) if digit != text[place]])
    return text[:place] + bytes([digit]) + text[place + 1 :]


def _change_number(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    path = _choose(value, random, _number)
    if path is None:
        return b"0"
    old = _at(value, path)
    new = random.choice([old + 1, -old - 1, old * 10 + 1, 0.5, 1e308, -1, 10**30, 2**63, old * (1 + 1e-12) + 1e-300])
    return _dump(_set(value, path, new))


def _not_finite(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    path = _choose(value, random, _number) or _choose(value, random)
    mark = "@@NOT-FINITE@@"
    written = random.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999", b'"NaN"', b"1" * 5000])
    return _dump(_set(value, path or (), mark)).replace(f'"{mark}"'.encode(), written)


def _change_type(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    path = random.choice(list(_nodes(value)) or [()])
    return _dump(_set(value, path, random.choice([None, True, "text", "1", 7, 1.5, [], {}, [[]], {"a": 1}])))


def _delete(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    nodes = list(_nodes(value))
    if not nodes:
        return b"{}"
    path = random.choice(nodes)
    del _at(value, path[:-1])[path[-1]]
    return _dump(value)


def _dictionaries(value: Any) -> list[tuple[Any, ...]]:
    return [path for path in ((), *_nodes(value)) if isinstance(_at(value, path), dict)]


def _add_key(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    places = _dictionaries(value)
    if not places:
        return b"{}"
    name = random.choice(["extra", "__class__", "transformer.h.0.mlp.c_proj.weight", "9", "", *_HOSTILE])
    _at(value, random.choice(places)).setdefault(name, random.choice([0, "x", None, {}, []]))
    return _dump(value)


def _rename_key(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    places = [path for path in _dictionaries(value) if _at(value, path)]
    if not places:
        return b"{}"
    table = _at(value, random.choice(places))
    name = random.choice(list(table))
    new = random.choice([f"{name}x", name[:-1], name.upper() + "_", "0", *_HOSTILE, *_PATHS])
    table[new] = table.pop(name)
    return _dump(value)


def _duplicate_key(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    if not isinstance(value, dict) or not value:
        return b'{"a": 1, "a": 2}'
    name = random.choice(list(value))
    other = random.choice([None, 0, "x", [], {}, copy.deepcopy(random.choice(list(value.values())))])
    return _dump(value).rstrip()[:-1] + f", {json.dumps(name)}: {json.dumps(other)}}}".encode()


def _replace_text(choices: tuple[str, ...]) -> Damage:
    def damage(text: bytes, random: Random) -> bytes:
        value = json.loads(text)
        path = _choose(value, random, lambda leaf: isinstance(leaf, str)) or _choose(value, random)
        chosen = random.choice(choices)
        old = _at(value, path) if path else ""
        return _dump(_set(value, path or (), random.choice([chosen, f"{old}{chosen}", f"{chosen}{old}"])))

    return damage


def _change_letter(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    path = _choose(value, random, lambda leaf: isinstance(leaf, str) and bool(leaf))
    if path is None:
        return b'"x"'
    old = _at(value, path)
    place = random.randrange(len(old))
    new = random.choice([letter for letter in "abcdefxyz0189" if letter != old[place]])
    return _dump(_set(value, path, old[:place] + new + old[place + 1 :]))


def _nest(text: bytes, random: Random) -> bytes:
    depth = random.choice([50, 300, 2000, 100_000])
    opening, closing = random.choice([(b"[", b"]"), (b'{"a":', b"}")])
    nested = opening * depth + b"1" + closing * depth
    value = json.loads(text)
    path = random.choice([(), *_nodes(value)])
    mark = "@@NESTED@@"
    return _dump(_set(value, path, mark)).replace(f'"{mark}"'.encode(), nested)


def _huge_text(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    path = random.choice([(), *_nodes(value)])
    return _dump(_set(value, path, random.choice(["x", "[", "\U0001f600", "1"]) * random.choice([10_000, 1_000_000])))


def _swap_values(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    leaves = list(_leaves(value))
    one, other = random.choice(leaves), random.choice(leaves)
    first, second = _at(value, one), _at(value, other)
    return _dump(_set(_set(value, one, second), other, first))


def _shuffle_list(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    lists = [path for path in ((), *_nodes(value)) if isinstance(_at(value, path), list) and _at(value, path)]
    if not lists:
        return b"[]"
    items = _at(value, random.choice(lists))
    action = random.randrange(3)
    if action == 0:
        items.append(copy.deepcopy(random.choice(items)))
    elif action == 1:
        items.reverse()
    else:
        items.pop(random.randrange(len(items)))
    return _dump(value)


def _other_version(text: bytes, random: Random) -> bytes:
    value = json.loads(text)
    if not isinstance(value, dict):
        return b"{}"
    names = [name for name in value if "format" in name] or ["format_version"]
    value[random.choice(names)] = random.choice([0, 2, 99, -1, "1", "bluedit-other", None, 1.5, 10**20])
    return _dump(value)


def _other_whole(_: bytes, random: Random) -> bytes:
    return random.choice(
        [b"", b"{}", b"[]", b"null", b"0", b'"x"', b"true", b"{", b"\n", b"nul", b"\xff\xfe", b"\x80\x04K\x01."]
    )


def _respelt(text: bytes, random: Random) -> bytes:
    """The same value written otherwise: no damage at all."""
    value = json.loads(text)
    if isinstance(value, dict) and random.random() < 0.5:
        names = list(value)
        random.shuffle(names)
        value = {name: value[name] for name in names}
    return json.dumps(value, indent=random.choice([None, 0, 5]), ensure_ascii=random.random() < 0.5).encode() + b"\n\n"


def _encoded(text: bytes, random: Random) -> bytes:
    plain = text.decode()
    return random.choice(
        [b"\xef\xbb\xbf" + text, plain.encode("utf-16"), plain.encode("utf-32"), plain.encode("latin-1", "replace") + b"\xe9"]
    )


# -- any file ------------------------------------------------------------------------------------------------------


def _truncate(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))] if content else b"x"


def _extend(content: bytes, random: Random) -> bytes:
    return content + random.choice([b"\0", b"\0" * 4096, random.randbytes(17), content[-64:] or b"x"])


def _flip_bit(content: bytes, random: Random) -> bytes:
    if not content:
        return b"\1"
    place = random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


def _random_bytes(content: bytes, random: Random) -> bytes:
    if random.random() < 0.5 or not content:
        return random.randbytes(random.choice([1, 8, 100, 5000]))
    start = random.randrange(len(content))
    size = random.choice([1, 4, 64, 512])
    return content[:start] + random.randbytes(size) + content[start + size :]


def _zero_block(content: bytes, random: Random) -> bytes:
    if not content:
        return b"\0"
    start, size = random.randrange(len(content)), random.choice([8, 64, 512, 4096])
    return content[:start] + bytes(len(content[start : start + size])) + content[start + size :]


def _move_block(content: bytes, random: Random) -> bytes:
    """A block that was written at the wrong place."""
    size = max(1, min(len(content) // 3, random.choice([8, 64, 512])))
    if len(content) < 2 * size:
        return content[::-1]
    start, end = random.randrange(len(content) - size), random.randrange(len(content) - size)
    return content[:end] + content[start : start + size] + content[end + size :]


FILE_DAMAGE: dict[str, Damage] = {
    "truncated": _truncate,
    "extended": _extend,
    "flipped bit": _flip_bit,
    "random bytes": _random_bytes,
    "zeroed block": _zero_block,
    "moved block": _move_block,
    "emptied": lambda _content, _random: b"",
}
"""What can happen to a file of any kind."""

JSON_DAMAGE: dict[str, Damage] = {
    "flipped digit": _flip_digit,
    "changed number": _change_number,
    "not finite": _not_finite,
    "changed type": _change_type,
    "deleted": _delete,
    "added key": _add_key,
    "renamed key": _rename_key,
    "duplicate key": _duplicate_key,
    "hostile text": _replace_text(_HOSTILE),
    "path": _replace_text(_PATHS),
    "changed letter": _change_letter,
    "nested": _nest,
    "huge text": _huge_text,
    "swapped values": _swap_values,
    "changed list": _shuffle_list,
    "other version": _other_version,
    "other whole": _other_whole,
    "respelt": _respelt,
    "other encoding": _encoded,
    "truncated": _truncate,
    "flipped bit": _flip_bit,
    "random bytes": _random_bytes,
}
"""Damage to a JSON text."""

# -- tensor files --------------------------------------------------------------------------------------------------


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _join(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def metadata_keys(content: bytes) -> list[str]:
    """The keys of a tensor file's metadata."""
    return list(_parts(content)[0].get("__metadata__", {}))


def metadata_text(content: bytes, key: str) -> bytes:
    """A text in a tensor file's metadata."""
    return _parts(content)[0]["__metadata__"][key].encode()


def with_metadata_text(content: bytes, key: str, text: bytes) -> bytes:
    """The tensor file with another text there; what is not UTF-8 is written as it is."""
    header, data = _parts(content)
    header["__metadata__"][key] = mark = "@@TEXT@@"
    try:
        written = json.dumps(text.decode()).encode()
    except UnicodeDecodeError:
        written = b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n") + b'"'
    return _join(json.dumps(header).encode().replace(f'"{mark}"'.encode(), written), data)


def _names(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _damage_header(change: Callable[[dict[str, Any], str, Random], object]) -> Damage:
    def damage(content: bytes, random: Random) -> bytes:
        header, data = _parts(content)
        names = _names(header)
        if not names:
            return content + b"\0"
        change(header, random.choice(names), random)
        return _join(header, data)

    return damage


def _damage_values(value: Callable[[Random, int], bytes]) -> Damage:
    """Overwrite one number of one tensor."""

    def damage(content: bytes, random: Random) -> bytes:
        header, data = _parts(content)
        names = [name for name in _names(header) if header[name]["data_offsets"][1] > header[name]["data_offsets"][0]]
        if not names:
            return content + b"\0"
        record = header[random.choice(names)]
        start, end = record["data_offsets"]
        size = max(1, (end - start) // max(1, math.prod(record["shape"])))
        place = start + size * random.randrange((end - start) // size)
        return _join(header, data[:place] + value(random, size)[:size].ljust(size, b"\0") + data[place + size :])

    return damage


def _float(number: float) -> Callable[[Random, int], bytes]:
    # Bytes that hold the number in float32 and in float64; other types get some bits of it.
    return lambda _, size: struct.pack("<d" if size == 8 else "<f", number)


def _flip_data_bit(content: bytes, random: Random) -> bytes:
    header, data = _parts(content)
    return _join(header, _flip_bit(data, random))


def _flip_header_bit(content: bytes, random: Random) -> bytes:
    size = 8 + int.from_bytes(content[:8], "little")
    return _flip_bit(content[:size], random) + content[size:]


def _swap_tensors(content: bytes, random: Random) -> bytes:
    header, data = _parts(content)
    names = _names(header)
    one, other = random.choice(names), random.choice(names)
    if random.random() < 0.5:
        header[one], header[other] = header[other], header[one]
    else:
        fields = ("data_offsets",)
        for name in fields:
            header[one][name], header[other][name] = header[other][name], header[one][name]
    return _join(header, data)


def _change_shape(header: dict[str, Any], name: str, random: Random) -> None:
    shape = header[name]["shape"]
    header[name]["shape"] = random.choice(
        [shape[::-1], [math.prod(shape)], [*shape, 1], [1, *shape], [], [0, *shape], [10**12, 10**12], [-1, *shape], "x", None]
    )


def _change_offsets(header: dict[str, Any], name: str, random: Random) -> None:
    start, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = random.choice(
        [[0, end - start], [start + 4, end + 4], [end, start], [start, end - 4], [start, 2**63], [-8, end], [start], None]
    )


def _change_metadata(header: dict[str, Any], _: str, random: Random) -> None:
    metadata = header.setdefault("__metadata__", {})
    if not metadata or random.random() < 0.3:
        metadata[random.choice(["extra", "manifest", "bluedit", "cursor"])] = random.choice(["", "{}", "x", "[/red]"])
        return
    name = random.choice(list(metadata))
    action = random.randrange(4)
    if action == 0:
        del metadata[name]
    elif action == 1:
        metadata[name] = random.choice([1, None, {}, "", "x", "\x1b[2J"])
    elif action == 2:
        metadata[name] = _flip_digit(str(metadata[name]).encode(), random).decode()
    else:
        header["__metadata__"] = random.choice([None, [], "x", {}])


def _rename_tensor(header: dict[str, Any], name: str, random: Random) -> None:
    header[random.choice([f"{name}x", "other", "", "[/red]", f"{name}\x00", name.upper()])] = header.pop(name)


def _drop_tensor(content: bytes, random: Random) -> bytes:
    header, data = _parts(content)
    names = _names(header)
    name = random.choice(names)
    start, end = header.pop(name)["data_offsets"]
    for other in _names(header):
        first, last = header[other]["data_offsets"]
        if first >= end:
            header[other]["data_offsets"] = [first - (end - start), last - (end - start)]
    return _join(header, data[:start] + data[end:])


def _add_tensor(content: bytes, random: Random) -> bytes:
    header, data = _parts(content)
    name = random.choice(["extra", f"{random.choice(_names(header))}.extra", "transformer.h.0.mlp.c_proj.weight.gain"])
    header[name] = {"dtype": "F32", "shape": [4], "data_offsets": [len(data), len(data) + 16]}
    return _join(header, data + bytes(16))


def _header_length(content: bytes, random: Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    return random.choice([0, 1, size - 1, size + 1, 2**40, 2**64 - 1, len(content)]).to_bytes(8, "little") + content[8:]


def _nested_header(_: bytes, random: Random) -> bytes:
    depth = random.choice([200, 100_000])
    return _join(b"[" * depth + b"]" * depth, b"")


def _duplicate_tensor(content: bytes, random: Random) -> bytes:
    header, data = _parts(content)
    names = _names(header)
    one, other = random.choice(names), random.choice(names)
    text = json.dumps(header)[:-1] + f", {json.dumps(one)}: {json.dumps(header[other])}}}"
    return _join(text.encode(), data)


TENSOR_DAMAGE: dict[str, Damage] = {
    "flipped data bit": _flip_data_bit,
    "flipped header bit": _flip_header_bit,
    "truncated": _truncate,
    "extended": _extend,
    "swapped tensors": _swap_tensors,
    "changed dtype": _damage_header(
        lambda header, name, random: header[name].update(
            dtype=random.choice(["F64", "F32", "F16", "BF16", "I32", "U8", "I64", "BOOL", "X9", 3])
        )
    ),
    "changed shape": _damage_header(_change_shape),
    "changed offsets": _damage_header(_change_offsets),
    "NaN": _damage_values(_float(math.nan)),
    "infinity": _damage_values(_float(math.inf)),
    "large number": _damage_values(_float(6.7e35)),
    "zero": _damage_values(lambda _, size: bytes(size)),
    "other number": _damage_values(lambda random, size: random.randbytes(size)),
    "zeroed block": _zero_block,
    "moved block": _move_block,
    "changed metadata": _damage_header(_change_metadata),
    "renamed tensor": _damage_header(_rename_tensor),
    "dropped tensor": _drop_tensor,
    "added tensor": _add_tensor,
    "duplicate tensor": _duplicate_tensor,
    "header length": _header_length,
    "nested header": _nested_header,
    "random bytes": _random_bytes,
    "emptied": lambda _content, _random: b"",
}
"""Damage to a safetensors file."""
