"""The format's entropy coder written out as docs/format.md says it: one symbol at a time, whole numbers only."""

from waterfill.codec import tables


def encode(runs):
    """Encode runs of (symbols, classes, own frequencies); twin of `rans.encode`."""
    states, words = [1 << 16] * 8, []
    for symbols, classes, own in reversed(runs):
        for n in range(len(symbols) - 1, -1, -1):
            frequencies = tables.frequencies()[classes[n]] if own is None else own
            lane, freq = n % 8, int(frequencies[symbols[n]])
            start = int(sum(frequencies[: symbols[n]]))
            x = states[lane]
            if x >= freq << 20:
                words.append(x & 0xFFFF)
                x >>= 16
            states[lane] = (x // freq << 12) + x % freq + start
    data = b"".join(state.to_bytes(4, "little") for state in states)
    return data + b"".join(word.to_bytes(2, "little") for word in reversed(words))


def decode(data, tables_of_runs):
    """Decode runs, given the classes and own frequencies of each; twin of `rans.Decoder`."""
    states = [int.from_bytes(data[4 * i : 4 * i + 4], "little") for i in range(8)]
    words = [int.from_bytes(data[i : i + 2], "little") for i in range(32, len(data), 2)]
    runs = []
    for classes, own in tables_of_runs:
        symbols = []
        for n, cls in enumerate(classes):
            x, frequencies = states[n % 8], tables.frequencies()[cls] if own is None else own
            slot, symbol, start = x & 4095, 0, 0
            while start + int(frequencies[symbol]) <= slot:
                start += int(frequencies[symbol])
                symbol += 1
            x = int(frequencies[symbol]) * (x >> 12) + slot - start
            if x < 1 << 16:
                x = x << 16 | words.pop(0)
            states[n % 8] = x
            symbols.append(symbol)
        runs.append(symbols)
    assert states == [1 << 16] * 8
    assert not words
    return runs
