"""Every error that gradiend_hub raises on purpose, and how to quote one of others.

```
GradiendError
├── ConfigError (ValueError)         an argument or configuration value is unusable
├── DataError (ValueError)           a row or a data set is unusable
├── TrainingError (RuntimeError)     a run cannot start or go on
├── ArtifactError (ValueError)       a file of a saved direction is damaged, hostile or of another kind
│   ├── ArtifactNotFoundError        there is no direction at that path or repository
│   └── SchemaVersionError           written by a newer, incompatible version of this library
├── BaseModelError (ValueError)      the base model is missing or of the wrong kind
│   └── BaseModelMismatchError       not the model that the direction was learned on
├── EditError (RuntimeError)         an edit is impossible, would change nothing, or would break the weights
├── MissingLibraryError (ImportError)  a library that an extra brings is not installed
└── HubPushError (RuntimeError)      an upload failed; the artifact is still on disk
```

Each message names what is wrong and where, what was expected and found, and the next step. The standard base class
beside `GradiendError` lets code that knows nothing of this library keep catching `ValueError` or `RuntimeError`.
"""

from __future__ import annotations

from .printable import printable

__all__ = [
    "ArtifactError",
    "ArtifactNotFoundError",
    "BaseModelError",
    "BaseModelMismatchError",
    "ConfigError",
    "DataError",
    "EditError",
    "GradiendError",
    "HubPushError",
    "MissingLibraryError",
    "SchemaVersionError",
    "TrainingError",
    "first_line",
]


LONGEST_MESSAGE = 10_000
"""Characters of a message that are kept: it may quote a stranger."""


class GradiendError(Exception):
    """Base class of all errors of gradiend_hub. Text of strangers in a message is spelled out as by `printable`."""

    def __str__(self) -> str:
        return printable(super().__str__(), LONGEST_MESSAGE, lines=True)


class ConfigError(GradiendError, ValueError):
    """An argument or configuration value is unusable."""


class DataError(GradiendError, ValueError):
    """A row or a data set is unusable."""


class TrainingError(GradiendError, RuntimeError):
    """A training run cannot start or go on."""


class ArtifactError(GradiendError, ValueError):
    """A file of a saved direction is damaged, hostile or of another kind."""


class ArtifactNotFoundError(ArtifactError):
    """There is no direction at that path or repository."""


class SchemaVersionError(ArtifactError):
    """The artifact was written by a newer, incompatible version of this library."""


class BaseModelError(GradiendError, ValueError):
    """The base model is missing or of the wrong kind."""


class BaseModelMismatchError(BaseModelError):
    """The base model is not the one that the direction was learned on."""


class EditError(GradiendError, RuntimeError):
    """An edit is impossible, would change nothing, or would break the weights."""


class MissingLibraryError(GradiendError, ImportError):
    """A library that comes with an extra is not installed."""


class HubSearchError(GradiendError, RuntimeError):
    """The Hub could not be searched."""


class HubPushError(GradiendError, RuntimeError):
    """An upload failed; the artifact is still on disk."""


def first_line(error: BaseException) -> str:
    """Return the first line that an error's message says anything in; of an empty message, the name of its class."""
    lines = printable(error, LONGEST_MESSAGE, lines=True).split("\n")
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)
