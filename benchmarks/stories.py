"""stories260K, a bare safetensors file without data: nats per token before and after."""

from __future__ import annotations

from typing import Any

import waterfill
from decoding import decoded
from results import write
from waterfill import importance, zoo

RATES = (3.0, 4.0, 5.0, 6.0)


def row(rate: float, estimator: Any, reference: Any, test: Any) -> dict[str, Any]:
    file = zoo.data_folder() / "models" / "lm_stories260k.safetensors"
    result = waterfill.compress(file, rate=rate, importance=estimator)
    measured = waterfill.evaluate(decoded(result.data, zoo.stories260k()), test, reference=reference)
    return {
        "importance": result.importance,
        "asked bit/value": rate,
        "bytes": result.size_bytes,
        "bit/value": round(result.rate, 4),
        "nats per token": round(float(measured.cross_entropy or 0), 4),
        "KL (nats)": round(float(measured.kl or 0), 4),
    }


def main() -> None:
    reference, test = zoo.pretrained("stories260k"), list(zoo.stories_test())
    before = float(waterfill.evaluate(reference, test).cross_entropy or 0)
    estimators = (importance.identity(), importance.weight_scale(), importance.row_scale())
    rows = [row(rate, estimator, reference, test) for estimator in estimators for rate in RATES]
    text = (
        f"Before: {before:.4f} nats per token over all windows of 512 tokens. No data, no module: only the safetensors "
        "file. `row_scale`, which weighs rows as well as tensors, is the default for such files; so are 64 states."
    )
    write("stories", "stories260K without data", text, rows)


if __name__ == "__main__":
    main()
