"""Calibration: a compressed model layer by layer on what its layers before hand on.

```
original   --one pass-->  moments of every site, a sample of the inputs of every matrix
compressed --one pass-->  at every matrix: move its target, fill it again (`InSequence`)
                          at every site:   give it back its mean and variance (`correct_statistics`)
```
"""

from waterfill.calibrate.sequence import InSequence
from waterfill.calibrate.statistics import correct_statistics

__all__ = ["InSequence", "correct_statistics"]
