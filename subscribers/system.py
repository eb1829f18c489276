"""A connected external system: its settings, limits, client and webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Field_

from redaction import remember_values
from settings import SettingsError, describe, system_options
from subscribers.http.rate_limit_headers import Rate
from subscribers.http.transport import MAX_RESPONSE_BYTES
from subscribers.records import Event


class Options(BaseModel):
    """A system's settings, read from the environment: the field `url` of the system `shop` is `SHOP_URL`."""

    model_config = ConfigDict(extra="ignore")

    requests_per_second: float | None = Field_(None, gt=0, description="Calls per second, over all worker processes.")
    concurrency: int | None = Field_(
        None,
        ge=1,
        description="Calls that run at the same time, over all worker processes. Without it each worker process runs"
        " up to `WORKER_THREADS`.",
    )
    delete_limit: int | None = Field_(
        None,
        ge=0,
        description="Deletions to or from the system within 10 minutes. One more pauses the system until an operator"
        " confirms them. Without it the limit is 50.",
    )
    overlap_seconds: int | None = Field_(
        None,
        ge=0,
        description="Each poll reads the changes of the last seconds again, since a system may list a change late."
        " Without it these are 300.",
    )
    max_response_bytes: int | None = Field_(
        None,
        ge=1024,
        description="Bytes of the largest response that is read, decompressed. Without it these are 16 MiB"
        " (16777216). A worker may need 30 times as much memory for each call.",
    )


class System:
    """One external system: its settings and its client, shared by its subscribers."""

    Options: ClassVar[type[BaseModel]] = Options
    #: Settings that the environment may override; a system that has some is always connected.
    defaults: ClassVar[Mapping[str, Any]] = {}

    #: The limits unless the environment sets others; None for no limit.
    requests_per_second: float | None = None
    concurrency: int | None = None
    delete_limit: int | None = 50
    #: Seconds before the present whose changes each poll reads again; those that are known already cost nothing more.
    overlap_seconds: int = 300
    #: Bytes of the largest response that is read, decompressed.
    max_response_bytes: int = MAX_RESPONSE_BYTES

    #: The HTTP client, `http.client.Http`, of a system that uses it.
    http: Any = None
    #: How often it has logged in: each login may lead to another account.
    logins: int = 0

    def __init__(self, name: str, options: BaseModel) -> None:
        self.name = name
        self.options: Any = options
        remember_values(f"system {name}", dict(options))
        for limit in ("requests_per_second", "concurrency", "delete_limit", "overlap_seconds", "max_response_bytes"):
            if (value := getattr(options, limit, None)) is not None:
                setattr(self, limit, value)

    @property
    def rate(self) -> Rate | None:
        """The rate limit as the last response reported it; None if the system does not report one."""
        rate: Rate | None = self.http.rate if self.http is not None else None
        return rate

    @property
    def clock_offset(self) -> float | None:
        """Seconds by which the system's clock is ahead of ours, by its last response; None if unknown."""
        offset: float | None = getattr(self.http, "clock_offset", None)
        return offset

    def account(self) -> str | None:
        """Return the id of the account that the login belongs to; None for a system that does not tell.

        The conductor remembers it, and pauses the system if it is another one later. Pace the calls that this makes.

        Raises:
          SyncError: the account cannot be read now.
        """
        return None

    def pace(self) -> None:
        """Wait until the rate limit allows a call. The conductor replaces this for a system with a limit."""

    def defer_reason(self) -> str | None:
        """Return why polls and backfills must not call the system now; None if they may."""
        return None

    @classmethod
    def from_environment(cls, name: str) -> System | None:
        """Return the system as the environment configures it; None if it does not.

        Raises:
          SettingsError: a setting of the system is missing or wrong.
        """
        values = {**cls.defaults, **system_options(name)}
        if not values:
            return None
        try:
            return cls(name, cls.Options(**values))
        except ValidationError as error:
            raise SettingsError(describe(error, prefix=f"{name}_")) from None

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """Verify the sender of a webhook, and return the id of its event. Header names are lower case.

        Raises:
          BadSignature: the webhook is not from this system.
          BadWebhook: it is, but its content is invalid.
        """
        raise NotImplementedError(f"{self.name} has no way to verify webhooks")

    def unpack(self, body: bytes, headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
        """Verify the sender of a webhook, and return (id, body) of each of its events.

        Override it for a system that sends several events in one request. Raises as `verify` does.
        """
        return [(self.verify(body, headers), body)]

    def events(self, body: bytes) -> list[Event]:
        """Return the events of a verified webhook."""
        raise NotImplementedError

    def acknowledgement(self, body: bytes) -> tuple[str, str] | None:
        """Return (body, content type) of the response to a webhook; None if any 2xx will do."""
        return None

    def page_url(self, resource: str, external_id: str) -> str | None:
        """Return the URL of a record's page in the system's own interface, if it has one."""
        return None
