"""Every exception that a user may meet. The command line turns each into one line and an exit code."""

from __future__ import annotations

TIME_UP = 1000  # `Stopped.number` for --time_limit; no signal has this number


class ConfigError(ValueError):
    """Settings that cannot work; the message names them and says what to do."""


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, the row and the remedy."""


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


class CheckpointError(ValueError):
    """A directory that is no usable checkpoint; the message names it and says what is wrong."""


# What was given cannot be used: nothing was done, and the message says what to do.
UNUSABLE = (ConfigError, DataError, ImageError, CheckpointError)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why and where the last good weights are."""


class Stopped(Exception):
    """A signal or `--time_limit` ended the run early; it is saved. `number` is the signal's, or `TIME_UP`."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {'--time_limit' if number == TIME_UP else f'signal {number}'}")
        self.number = number


class BrokenOff(RuntimeError):
    """A job that broke down on the way; what it had done is kept, and the message says how to go on."""


class Refused(ImageError):
    """An image that asking again will not bring."""


class TooLarge(ImageError):
    """An image of more bytes or pixels than an endpoint takes."""
