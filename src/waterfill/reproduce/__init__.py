"""The experiments of the paper: its networks, compressors, searches and figures."""

from __future__ import annotations

from waterfill.reproduce.experiments import EXPERIMENTS, Experiment
from waterfill.reproduce.run import Options, reproduce

__all__ = ["EXPERIMENTS", "Experiment", "Options", "reproduce"]
