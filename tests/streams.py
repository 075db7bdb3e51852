"""Data that can be read once, or do not say how many there are."""

from torch.utils.data import IterableDataset


class Once:
    """A stream that returns itself."""

    def __init__(self, items):
        self.items = iter(items)

    def __iter__(self):
        return self.items


class Samples(IterableDataset):
    """A data set of samples that says a length of its own, or none."""

    def __init__(self, samples, length=None):
        self.samples, self.length = list(samples), length

    def __iter__(self):
        return iter(self.samples)

    def __len__(self):
        if self.length is None:
            raise TypeError("no length")
        return self.length
