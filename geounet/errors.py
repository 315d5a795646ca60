"""What can go wrong, named so that a caller can choose what to catch.

* GeounetError
  - ConfigError      a recipe or an option says something it may not   (ValueError)
  - TilingError      tile size, halo and raster do not fit             (ValueError)
  - RasterError      an image cannot be opened, read or written        (OSError)
    . CRSError       it opens, but is not placed on the ground as needed
    . OutputError    a result cannot be written, or is already there
  - ModelError       weights and card disagree, do not load, or do not fit the image
                                                                       (ValueError)
  - TrainingError    a training run cannot start or go on              (RuntimeError)
  - LedgerError      the book of an archive cannot be read or written  (RuntimeError)
  - LockedError      another batch works in the output folder          (RuntimeError)

Each message says what was found, what was wanted and, where there is one, the next
step. An error that a user cannot mend is a bug, and propagates as whatever Python
raised.

Each error also has a code: a word for programs and for `grep`, which does not change
when a message is put better. docs/reliability.md lists them.
"""

from typing import ClassVar


class GeounetError(Exception):
    """Base of every error that geounet raises on purpose.

    Args:
        message: one line: what was found, what was wanted, what to do.
        code: what kind of trouble it is; the class's own unless given.
    """

    usual_code: ClassVar[str] = "ERROR"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code or self.usual_code


class ConfigError(GeounetError, ValueError):
    """A recipe or an option has an unknown name, or a value outside its range."""

    usual_code = "CONFIG"


class TilingError(GeounetError, ValueError):
    """A tile grid cannot be laid out as asked."""

    usual_code = "TILING"


class RasterError(GeounetError, OSError):
    """An image cannot be opened, read or written."""

    usual_code = "INPUT_UNREADABLE"


class CRSError(RasterError):
    """An image has no coordinate reference system, or not a usable one."""

    usual_code = "NO_CRS"


class OutputError(RasterError):
    """A result cannot be written, or would overwrite something it may not."""

    usual_code = "OUTPUT_UNWRITABLE"


class ModelError(GeounetError, ValueError):
    """A model file cannot be loaded, or does not fit the image."""

    usual_code = "MODEL"


class TrainingError(GeounetError, RuntimeError):
    """A training run cannot start, or cannot go on."""

    usual_code = "TRAINING"


class LedgerError(GeounetError, RuntimeError):
    """The ledger of an archive cannot be opened, read or written."""

    usual_code = "LEDGER"


class LockedError(GeounetError, RuntimeError):
    """Another batch works in the output folder."""

    usual_code = "LOCKED"
