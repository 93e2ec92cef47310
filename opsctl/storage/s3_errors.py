"""What goes wrong with an S3 service, in words: each cause with its own message and hint."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from opsctl.errors import RemovalRefused, RepositoryUnreachable


@dataclass(frozen=True)
class Place:
    """Where it went wrong, as a message names it."""

    address: str
    bucket: str
    endpoint: str


_CREDENTIALS = (
    "the service refuses the credentials ({code})",
    "Check the access key and its secret: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile.",
)
_EXPIRED = ("the credentials have expired", "Renew the session's credentials.")
_CHANGED = (
    "the bytes arrived changed, also after several attempts ({code})",
    "Something on the way spoils them: a proxy, a network card, memory.",
)
_REGION = ("the bucket {bucket} is in another region ({region})", "Set region to the bucket's own.")

CHANGED_ON_THE_WAY = ("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch")
"""What a service answers when a body is not what its checksum or its signature says."""

MAY_NOT_DELETE = "These credentials may not delete here. That is a way to set it up: docs/s3.md says how to prune then."
MAY_NOT_ABORT = "Interrupted uploads stay then, and are paid for: s3:AbortMultipartUpload allows it."

MESSAGES: dict[str, tuple[str, str]] = {
    "NoSuchBucket": (
        "there is no bucket {bucket} at {endpoint}",
        "Create it, or correct url, endpoint_url and region; opsctl creates no buckets.",
    ),
    "AccessDenied": (
        "the service denies {operation} ({said})",
        "These credentials need the right to {operation} in the bucket {bucket}; wrong ones are denied as well.",
    ),
    "InvalidObjectState": (
        "the object is archived, and cannot be read as it is",
        "Have the service bring it back (RestoreObject), then run it again.",
    ),
    "RequestTimeTooSkewed": (
        "this host's clock and the service's are {skew} apart",
        "Set this host's clock; run a time service.",
    ),
    "SlowDown": (
        "the service answers {status} {code}, also after several attempts",
        "It is overloaded or down; run it again later.",
    ),
    **dict.fromkeys(CHANGED_ON_THE_WAY, _CHANGED),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthFailure", "InvalidClientTokenId"),
        _CREDENTIALS,
    ),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"), _EXPIRED),
    **dict.fromkeys(("PermanentRedirect", "AuthorizationHeaderMalformed", "301", "IncorrectEndpoint"), _REGION),
}
"""What a service's code means and what to do about it."""


def error_code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def http_status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def service_time(answer: Any) -> datetime | None:
    """The service's clock, as an answer's head tells it."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return parsedate_to_datetime(headers["date"]).astimezone(UTC)
    except (KeyError, ValueError, TypeError):
        return None


def clock_skew(error: Any) -> str:
    """How far apart the clocks are, as far as the answer tells."""
    there = service_time(error.response)
    return f"{abs((datetime.now(UTC) - there).total_seconds()):.0f} seconds" if there else "too far"


def broken_off() -> tuple[type[Exception], ...]:
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    return (HTTPClientError, IncompleteReadError, ConnectionError, TimeoutError)


def is_broken_off(error: Exception) -> bool:
    return isinstance(error, broken_off())


def refused(place: "Place", doing: str, error: Any) -> RepositoryUnreachable:
    """What the service answered."""
    code, status = error_code(error), http_status(error)
    answer = error.response.get("Error", {})
    said = str(answer.get("Message") or "no reason given").rstrip(".")
    explained = MESSAGES.get(code)
    if explained is None and status in {401, 403}:
        explained = MESSAGES["AccessDenied"]
    if explained is None and status >= 500:
        explained = MESSAGES["SlowDown"]
    what, hint = explained or (
        "the service answered {code}: {said}",
        "Look the code up in the service's documentation.",
    )
    facts = {
        "bucket": place.bucket,
        "endpoint": place.endpoint,
        "code": code,
        "status": status,
        "said": said,
        "operation": error.operation_name,
        "region": answer.get("Region")
        or error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region", "another one"),
        "skew": clock_skew(error),
    }
    message = f"Cannot {doing} in the repository {place.address}: {what.format(**facts)}."
    if doing == "delete" and status in {403, 405, 409} and (code == "AccessDenied" or code not in MESSAGES):
        is_upload = error.operation_name == "AbortMultipartUpload"
        return RemovalRefused(message, hint=MAY_NOT_ABORT if is_upload else MAY_NOT_DELETE)
    return RepositoryUnreachable(message, hint=hint.format(**facts))


def failed(place: "Place", doing: str, error: Exception) -> RepositoryUnreachable:
    """What kept a request from being answered."""
    from botocore import exceptions

    endpoint = place.endpoint
    what, hint = str(error).rstrip("."), "Check url, endpoint_url and region of this repository."
    if isinstance(error, exceptions.ProfileNotFound):
        hint = "profile names a section of ~/.aws/config or ~/.aws/credentials."
    elif isinstance(
        error,
        exceptions.NoCredentialsError
        | exceptions.PartialCredentialsError
        | exceptions.CredentialRetrievalError
        | exceptions.TokenRetrievalError,
    ):
        what = f"there are no usable credentials ({what})"
        hint = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile."
    elif isinstance(error, exceptions.SSLError):
        what = f"no trusted TLS connection to {endpoint} ({what})"
        hint = "For a certificate authority of your own, name its certificates in ca_bundle."
    elif isinstance(error, exceptions.ConnectTimeoutError | exceptions.ReadTimeoutError):
        what = f"{endpoint} does not answer in time"
        hint = "Is the service up, and is there a firewall or a slow link in between?"
    elif isinstance(
        error,
        exceptions.EndpointConnectionError | exceptions.ConnectionClosedError | exceptions.ProxyConnectionError,
    ):
        what = f"no connection to {endpoint}, or it broke off"
        hint = "Is the service up, and endpoint_url right?"
    elif is_broken_off(error):
        what = f"the connection to {endpoint} broke off"
        hint = "Is the link stable? Run it again."
    elif isinstance(error, exceptions.ResponseParserError):
        what = f"what {endpoint} answers is not S3"
        hint = "endpoint_url has to be the address of the S3 service, not of its console."
    return RepositoryUnreachable(f"Cannot {doing} in the repository {place.address}: {what}.", hint=hint)
