"""Random changes of JSON and of bytes."""

import copy
import json

NUMBERS = (
    0, 1, 2, -1, -2, -3, 7, 8, 63, 64, 65, 127, 128, 255, 256, 257, 6000, 6001, 65535, 65536, 1 << 20, 1 << 26,
    (1 << 30) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 42, (1 << 42) + 1, 1 << 50, 1 << 62, 1 << 63,
    1 << 64, -(1 << 31), -(1 << 63), 10**30, 0.5, -0.0, 1e-320, 1e38, 1e308, -1e308, 1.5e300,
)  # fmt: skip
TEXTS = (
    "", "q", "x", "t", "=", "c", "v", "m", "u", "r", "p", "a", "s", "float16", "float64", "bfloat16", "bool", "int8",
    "complex64", "float8_e4m3fn", "\0", "../x", "\ud800", "é" * 70, "a" * 300, "[0:1]", "0.weight[0:3]", "NaN",
)  # fmt: skip
OTHERS = (None, True, False, [], {}, [[]], [0], [-1, -1, -1], {"a": 1}, [[[[[[[[]]]]]]]], 0, 1.5, "x")


def number(random, old):
    """A number that is near the old one, at a bound, or anything."""
    if isinstance(old, int | float) and random.random() < 0.5:
        return old + random.choice((1, -1, 2, -2, 8, -8, 64, 100, old, -2 * old))
    return random.choice(NUMBERS)


def other(random, old):
    """A value of the same type, or anything."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return number(random, old)
    if isinstance(old, str):
        return random.choice(TEXTS)
    return _any(random)


def _any(random):
    """A copy, for what is changed later would be another one for all mutants after it."""
    return copy.deepcopy(random.choice(OTHERS))


def descend(random, tree):
    """A container in a tree and a key of it; None where there is none."""
    place = None
    while isinstance(tree, list | dict) and tree:
        key = random.choice(list(tree)) if isinstance(tree, dict) else random.randrange(len(tree))
        place = tree, key
        tree = tree[key]
        if random.random() < 0.15:
            break
    return place


def change_value(random, tree):
    """Put another value somewhere."""
    place = descend(random, tree)
    if place is not None:
        container, key = place
        container[key] = other(random, container[key]) if random.random() < 0.8 else _any(random)


def change_structure(random, tree):
    """Leave out, double, move or add a member somewhere."""
    place = descend(random, tree)
    if place is None:
        return
    container, key = place
    how = random.choice(("leave out", "double", "exchange", "add"))
    if isinstance(container, dict):
        _change_members(random, container, key, how)
    elif how == "leave out":
        del container[key]
    elif how == "double":
        container[key:key] = [copy.deepcopy(container[key]) for _ in range(random.choice((1, 1, 2, 50)))]
    elif how == "exchange":
        with_ = random.randrange(len(container))
        container[key], container[with_] = container[with_], container[key]
    else:
        container.insert(key, _any(random))


def _change_members(random, container, key, how):
    if how == "leave out":
        del container[key]
    elif how == "double":
        container[f"{key}2"] = copy.deepcopy(container[key])
    elif how == "exchange":
        with_ = random.choice(list(container))
        container[key], container[with_] = container[with_], container[key]
    else:
        container[random.choice(TEXTS)] = _any(random)


def change_bytes(random, data):
    """Flip, put in, leave out, double or cut some bytes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(changed)) if changed else 0
        some = random.choice((1, 2, 4, 16))
        how = random.randrange(7)
        if how <= 1 and changed:
            changed[at] ^= 1 << random.randrange(8)
        elif how == 2 and changed:
            changed[at] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
        elif how == 3:
            changed[at:at] = random.randbytes(some)
        elif how == 4:
            del changed[at : at + some]
        elif how == 5:
            changed[at:at] = changed[at : at + 8 * some]
        else:
            del changed[at if random.random() < 0.5 else len(changed) - some :]
    return bytes(changed)


def json_text(tree):
    return json.dumps(tree).encode()
