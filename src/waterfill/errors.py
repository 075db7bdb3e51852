"""Every error that waterfill raises on purpose."""


class WaterfillError(Exception):
    """Root of all errors of this library; its text is one clear line for the user."""


class FormatError(WaterfillError):
    """A file is not what it says it is: damaged, truncated, of another version or of another kind."""


class TargetError(WaterfillError):
    """The asked rate, size, distortion or tolerance cannot be reached; the text names the floor."""


class CalibrationError(WaterfillError):
    """The calibration data do not fit the model, or there are none."""


class UnsupportedModelError(WaterfillError):
    """The model or one of its tensors cannot be compressed as it is."""


class UsageError(WaterfillError, ValueError):
    """An argument is out of its range, or arguments contradict each other."""
