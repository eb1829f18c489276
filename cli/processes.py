"""Commands that run the hub: its four processes, or all of them as threads of one.

Only the web process loads Flask, which takes 20 MB.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from cli.start_warnings import warnings
from settings import ROOT, SettingsError, get_settings
from workers.actors import register
from workers.relay import Relay
from workers.runtime import (
    Heartbeat,
    Runtime,
    build,
    build_when_up,
    configure_logging,
    prepare_for_work,
    stop_on_signals,
)
from workers.scheduler import TickScheduler, run_tasks
from workers.worker import WorkerPool, wait_for_broker

logger = logging.getLogger(__name__)


def _start(kind: str) -> tuple[Runtime, threading.Event, Heartbeat]:
    settings = get_settings()
    configure_logging(settings)
    if settings.standalone:
        raise SettingsError(
            f"BROKER_URL: a {kind} process needs RabbitMQ (amqp://...); with memory://, run ./syncflow standalone"
        )
    runtime = build_when_up(settings, by_key=True)
    for message in warnings(runtime):
        logger.warning(message)
    stop = threading.Event()
    stop_on_signals(stop, runtime.database)
    prepare_for_work()
    return runtime, stop, Heartbeat(runtime.database, kind).start()


def relay(_arguments: argparse.Namespace) -> int:
    """Publish captured changes until stopped."""
    runtime, stop, heartbeat = _start("relay")
    wait_for_broker(runtime, stop)
    Relay(runtime.conductor, runtime.settings.sweep_seconds).run(stop)
    heartbeat.stop()
    runtime.close()
    return 0


def worker(_arguments: argparse.Namespace) -> int:
    """Process the queues until stopped."""
    runtime, stop, heartbeat = _start("worker")
    wait_for_broker(runtime, stop)
    if not stop.is_set():  # The process may be stopped before the broker is up.
        pool = WorkerPool(runtime)
        pool.start()
        stop.wait()
        pool.stop()
    heartbeat.stop()
    runtime.close()
    return 0


def scheduler(_arguments: argparse.Namespace) -> int:
    """Start periodic jobs and run tasks until stopped."""
    runtime, stop, heartbeat = _start("scheduler")
    wait_for_broker(runtime, stop)
    register(runtime.broker, runtime.conductor)
    _tick(runtime, stop)
    heartbeat.stop()
    runtime.close()
    return 0


def _tick(runtime: Runtime, stop: threading.Event) -> None:
    ticker = TickScheduler(runtime.broker.get_actor("tick"), stop)
    tasks = threading.Thread(target=run_tasks, args=(runtime.conductor, stop), name="tasks", daemon=True)
    tasks.start()

    def stop_scheduler(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        runtime.database.hurry()
        ticker.wake()

    signal.signal(signal.SIGTERM, stop_scheduler)
    signal.signal(signal.SIGINT, stop_scheduler)
    if not stop.is_set():
        ticker.run()
    tasks.join(runtime.settings.grace_seconds)


def web(_arguments: argparse.Namespace) -> int:
    """Serve the panel with gunicorn, which replaces this process."""
    settings = get_settings()
    configure_logging(settings)
    runtime = build_when_up(settings)  # reports a wrong setting once, not once per gunicorn worker
    settings.secret()
    if settings.standalone:
        logger.warning("BROKER_URL is memory://, so no process delivers or polls: run ./syncflow standalone instead")
    for message in warnings(runtime):
        logger.warning(message)
    runtime.close()
    gunicorn = gunicorn_arguments(
        "cli.processes:application()", f"{settings.host}:{settings.port}", int(settings.grace_seconds)
    )
    if settings.behind_proxy:
        gunicorn += ["--forwarded-allow-ips", "*"]
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, *gunicorn])


def gunicorn_arguments(application: str, bind: str, grace: int) -> list[str]:
    """Return the arguments with which Python runs gunicorn; `grace` in seconds."""
    return [
        "-m", "gunicorn", application, "--bind", bind,
        "--worker-class", "panel.gunicorn_worker.PanelWorker", "--workers", "2", "--threads", "8", "--keep-alive", "0",
        "--graceful-timeout", str(grace), "--log-level", "warning",
    ]  # fmt: skip


def application() -> Any:
    """Return the WSGI application; gunicorn calls this in each of its workers."""
    from panel.app import create_app  # noqa: PLC0415

    settings = get_settings()
    configure_logging(settings)
    runtime = build_when_up(settings)
    heartbeat = Heartbeat(runtime.database, "web").start()
    atexit.register(heartbeat.stop)  # the workers' main program is gunicorn's
    return create_app(runtime.conductor, settings)


def _web_server(runtime: Runtime) -> Any:
    """Return a server of the panel and the webhook routes, to run in a thread."""
    from panel.app import create_app  # noqa: PLC0415
    from panel.http_server import CannotListen, threaded_server  # noqa: PLC0415

    settings = runtime.settings
    app = create_app(runtime.conductor, settings)
    try:
        return threaded_server(app, settings.host, settings.port)
    except CannotListen as error:
        raise SettingsError(
            f"PORT: cannot listen on {settings.host}, port {settings.port}: {error}; set another PORT or HOST"
        ) from None


def standalone(_arguments: argparse.Namespace) -> int:
    """Run web, relay, workers and scheduler in one process, over the in-process broker."""
    settings = get_settings()
    configure_logging(settings)
    runtime = build(settings)
    for message in warnings(runtime):
        logger.warning(message)
    stop = threading.Event()
    heartbeat = Heartbeat(runtime.database, "standalone").start()
    server = _web_server(runtime)
    prepare_for_work()
    pool = WorkerPool(runtime)
    pool.start()
    threads = [
        threading.Thread(target=server.serve_forever, name="web", daemon=True),
        threading.Thread(
            target=Relay(runtime.conductor, settings.sweep_seconds).run, args=(stop,), name="relay", daemon=True
        ),
    ]
    for thread in threads:
        thread.start()
    logger.info("listening on http://%s:%d", settings.host, server.port)
    _tick(runtime, stop)
    server.shutdown()
    pool.stop()
    for thread in threads:
        thread.join(settings.grace_seconds)
    heartbeat.stop()
    runtime.close()
    return 0
