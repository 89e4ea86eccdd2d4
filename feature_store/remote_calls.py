"""Calls to a storage service: what is tried again and for how long, and how what stays wrong is said.

Errors are known by the names of their classes and by what they carry, so that nothing here imports a client library.
No client's own message is passed on: some hold the URL as it was typed, credentials and all.
"""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from feature_store.errors import StorageError, StoreError

PATIENCE_VARIABLE = "VITRINE_RETRY_S"
_Result = TypeVar("_Result")
# Answers about an object, which callers know what to do with.
_ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
# NoSuchUpload: a multipart upload whose completion was applied, and whose answer was lost, is gone when it is aborted.
_PASSING_CODES = {
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError"),
    *("ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "NoSuchUpload", "BadDigest"),
    *("IncompleteBody", "XAmzContentSHA256Mismatch"),
}
_PASSING_ERRORS = {
    *("ConnectionError", "HTTPClientError", "ClientConnectionError", "ClientPayloadError", "IncompleteRead"),
    *("IncompleteReadError", "ResponseStreamingError", "ResponseParserError", "FlexibleChecksumError"),
    *("FSTimeoutError", "TimeoutError"),
}
_UNREACHED_ERRORS = {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "ConnectionRefusedError"}
_CREDENTIAL_CODES = {
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed"),
    *("TokenRefreshRequired", "401"),
}
_CLIENT_PACKAGES = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs", "azure", "google", "fsspec"}
_CHAIN = 5
# The places that have answered this process, whichever root asked: one that did is away, and its address is right.
_answered: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long a call is tried again.

    Attributes:
        first_delay_s: before the second attempt, at most; it doubles from there.
        longest_delay_s: between two attempts, also where the service asks for more.
        patience_s: after the first failure nothing is tried again once so much time is over.
        unreached_s: the same for a service that never answered this process: then the address is likely wrong.
        least_attempts: made in any case, so that a slow failure is tried again too.
    """

    first_delay_s: float = 0.2
    longest_delay_s: float = 20.0
    patience_s: float = 120.0
    unreached_s: float = 5.0
    least_attempts: int = 3


def policy_from_environment() -> RetryPolicy:
    """The policy, with the patience that the environment asks for.

    Raises:
        StoreError: what the environment says is no time.
    """
    given = os.environ.get(PATIENCE_VARIABLE)
    if given is None:
        return RetryPolicy()
    try:
        patience_s = float(given)
    except ValueError:
        patience_s = -1.0
    if not 0 <= patience_s < float("inf"):
        raise StoreError(f"{PATIENCE_VARIABLE} is {given!r}; give seconds, such as 120, or unset it.")
    return RetryPolicy(patience_s=patience_s, unreached_s=min(patience_s, RetryPolicy.unreached_s))


class Caller:
    """Makes the calls to one place, each until it is answered or hopeless.

    Args:
        url: of the place, without secrets.
        policy: when to give up; by default from the environment.
    """

    def __init__(self, url: str, policy: RetryPolicy | None = None) -> None:
        self._url = url
        self._policy = policy or policy_from_environment()

    @property
    def _has_answered(self) -> bool:
        return self._url in _answered

    def call(self, doing: str, action: Callable[[], _Result]) -> _Result:
        """The action's result; failures that may pass are waited out, so the action must be safe to repeat.

        Args:
            doing: what it does, for an error: "read features/x".
            action: one request, or several that may be repeated together.

        Raises:
            StorageError: the service refuses, or kept failing.
            FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError: as the action raises them.
        """
        first_failure: float | None = None
        attempt = 0
        while True:
            attempt += 1
            try:
                result = action()
            except Exception as error:
                status, code = answer_of(error)
                if status is not None:
                    _answered.add(self._url)
                if not may_pass(error):
                    self._raise_final(doing, error)
                now = time.monotonic()
                first_failure = now if first_failure is None else first_failure
                delay_s = self._delay_s(attempt, error)
                if attempt >= self._policy.least_attempts and now + delay_s > first_failure + self._patience_s(error):
                    tried = f"{attempt} attempts in {now - first_failure:.0f} s"
                    raise self._unanswered(doing, error, status, code, tried) from error
                time.sleep(delay_s)
            else:
                _answered.add(self._url)
                return result

    def _patience_s(self, error: Exception) -> float:
        unreached = not self._has_answered and bool(_names(error) & _UNREACHED_ERRORS)
        return self._policy.unreached_s if unreached else self._policy.patience_s

    def _delay_s(self, attempt: int, error: Exception) -> float:
        most = min(self._policy.longest_delay_s, self._policy.first_delay_s * 2.0 ** min(attempt - 1, 30))
        # Anywhere below: workers that failed together must not come back together.
        return max(random.uniform(0, most), min(_asked_delay_s(error), self._policy.longest_delay_s))

    def _raise_final(self, doing: str, error: Exception) -> None:
        status, code = answer_of(error)
        if code == "NoSuchBucket":
            bucket = self._url.partition("://")[2].partition("/")[0]
            raise StorageError(
                errno.EACCES,
                f"there is no bucket {bucket!r} for {self._url}; make it, or correct the URL or AWS_ENDPOINT_URL.",
            ) from error
        if isinstance(error, _ANSWERS):
            raise error
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _CLIENT_PACKAGES:
            raise error  # a mistake of ours, not the storage's
        raise self._refused(doing, error, status, code) from error

    def _refused(self, doing: str, error: Exception, status: int | None, code: str) -> StorageError:
        names = _names(error)
        if any("Credentials" in name for name in names):
            return StorageError(
                errno.EACCES,
                f"{self._url} wants credentials, and none were found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
            )
        if code in _CREDENTIAL_CODES or status == 401:
            return StorageError(
                errno.EACCES,
                f"{self._url} does not accept the credentials ({code}); correct AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE.",
            )
        if status in {403, 405} or isinstance(error, PermissionError):
            return StorageError(
                errno.EACCES,
                f"{self._url} does not let these credentials {doing} ({code or 'forbidden'}); ask its owner for that "
                "right, or use credentials that have it.",
            )
        said = f"{status} {code}" if status is not None else type(error).__name__
        return StorageError(
            errno.EINVAL, f"{self._url} does not {doing} ({said}); correct the URL or the settings of its client."
        )

    def _unanswered(self, doing: str, error: Exception, status: int | None, code: str, tried: str) -> StorageError:
        if status is not None:
            text = f"{self._url} keeps failing to {doing} ({status} {code}, {tried}); wait until it is well again"
        elif self._has_answered:
            text = f"{self._url} no longer answers ({type(error).__name__}, {tried}: {doing}); mend the network"
        else:
            text = (
                f"{self._url} cannot be reached ({type(error).__name__}, {tried}); check network and AWS_ENDPOINT_URL"
            )
        return StorageError(errno.EIO, f"{text}, and run the same command again.")


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    status, code = answer_of(error)
    if code in _PASSING_CODES:
        return True
    if status is not None:
        return status in _PASSING_STATUS
    names = _names(error)
    return bool(names & _PASSING_ERRORS) and "SSLError" not in names


def answer_of(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and error code that the service answered with; (None, "") where it did not answer."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = str(response.get("Error", {}).get("Code", ""))
            return (status if isinstance(status, int) else None), code[:60]
    if _names(error) & _PASSING_ERRORS:
        return None, ""  # aiohttp says 400 of a body that was cut off, though nobody answered so
    for link in _chain(error):
        for name in ("status", "code"):  # aiohttp's, and that of Google's client
            status = getattr(link, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return status, str(status)
    return None, ""


def _asked_delay_s(error: BaseException) -> float:
    """The `Retry-After` of the answer in seconds, or 0."""
    for link in _chain(error):
        response: Any = getattr(link, "response", None)
        if isinstance(response, dict):
            value = str(response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", ""))
            return float(value) if value.isascii() and value.isdigit() else 0.0
    return 0.0


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from; s3fs translates botocore's errors so."""
    link: BaseException | None = error
    for _ in range(_CHAIN):
        if link is None:
            return
        yield link
        link = link.__cause__


def _names(error: BaseException) -> set[str]:
    """Names of the classes of an error, and of those that it was raised from."""
    return {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
