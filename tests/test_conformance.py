import pytest

import conformance
from waterfill.quantize import Scalar, Vector
from waterfill.records import Layout

MATRICES = (Layout((12, 10)), Layout((6, 4, 3, 3)), Layout((8, 5), transposed=True))
VECTORS = (Layout((40,)),)
SUBJECTS = {
    "scalar": conformance.Subject(Scalar(), MATRICES),
    "scalar that only rounds": conformance.Subject(Scalar(lmbda=0.0), MATRICES),
    "scalar with one round": conformance.Subject(Scalar(lmbda=0.3, rounds=1), MATRICES[1:2]),
    "vector": conformance.Subject(Vector(), VECTORS),
    "coarse vector": conformance.Subject(Vector(fineness=1.0), VECTORS),
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
def test_a_quantizer_conforms(check, subject):
    check(subject)
