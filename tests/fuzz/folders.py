"""Changes of compressed directories, by their kind: each takes a source of random numbers and the files by path."""

import json
import struct

from fuzz import files, values
from fuzz.anatomy import shard_apart, shard_together
from waterfill.io.digest import KEY, directory_digest, payload_digest

LINKS = ("nothing", "..", "/etc/hostname", "config.json", "x" * 300)


def any_file(random, contents):
    """Bytes of any file."""
    name = random.choice(list(contents))
    return contents | {name: values.change_bytes(random, contents[name])}


def configuration(random, contents):
    """Values and members of `config.json`."""
    config = json.loads(contents["config.json"])
    tree = config["quantization_config"] if random.random() < 0.8 else config
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice((values.change_value, values.change_structure))(random, tree)
    return contents | {"config.json": values.json_text(config)}


def shard_header(random, contents):
    """Values and members of the header of a shard."""
    name = random.choice([each for each in contents if each.endswith(".safetensors")])
    header, data = shard_apart(contents[name])
    random.choice((values.change_value, values.change_structure))(random, header)
    return contents | {name: shard_together(header, data)}


def shard_data(random, contents):
    """Payloads in a shard: changed, exchanged, cut, with a header that suits them or not."""
    name = random.choice([each for each in contents if each.endswith(".safetensors")])
    header, data = shard_apart(contents[name])
    data = values.change_bytes(random, data)
    lines = [line for key, line in header.items() if key != "__metadata__"]
    if random.random() < 0.5:
        last = max(lines, key=lambda line: line["data_offsets"][1])
        last["data_offsets"][1] = len(data)
        last["shape"] = [max(0, len(data) - last["data_offsets"][0])]
    return contents | {name: shard_together(header, data)}


def index(random, contents):
    """Which shard has which payload."""
    found = [each for each in contents if each.endswith(".index.json")]
    if not found:
        return configuration(random, contents)
    tree = json.loads(contents[found[0]])
    random.choice((values.change_value, values.change_structure))(random, tree)
    return contents | {found[0]: values.json_text(tree)}


def members(random, contents):
    """Files left out, renamed, exchanged, or something else than files."""
    names, changed = list(contents), dict(contents)
    name, how = random.choice(names), random.randrange(6)
    if how == 0:
        del changed[name]
    elif how == 1:
        changed[f"{name}.bak"] = changed.pop(name)
    elif how == 2:
        another = random.choice(names)
        changed[name], changed[another] = changed[another], changed[name]
    elif how == 3:
        changed[name] = None
    elif how == 4:
        changed[name] = ("link", random.choice((*LINKS, name)))
    else:
        changed[random.choice(("model.safetensors", "x.bin", "pytorch_model.bin", "waterfill.safetensors"))] = b"odd"
    return changed


KINDS = {
    f"directory {function.__name__}": function
    for function in (any_file, configuration, shard_header, shard_data, index, members)
}
RESEALED = ("directory configuration", "directory shard_header", "directory shard_data", "directory index")
"""Half of these get a digest that suits them, as someone has who changes all of a directory on purpose."""

PAYLOAD = "directory payload"
"""A payload is changed as a file is, and all the rest suits it."""


def payload(random, groups):
    """Payloads, one of them changed."""
    name = random.choice(list(groups))
    kind = random.choice([kind for kind in ("mixture", *files.KINDS) if files.suits(kind, groups[name])])
    return groups | {name: files.changed(kind, random, groups[name], list(groups.values()))}


def resealed(contents):
    """The same files with the digest of what they have now; as they are, where there is not enough for one."""
    shards = [name for name in contents if name.endswith(".safetensors")]
    try:
        apart = {name: shard_apart(contents[name]) for name in shards}
        digest = _digest(json.loads(contents["config.json"]), apart.values())
        for header, _ in apart.values():
            header.setdefault("__metadata__", {})[KEY] = digest
        return contents | {name: shard_together(header, data) for name, (header, data) in apart.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, struct.error):
        return contents


def _digest(config, shards):
    described = {"weights": None, "dtype": None, **config["quantization_config"]}
    payloads = {
        name: data[slice(*line["data_offsets"])]
        for header, data in shards
        for name, line in header.items()
        if name != "__metadata__"
    }
    digests = [payload_digest(payloads[group["tensor"]]) for group in described["groups"]]
    return directory_digest(config, described, digests)
