"""Every error has a status, and the module's docstring lists it."""

from collections.abc import Iterator

import pytest

from service import errors
from service.errors import STATUS, ServiceError, StartupError, status_of
from service.http.problems import slug


def subclasses(cls: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from subclasses(child)


DEFINED = [cls for cls in subclasses(ServiceError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", DEFINED, ids=lambda cls: cls.__name__)
def test_every_error_has_a_status_and_is_listed(cls: type[ServiceError]) -> None:
    entries = [base for base in cls.__mro__ if base in STATUS]
    own_family = [base for base in entries if base is not ServiceError]
    assert cls is ServiceError or own_family, f"{cls.__name__} has no status"
    assert cls.__name__ in (errors.__doc__ or ""), f"{cls.__name__} is not in the docstring"
    assert cls.title


def test_other_exceptions_have_the_status_500() -> None:
    assert status_of(KeyError("x")) == 500


def test_errors_that_can_be_retried_say_when() -> None:
    retried = [cls for cls in DEFINED if STATUS[next(base for base in cls.__mro__ if base in STATUS)] in (429, 503)]
    takes_time = (errors.LockedOut, errors.RateLimited)  # the cause knows how long
    built = [cls("a reason", retry_after_s=2.0) if issubclass(cls, takes_time) else cls() for cls in retried]
    assert built and all(error.retry_after_s is not None for error in built)


def test_store_in_use_and_insecure_bind_are_startup_errors() -> None:
    assert all(issubclass(cls, StartupError) for cls in DEFINED if cls.__name__ in ("StoreInUse", "InsecureBind"))


def test_slug() -> None:
    assert slug(errors.UnknownItem()) == "unknown-item"
