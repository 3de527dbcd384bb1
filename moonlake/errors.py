"""The error tree. Everything that moonlake raises on purpose is a `MoonlakeError`; the CLI prints it as one line.

MoonlakeError
|-- SettingsError            a value of the environment is unknown or unusable
|-- MissingDependency        Java, a jar or a package is not there; the message says how to get it
|-- InputError               what a user submitted cannot be read: path, file, format, column
|-- ContractError            rows or tables do not fit their contract
|   |-- SchemaMismatch       a column is missing or has another type
|   |-- BatchRejected        a batch rule failed; the table was left untouched
|   `-- GateFailed           a space or a model did not pass a gate; what runs stays
|-- NotFound                 a table, version, view, column, space, model or artifact that does not exist
|-- PointInTimeError         a feature would know its future, or time columns cannot be compared
|-- SpaceMismatch            vectors of two embedding spaces would meet
|-- RecordRefused            a record that an outside writer submitted cannot be read
`-- ImageRefused             a file is not an image that we are willing to decode
"""

from __future__ import annotations


class MoonlakeError(Exception):
    """Base of all errors that moonlake raises on purpose."""


class SettingsError(MoonlakeError):
    """A value of the environment is unknown or unusable."""


class MissingDependency(MoonlakeError):
    """Java, a jar or a package is not there. The message says how to get it."""


class InputError(MoonlakeError):
    """A user's input cannot be read: path, file, format, column."""


class ContractError(MoonlakeError):
    """Rows or tables do not fit their contract."""


class SchemaMismatch(ContractError):
    """A column is missing or has another type."""


class BatchRejected(ContractError):
    """A batch rule failed; the table was left untouched."""


class GateFailed(ContractError):
    """A space or a model did not pass a gate; what runs stays."""


class NotFound(MoonlakeError):
    """A table, version, view, column, space, model or artifact that does not exist."""


class PointInTimeError(MoonlakeError):
    """A feature would know its future, or time columns cannot be compared."""


class SpaceMismatch(MoonlakeError):
    """Vectors of two embedding spaces would meet. The message names both."""


class RecordRefused(MoonlakeError):
    """A record that an outside writer submitted cannot be read.

    Attributes:
        rule: name of the rule that the record broke, as it stands in `rejects`.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class ImageRefused(MoonlakeError):
    """A file is not an image that we are willing to decode.

    Attributes:
        rule: name of the rule that the file broke, as it stands in `rejects`.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule
