"""Models and state dicts to weights in normal form, and back: the only code that knows layer types."""

from waterfill.models.cloning import clone
from waterfill.models.norms import FoldedNorm, folded_norms
from waterfill.models.state_dict import assemble, assemble_one, load_tensors, read, save_tensors
from waterfill.models.torch_module import fill, inventory

__all__ = [
    "FoldedNorm",
    "assemble",
    "assemble_one",
    "clone",
    "fill",
    "folded_norms",
    "inventory",
    "load_tensors",
    "read",
    "save_tensors",
]
