"""What a process warns of at its start: settings that are probably not meant so."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

from settings import Settings
from subscribers.unknown_settings import unknown_settings
from workers.runtime import Runtime


def warnings(runtime: Runtime) -> list[str]:
    """Return a message for each unknown name in `.env`, and for each address that is called without encryption."""
    return [*unknown_settings(), *_plain_http(runtime)]


def _plain_http(runtime: Runtime) -> Iterator[str]:
    for name, system in sorted(runtime.conductor.context.systems.items()):
        for option, value in system.options:
            yield from _warning(f"{name}_{option}".upper().replace("-", "_"), value)
    yield from _warning("RABBITMQ_MANAGEMENT_URL", _management_url(runtime.settings))


def _management_url(settings: Settings) -> str:
    return "" if settings.standalone else settings.management_page


def _warning(name: str, value: object) -> Iterator[str]:
    text = str(value) if isinstance(value, str) else ""
    if text.lower().startswith("http://") and (host := _host(text)) and not _is_local(host):
        yield f"{name}: http:// sends credentials and data to {host} without encryption; use https://"


def _host(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
