"""A Stripe-like system on loopback: localstripe, with a layer that adds what it lacks compared with Stripe.

Run `python -m simulators.stripe --port 8420`, or use `with StripeLike() as stripe: ...` in a test.
This needs the packages of requirements-dev.txt.
"""

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

try:
    from aiohttp import web
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the Stripe-like system needs: pip install -r requirements-dev.txt") from error

from simulators import stripe_objects as objects
from simulators.faults import Control, Fault, Faults, Journal, own_origin
from simulators.serve import secret_from, serve
from simulators.stripe_billing import API_VERSION, Billing
from simulators.stripe_pages import Pages
from simulators.webhooks import Endpoint, WebhookSender

#: Stripe may drop an idempotency key after a day.
KEY_LIFE_SECONDS = 24 * 3600
#: The shortest interval between two writes of the data file, in seconds; longer if writing is slow.
SAVE_EVERY = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")

#: The `request` of an event, which describes the call that caused it; empty for an edit on a web page.
_cause: ContextVar[dict[str, str | None] | None] = ContextVar("cause", default=None)


class StripeLike:
    """The system, running in its own thread.

    `journal` records the API calls, `faults` holds the armed faults, `webhooks` sends the webhooks. `search_lag`
    is how many seconds a new customer stays invisible to search (in Stripe usually less than a minute).
    `start` raises OSError if the port is in use, and ValueError if the data file is not one of this simulator.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        data: str | Path | None = None,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        search_lag: float = 0.0,
    ) -> None:
        if bool(webhook_url) != bool(webhook_secret):
            raise ValueError("webhook_url and webhook_secret go together")
        self.journal, self.faults = Journal(), Faults()
        self.search_lag = search_lag
        #: The id of the account that its keys belong to.
        self.account = "acct_simulated"
        self._port = port
        self._data = Path(data) if data else None
        self._local = objects.load_localstripe()
        self._resources: Any = self._local.resources
        self._keys: dict[str, dict[str, Any]] = {}
        self._busy_keys: set[str] = set()
        self._born: dict[str, float] = {}
        self._dirty = False
        self._control = Control(self.journal, self.faults, self._own_controls())
        self.webhooks = WebhookSender(self.faults, self._endpoint, _sign)
        objects.patch(self._resources, self._publish, self._mark)
        self._billing = Billing(self._resources, self._publish_billing, self._mark)
        self._pages = Pages(self._resources, self._billing, self._all_customers)
        if webhook_url and webhook_secret:
            self._local.webhooks.register_webhook("syncflow", webhook_url, webhook_secret, None)

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> Self:
        self._load()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
        except OSError:
            listener.close()
            raise
        self._port = listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listener, ready), name="stripe-like", daemon=True)
        self._thread.start()
        ready.wait(10)
        self.webhooks.start()
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(15)
        self.webhooks.close()
        self._mark()  # webhooks may have been sent since the last change
        self._save()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(listener, ready))
        finally:
            self._loop.close()

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        app: web.Application = self._local.server.app
        app.middlewares.insert(0, self._middleware)
        app.on_response_prepare.clear()  # it lets every web page read the replies
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        ready.set()
        async with self._saving():
            await self._stopping.wait()
        await runner.cleanup()

    # --- what a user does in the dashboard: no API calls, but events -------------------------------------

    def customers(self) -> list[dict[str, Any]]:
        """Return all customers, newest first."""
        return self._in_loop(self._customers)

    def create_customer(self, **fields: Any) -> dict[str, Any]:
        return self._in_loop(lambda: self._resources.Customer._api_create(**fields)._export())

    def edit_customer(self, id: str, **fields: Any) -> dict[str, Any]:
        return self._in_loop(lambda: self._resources.Customer._api_update(id, **fields)._export())

    def delete_customer(self, id: str) -> None:
        self._in_loop(lambda: self._resources.Customer._api_delete(id))

    def by_hand(self, method: str, path: str, **params: Any) -> dict[str, Any]:
        """Change products, prices, invoices or items as a user, described by the equivalent API call."""
        answer = self._in_loop(lambda: self._billing.answer(method, path, params))
        assert answer is not None, f"nothing is served at {path}"
        return answer

    def forget_keys(self) -> None:
        """Drop all idempotency keys, as Stripe may after a day."""
        self._in_loop(self._keys.clear)

    def reset(self) -> None:
        """Remove all data and idempotency keys; journal and faults stay."""
        self._in_loop(self._flush)

    def _in_loop(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def _customers(self) -> list[dict[str, Any]]:
        return [one._export() for one in reversed(self._all_customers())]

    def _all_customers(self) -> list[Any]:
        return [one for key, one in self._resources.store.items() if key.startswith("customer:")]

    def _flush(self) -> None:
        self._resources.store.clear()
        self._billing.clear()
        self._keys.clear()
        self._mark()

    # --- every request -------------------------------------------------------------------------------------

    @property
    def _middleware(self) -> Any:
        @web.middleware
        async def front(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path.startswith("/v1/"):
                return await self._api(request, handler)
            if not own_origin(request.headers.get("Host"), request.headers.get("Origin")):
                return web.json_response({"error": "not from another site's page"}, status=403)
            if request.path.startswith("/_control/"):
                return await self._handle_control(request)
            if request.path == "/" or request.path.startswith("/ui/"):
                return await self._pages.answer(request)
            return await handler(request)

        return front

    async def _api(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        call = _Call(request, await self._params(request))
        reply = await self._reply(call, handler)
        reply.headers["Request-Id"] = call.request_id
        reply.headers["Date"] = formatdate(usegmt=True)
        drop = self.faults.take("drop", request.method, request.path)
        self.journal.record(
            request.method,
            request.path,
            call.params,
            reply.status,
            idempotency_key=call.key,
            fault="drop" if drop else call.fault,
            replayed="Idempotent-Replayed" in reply.headers,
        )
        if drop and request.transport:
            request.transport.abort()
        return reply

    async def _params(self, request: web.Request) -> dict[str, Any]:
        unflatten = self._local.server.unflatten_data
        sent = await self._local.server.get_post_data(request) if request.method == "POST" else None
        if sent is not None and not isinstance(sent, Mapping):
            sent = {"body": sent}
        return {**unflatten(request.query), **(sent or {})}

    async def _reply(self, call: "_Call", handler: Handler) -> web.Response:
        request = call.request
        if not _api_key(request).startswith("sk_test_"):
            return _error(401, "Invalid API Key provided", "invalid_request_error")
        if call.key and (known := self._replay(call)):
            return known
        # From now on, reject a repeat with the same key, including a retry after the client's timeout.
        self._busy_keys |= {call.key} if call.key else set()
        try:
            return await self._carry_out(call, handler)
        finally:
            self._busy_keys.discard(call.key or "")

    async def _carry_out(self, call: "_Call", handler: Handler) -> web.Response:
        request = call.request
        if delay := self.faults.take("delay", request.method, request.path):
            call.fault = "delay"
            await asyncio.sleep(delay.seconds)
        if fault := self.faults.take("fail", request.method, request.path):
            call.fault = "fail"
            reply, keep = _failure(fault), fault.remember
        else:
            reply = await self._answer(call, handler)
            # As in Stripe, a client may correct a call that was rejected before processing, and reuse the key.
            keep = reply.status < 400 or reply.status == 402
        if keep:
            self._remember(call, reply)
        return reply

    async def _answer(self, call: "_Call", handler: Handler) -> web.Response:
        request = call.request
        token = _cause.set({"id": call.request_id, "idempotency_key": call.key})
        try:
            if request.method == "GET" and request.path == "/v1/account":
                return web.json_response({"id": self.account, "object": "account"})
            if request.method == "GET" and request.path == "/v1/customers/search":
                return self._search(call.params)
            if (billed := self._billing.answer(request.method, request.path, call.params)) is not None:
                return web.json_response(billed)
            reply = await handler(request)
        except self._resources.UserError as error:
            reply = error.to_response()
        except web.HTTPException as error:
            return _error(error.status, f"Unrecognized request URL ({request.method}: {request.path})")
        finally:
            _cause.reset(token)
        assert isinstance(reply, web.Response)
        return self._mend_error(request, reply)

    def _mend_error(self, request: web.Request, reply: web.Response) -> web.Response:
        parts = request.path.strip("/").split("/")
        if reply.status == 404 and len(parts) >= 3:
            kind, id = parts[1].removesuffix("s"), parts[2]
            gone = objects.tombstone(self._resources, kind, id)
            if gone is not None and kind == "customer" and request.method == "GET" and len(parts) == 3:
                return web.json_response(gone._export())
            return _error(404, f"No such {kind}: '{id}'", code="resource_missing", param="id")
        message = _message(reply) if reply.status == 400 else ""
        if message.startswith("Unexpected "):
            name = message.removeprefix("Unexpected ").split(",")[0]
            return _error(400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name)
        return reply

    # --- idempotency ---------------------------------------------------------------------------------------

    def _replay(self, call: "_Call") -> web.Response | None:
        assert call.key
        if call.key in self._busy_keys:
            message = "There is currently another in-progress request using this Idempotent Key"
            return _error(409, message, "idempotency_error", code="idempotency_key_in_use")
        known = self._keys.get(call.key)
        if known is None or known["time"] < time.time() - KEY_LIFE_SECONDS:
            return None
        if known["fingerprint"] != call.fingerprint:
            message = "Keys for idempotent requests can only be used with the parameters they were first used with"
            return _error(400, message, "idempotency_error")
        headers = {"Idempotent-Replayed": "true", "Original-Request": known["request_id"]}
        return web.Response(
            text=known["body"], status=known["status"], headers=headers, content_type="application/json"
        )

    def _remember(self, call: "_Call", reply: web.Response) -> None:
        if call.key and call.request.method == "POST":
            self._keys[call.key] = {
                "fingerprint": call.fingerprint,
                "request_id": call.request_id,
                "status": reply.status,
                "body": reply.text,
                "time": time.time(),
            }
            self._mark()

    # --- search --------------------------------------------------------------------------------------------

    def _search(self, params: Mapping[str, Any]) -> web.Response:
        size = objects.page_size(self._resources, params.get("limit"))
        start = int(params["page"]) if str(params.get("page", "")).isdigit() else 0
        old_enough = time.monotonic() - self.search_lag
        visible = [one for one in reversed(self._all_customers()) if self._born.get(one.id, 0.0) <= old_enough]
        found = objects.search(self._resources, str(params.get("query", "")), visible)
        more = len(found) > start + size
        return web.json_response(
            {
                "object": "search_result",
                "url": "/v1/customers/search",
                "has_more": more,
                "next_page": str(start + size) if more else None,
                "data": [one._export() for one in found[start : start + size]],
            }
        )

    # --- events --------------------------------------------------------------------------------------------

    def _publish(self, event: Any) -> None:
        event.api_version = API_VERSION
        event.request = _cause.get() or {"id": None, "idempotency_key": None}
        if event.type == "customer.created":
            self._born[event.data["object"]["id"]] = time.monotonic()
        registered = self._local.webhooks._webhooks.items()
        names = [name for name, hook in registered if hook.events is None or event.type in hook.events]
        event.pending_webhooks = len(names)
        body = json.dumps(event._export(), indent=2, sort_keys=True).encode()
        for name in names:
            self.webhooks.send(name, event.type, body)

    def _publish_billing(self, type: str, body: dict[str, Any], previous: dict[str, Any] | None) -> None:
        event = self._resources.Event(type, objects.Shown(body))
        if previous is not None:
            event.data["previous_attributes"] = previous
        self._publish(event)

    def _endpoint(self, name: str) -> Endpoint | None:
        hook = self._local.webhooks._webhooks.get(name)
        return Endpoint(hook.url, hook.secret) if hook else None

    # --- control ---------------------------------------------------------------------------------

    async def _handle_control(self, request: web.Request) -> web.Response:
        text = await request.text()
        try:
            body = json.loads(text) if text else None
        except ValueError:
            return web.json_response({"error": "the body is not JSON"}, status=400)
        status, value = self._control.handle(request.method, request.path, request.query, body)
        return web.json_response(value, status=status)

    def _own_controls(self) -> dict[tuple[str, str], Callable[[dict[str, Any]], Any]]:
        return {
            ("DELETE", "/_control/data"): lambda _: self._flush(),
            ("GET", "/_control/customers"): lambda wanted: {
                "customers": [one for one in self._customers() if wanted.get("id") in (None, one["id"])]
            },
            ("GET", "/_control/webhooks"): lambda _: {
                "attempts": [asdict(one) for one in list(self.webhooks.attempts)],
                "pending": len(self.webhooks.pending()),
            },
        }

    # --- the data file -------------------------------------------------------------------------------------

    def _mark(self) -> None:
        self._dirty = True

    @contextlib.asynccontextmanager
    async def _saving(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self._save_now_and_then())
        try:
            yield
        finally:
            task.cancel()

    async def _save_now_and_then(self) -> None:
        while True:
            started = time.monotonic()
            self._save()
            # Writing a large store is slow and blocks all calls, so write it less often.
            await asyncio.sleep(max(SAVE_EVERY, 20 * (time.monotonic() - started)))

    def _save(self) -> None:
        if not self._dirty:
            return
        self._dirty = False
        self._forget()
        if self._data is None:
            return
        content = {
            "store": objects.to_json(self._resources),
            "billing": {"objects": self._billing.objects, "gone": self._billing.gone},
            "idempotency": self._keys,
            "webhooks": self.webhooks.pending(),
        }
        self._data.parent.mkdir(parents=True, exist_ok=True)
        aside = self._data.with_name(f"{self._data.name}.{os.getpid()}.tmp")
        aside.write_text(json.dumps(content))
        aside.replace(self._data)  # a crash while writing leaves the previous file intact

    def _forget(self) -> None:
        objects.forget_old_events(self._resources)
        limit = time.time() - KEY_LIFE_SECONDS
        self._keys = {key: known for key, known in self._keys.items() if known["time"] >= limit}

    def _load(self) -> None:
        if self._data is None or not self._data.exists():
            return
        try:
            content = json.loads(self._data.read_text())
            objects.from_json(self._resources, content["store"])
            self._billing.objects.update(content["billing"]["objects"])
            self._billing.gone.update(content["billing"]["gone"])
            self._keys = content["idempotency"]
            self.webhooks.resume(content["webhooks"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self._data} is not a data file of the Stripe-like system: {error}") from error


class _Call:
    """One API request and what is known about it."""

    def __init__(self, request: web.Request, params: dict[str, Any]) -> None:
        self.request = request
        self.params = params
        self.request_id = f"req_{secrets.token_hex(7)}"
        self.key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
        self.fault: str | None = None
        content = json.dumps([request.path, params], sort_keys=True, default=str)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()


def _api_key(request: web.Request) -> str:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme == "Bearer":
        return value
    if scheme == "Basic":
        with contextlib.suppress(ValueError):  # not base64, or not text: no key
            return base64.b64decode(value).decode().partition(":")[0]
    return ""


def _sign(secret: str, body: bytes) -> dict[str, str]:
    at = int(time.time())
    mac = hmac.new(secret.encode(), b"%d.%s" % (at, body), hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={at},v1={mac}"}


def _error(status: int, message: str, kind: str = "invalid_request_error", **more: str) -> web.Response:
    return web.json_response({"error": {"type": kind, "message": message, **more}}, status=status)


def _failure(fault: Fault) -> web.Response:
    kind, code, message = {
        401: ("invalid_request_error", "api_key_expired", "Expired API Key provided"),
        402: ("card_error", "card_declined", "Your card was declined."),
        404: ("invalid_request_error", "resource_missing", "No such object"),
        409: ("invalid_request_error", "lock_timeout", "This object cannot be accessed right now"),
        429: ("invalid_request_error", "rate_limit", "Request rate limit exceeded."),
    }.get(
        fault.status,
        ("api_error" if fault.status >= 500 else "invalid_request_error", "", "A fault on demand"),
    )
    name = fault.code or code
    reply = _error(fault.status, message, kind, **({"code": name} if name else {}))
    if fault.retry_after is not None:
        reply.headers["Retry-After"] = f"{fault.retry_after:g}"
    return reply


def _message(reply: web.Response) -> str:
    body = json.loads(reply.text or "{}")
    return str(body.get("error", {}).get("message", ""))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m simulators.stripe", description="A Stripe-like system.")
    parser.add_argument("--port", type=int, default=8420, help="the port; 0 uses a free one")
    parser.add_argument("--data", type=Path, help="file that keeps the data; without it, nothing is kept")
    parser.add_argument("--webhook-url", help="where events are sent")
    parser.add_argument("--webhook-secret-env", default="STRIPE_WEBHOOK_SECRET", metavar="NAME")
    parser.add_argument("--webhook-pause", type=float, metavar="SECONDS", help="the longest between two attempts")
    parser.add_argument("--search-lag", type=float, default=0.0, metavar="SECONDS")
    chosen = parser.parse_args(arguments)
    secret = secret_from(chosen.webhook_secret_env) if chosen.webhook_url else None
    stripe = StripeLike(
        chosen.port,
        data=chosen.data,
        webhook_url=chosen.webhook_url,
        webhook_secret=secret,
        search_lag=chosen.search_lag,
    )
    if chosen.webhook_pause is not None:
        stripe.webhooks.longest_pause = chosen.webhook_pause
    serve(stripe)


if __name__ == "__main__":
    main()
