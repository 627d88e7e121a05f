"""Errors that a user can cause, each one sentence that says what was wrong, what was received and what is accepted.

    StudioError
    ├── ModelError      a model file, its weights or its shape
    │   └── UnsupportedOperator
    ├── DataError       images, labels, archives
    ├── RecipeError     steps, options, order
    ├── JobError        a worker that could not do its job
    └── Cancelled       the user asked to stop; nothing already made is lost

Pages and the command line catch `StudioError` and nothing else, so that real bugs stay visible.
"""


class StudioError(Exception):
    """Base of everything a page may show as a sentence."""


class ModelError(StudioError):
    """The model file cannot be used."""


class UnsupportedOperator(ModelError):
    """The model holds an operator that the importer does not know."""

    def __init__(self, operator: str, node: str, accepted: str) -> None:
        super().__init__(f"Operator {operator} (node {node!r}) is not supported; supported are {accepted}.")
        self.operator = operator
        self.node = node


class DataError(StudioError):
    """The data file cannot be used."""


class RecipeError(StudioError):
    """The recipe cannot be read or run."""


class JobError(StudioError):
    """A job could not be started or did not finish."""


class Cancelled(StudioError):
    """The user stopped the job."""
