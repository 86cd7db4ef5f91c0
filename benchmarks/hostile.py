"""Mutations of valid safetensors headers and of indexes, for `benchmarks.fuzz_header`; written without the engine."""

import json
import random
import re
import struct
from pathlib import Path

ITEM_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "I16": 16,
             "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "F32": 32, "U32": 32, "F64": 64, "I64": 64, "C64": 64,
             "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_NUMBERS = ["0", "1", "2", "3", "7", "8", "16", "-0", "-1", "1.0", "1e0", "1e2", "1e999", "255", "256", "65536",
            "2147483648", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615",
            "18446744073709551616", "9" * 30, "9" * 400, "9" * 4300, "9" * 4400, "01", "+1", "0x10", "true", "null",
            "NaN", "Infinity", "-Infinity", "[]", "{}", '"1"', "[1]"]
_STRINGS = ['""', '"a"', '"b"', '"a.weight"', '"__metadata__"', '"\\u005f_metadata__"', '"../x"', '"/etc/passwd"',
            '"a/b"', '"a\\\\b"', '"a\\u0000b"', '"\\n"', '"\n"', '"\x7f"', '"\\ud800"', '"\\udc00\\ud800"',
            '"\\ud83d\\ude00"', '"\\uD8"', '"\\x"', '"\u202eb"', '"\U0001f600"', '"e\u0301"', '"' + "n" * 3000 + '"',
            "null", "3", "{}", "[]", "'a'", "a", '"U8"', '"F32"', '"NEW"', '"u8"', '"F4"', '"F6_E2M3"', '"I4"',
            '{"U8":null}', '"dtype"', '"shape"', '"\\u0064type"']
_EXTRAS = ["1", "null", '"x"', "NaN", "1e999", "-1e999", "1e308", "[[[]]]", "[" * 60 + "]" * 60, "[" * 124 + "]" * 124,
           "[" * 125 + "]" * 125, "[" * 126 + "]" * 126, "[" * 2000 + "]" * 2000, '{"a":' * 125 + "0" + "}" * 125,
           '{"y":1,"y":2}', "9" * 400, "9" * 300, "-0", '"\\ud800"', "[" * 5000]
_BYTES = [b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80", b'"', b"\\", b",",
          b"{", b"}", b"[", b"]", b" ", b"\n", b"\x0c", b"-", b".", b"e5", b"//", b"\xe2\x80\xa8"]
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?')
#: Two shards and a link to the first.
SHARDS = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "twice.safetensors")


def valid_header(source: random.Random) -> tuple[list[tuple[str, str]], int]:
    """Pairs of JSON texts of a well-formed header, and the length of its data."""
    pairs, at = [], 0
    if source.random() < 0.5:
        pairs.append(('"__metadata__"', source.choice(['{"title":"x"}', "{}", "null", '{"a":"b","format":"pt"}'])))
    for index in range(source.randrange(4)):
        dtype = source.choice(list(ITEM_BITS))
        shape = [source.choice([0, 1, 2, 3, 4, 8]) for _ in range(source.randrange(4))]
        items = 1
        for size in shape:
            items *= size
        nbytes = items * ITEM_BITS[dtype] // 8
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        pairs.append((json.dumps(f"{'abc'[index]}.weight"), json.dumps(entry, separators=(",", ":"))))
        at += nbytes
    return pairs, at


def mutated_header(source: random.Random) -> bytes:
    """A file with one to four mutations; now and then none, or bytes without any order."""
    if source.random() < 0.02:
        return source.randbytes(source.randrange(60))
    pairs, nbytes = valid_header(source)
    mutations = source.choice([0, 1, 1, 1, 2, 2, 3, 4])
    for _ in range(mutations):
        if pairs and source.random() < 0.35:
            _change_pairs(source, pairs)
    text = ("{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}").encode("utf-8", "surrogatepass")
    for _ in range(mutations):
        if source.random() < 0.7:
            text = _change_text(source, text)
    return _framed(source, text, nbytes, mutations)


def _framed(source: random.Random, text: bytes, nbytes: int, mutations: int) -> bytes:
    """The file: length, header, data; with mutations the length and the data are wrong now and then."""
    chance = source.random() if mutations else 1.0
    if chance < 0.03:
        text = text.decode("utf-8", "replace").encode(source.choice(["utf-16", "utf-16-le", "utf-32-le",
        "utf-8-sig"]))
    elif chance > 0.9:
        text += b" " * (-len(text) % 8)
    if 0.03 <= chance < 0.06:
        text = text.ljust(source.choice([123, 640, 1152]))
    length = len(text)
    if 0.06 <= chance < 0.1:
        length = source.choice([0, 1, length - 1, length + 1, 100_000_000, 100_000_001, 2**32, 2**63, 2**64 - 1])
    if 0.1 <= chance < 0.14:
        nbytes = max(0, nbytes + source.choice([-8, -1, 1, 8, 100]))
    return struct.pack("<Q", max(0, length)) + text + bytes(range(256)) * (nbytes // 256) + bytes(range(nbytes % 256))


def _change_pairs(source: random.Random, pairs: list[tuple[str, str]]) -> None:
    at = source.randrange(len(pairs))
    name, value = pairs[at]
    choice = source.randrange(7)
    if choice == 0:
        pairs.append((name, source.choice(pairs)[1]))
    elif choice == 1:
        pairs[at] = source.choice(_STRINGS), value
    elif choice == 2:
        pairs[at] = name, source.choice(_STRINGS + _EXTRAS)
    elif choice == 3 and value.startswith("{") and value != "{}":
        field = source.choice(['"x"', '"dtype"', '"shape"', '"__metadata__"'])
        pairs[at] = name, value[:-1] + f",{field}:{source.choice(_EXTRAS)}}}"
    elif choice == 4:
        pairs.insert(0, (source.choice(_STRINGS), source.choice(_EXTRAS + ['["U8",[0],[0,0]]'])))
    elif choice == 5:
        del pairs[at]
    else:
        source.shuffle(pairs)


def _change_text(source: random.Random, text: bytes) -> bytes:
    """One token or some bytes of a header changed."""
    tokens = list(_TOKEN.finditer(text))
    if tokens and source.random() < 0.7:
        token = source.choice(tokens)
        new = source.choice(_STRINGS if token[0].startswith(b'"') else _NUMBERS).encode("utf-8", "surrogatepass")
        return text[:token.start()] + new + text[token.end():]
    at = source.randrange(len(text) + 1)
    end = min(len(text), at + source.choice([0, 1, 1, 2, 8]))
    return text[:at] + source.choice([*_BYTES, source.randbytes(1), b""]) + text[end:]


def write_shards(folder: Path) -> None:
    """The shards that indexes are about, beside things that are none."""
    for name, tensor in zip(SHARDS, ("a", "b"), strict=False):
        text = json.dumps({tensor: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + b"1")
    (folder / SHARDS[2]).symlink_to(SHARDS[0])
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (folder / "folder.safetensors").mkdir()


def mutated_index(source: random.Random) -> bytes:
    """The text of an index, mostly with something wrong."""
    files = [*SHARDS, *SHARDS, *SHARDS, "loop.safetensors", "folder.safetensors",
    "index.json",
             "../m.safetensors", "/etc/passwd", "/m.safetensors", "..\\m.safetensors", "C:m.safetensors",
             "\\\\host\\m.safetensors", "m.safetensors:s.safetensors", "CON.safetensors", "a\0.safetensors",
             "\ud800.safetensors", "n" * 5000 + ".safetensors", "", ".", "..", ".safetensors", "./" + SHARDS[0], 3,
             None, []]
    table = {tensor: source.choice(files) if source.random() < 0.4 else name
             for tensor, name in zip(("a", "b"), SHARDS, strict=False)}
    if source.random() < 0.3:
        table[source.choice(["c", "", "a\n", "\ud800", "n" * 5000])] = source.choice(files)
    text = json.dumps({"metadata": {"total_size": 2}, "weight_map": table}).encode()
    if source.random() < 0.15:
        text = text.replace(b'"b"', b'"a"')
    for _ in range(source.choice([0, 0, 0, 1, 2])):
        text = _change_text(source, text)
    return text
