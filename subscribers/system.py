"""A connected external system: its settings, limits, client and webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Field_

from settings import SettingsError, describe, system_options
from subscribers.http.rate_limit_headers import Rate
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


class System:
    """One external system: its credentials and its client, shared by its subscribers."""

    Options: ClassVar[type[BaseModel]] = Options
    #: Options that stand where the environment names others; a system that has some is always connected.
    defaults: ClassVar[Mapping[str, Any]] = {}

    #: The limits where the environment names none; None for no limit.
    requests_per_second: float | None = None
    concurrency: int | None = None
    delete_limit: int | None = 50

    #: The `http.Http` of a system that is spoken to by it.
    http: Any = None

    def __init__(self, name: str, options: BaseModel) -> None:
        self.name = name
        self.options: Any = options
        for limit in ("requests_per_second", "concurrency", "delete_limit"):
            if (value := getattr(options, limit, None)) is not None:
                setattr(self, limit, value)

    @property
    def rate(self) -> Rate | None:
        """What its answers said last of the calls that are left; None where they say nothing."""
        rate: Rate | None = self.http.rate if self.http is not None else None
        return rate

    def pace(self) -> None:
        """Wait until a call may begin. The conductor replaces it where there is a rate limit."""

    def defer_reason(self) -> str | None:
        """Why what can wait (a poll, a backfill) leaves the system alone now, in words; None: it need not."""
        return None

    @classmethod
    def from_environment(cls, name: str) -> System | None:
        """The system as the environment configures it; None where it says nothing of it.

        Raises:
          SettingsError: it says something, but not enough, or something wrong.
        """
        values = {**cls.defaults, **system_options(name)}
        if not values:
            return None
        try:
            return cls(name, cls.Options(**values))
        except ValidationError as error:
            raise SettingsError(describe(error, prefix=f"{name}_")) from None

    def verify(self, body: bytes, headers: Mapping[str, str]) -> str:
        """The id of the event this webhook carries, after checking who sent it. Header names are lower case.

        Raises:
          BadSignature: it is not from this system.
          BadWebhook: it is, but it cannot be read.
        """
        raise NotImplementedError(f"{self.name} sends no webhooks that this hub knows how to check")

    def unpack(self, body: bytes, headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
        """(id, body) of each event in a webhook request, after checking who sent it; for systems that send several.

        Raises as `verify` does.
        """
        return [(self.verify(body, headers), body)]

    def events(self, body: bytes) -> list[Event]:
        """What a verified webhook says happened."""
        raise NotImplementedError

    def acknowledgement(self, body: bytes) -> tuple[str, str] | None:
        """(body, content type) with which this webhook request has to be answered; None where a 2xx is enough."""
        return None

    def page_url(self, resource: str, external_id: str) -> str | None:
        """Where a person sees this record in the system itself."""
        return None
