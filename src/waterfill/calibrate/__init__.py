"""Calibration: a compressed model layer by layer on what its layers before hand on.

```
original   --`observe`-->  moments of every site, a sample of the inputs of every matrix
compressed --`correct`-->  at every matrix: move its target, fill it again (`InSequence`)
                           at every site:   give it back its mean and variance
```
"""

from waterfill.calibrate.sequence import InSequence
from waterfill.calibrate.statistics import Observed, correct, correct_statistics, observe

__all__ = ["InSequence", "Observed", "correct", "correct_statistics", "observe"]
