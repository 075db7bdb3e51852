"""Directories of Hugging Face models: the original, and the compressed one, whose payloads are files of their own.

A compressed directory (`docs/format.md`) is a model directory whose safetensors shards hold no weights but payloads:
each is an ordinary `.wf` file of one *group* of tensors, such as a transformer block. Nothing here needs transformers.
"""

from waterfill.bundle.checkpoint import Checkpoint
from waterfill.bundle.reader import Bundle
from waterfill.bundle.writer import BundleWriter
from waterfill.io.directory import is_bundle
from waterfill.io.parts import part_name
from waterfill.io.plain import write_plain

__all__ = ["Bundle", "BundleWriter", "Checkpoint", "is_bundle", "part_name", "write_plain"]
