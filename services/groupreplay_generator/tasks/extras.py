"""Imports of packages that only some tasks need."""

from importlib import import_module
from types import ModuleType


class MissingPackageError(ImportError):
    """A package that a task needs is not installed; the message says how to install it."""


def import_extra(module: str, *, package: str, what: str) -> ModuleType:
    """Return a module of the extra `tasks`.

    Args:
        module: its name in Python; `package` is its name at the index.
        what: who needs it, for the error.

    Raises:
        MissingPackageError: the package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingPackageError(f"{what} needs the package {package}: pip install 'groupreplay[tasks]'") from error
