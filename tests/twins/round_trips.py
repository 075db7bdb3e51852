"""What every stream of pieces has to do."""

import numpy as np

from waterfill.codec import pieces, rans


def check_round_trip(parts):
    """Pairs of integers and their model come back from one stream, which is as long as they take."""
    values, models = zip(*parts, strict=True)
    stream = pieces.encode(values, models)
    for part, found in zip(values, pieces.decode(stream, models), strict=True):
        assert found.dtype == np.int32
        assert (found == part).all()
    ideal = sum(pieces.ideal_bits(*each) for each in parts)
    assert 8 * (len(stream) - rans.HEADER_BYTES) <= 1.005 * ideal + 16
    assert 8 * len(stream) >= ideal
