"""Each mode of the chaos run's proxy has its effect on a connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.fleet import free_port
from tests.chaos.proxy import HOST, Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Yield a proxy in front of an echo server."""
    with socket.create_server((HOST, 0)) as server:
        threading.Thread(target=_echo, args=(server,), daemon=True).start()
        with Proxy(free_port(), server.getsockname()[1], seed=1) as proxy:
            yield proxy
        server.shutdown(socket.SHUT_RDWR)


def _echo(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return


def ask(proxy: Proxy, text: bytes = b"hello", timeout: float = 3.0) -> bytes:
    with socket.create_connection((HOST, proxy.port), timeout) as client:
        client.sendall(text)
        return client.recv(len(text))


def test_open_passes_and_counts(proxy: Proxy) -> None:
    assert [ask(proxy), ask(proxy)] == [b"hello"] * 2
    assert proxy.connections == 2


def test_refused_and_open_again(proxy: Proxy) -> None:
    proxy.set("refuse")
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    proxy.set("open")
    assert ask(proxy) == b"hello"


def test_cut_answers_nothing_and_ends_in_a_reset(proxy: Proxy) -> None:
    proxy.set("cut")
    with pytest.raises(TimeoutError):
        ask(proxy, timeout=0.3)
    with socket.create_connection((HOST, proxy.port), 3) as client:
        client.sendall(b"hello")
        time.sleep(0.1)
        proxy.set("open")
        with pytest.raises(ConnectionResetError):
            client.recv(5)


def test_slow_passes_all_the_same(proxy: Proxy) -> None:
    proxy.set("slow")
    assert ask(proxy) == b"hello"


def test_reset_breaks_an_answer_off(proxy: Proxy) -> None:
    proxy.set("reset")
    with socket.create_connection((HOST, proxy.port), 3) as client, pytest.raises(ConnectionError):
        for _ in range(20):
            client.sendall(b"x" * 1000)
            assert client.recv(65536)


def test_it_leads_to_another_port(proxy: Proxy) -> None:
    with socket.create_server((HOST, 0)) as other, socket.create_connection((HOST, proxy.port), 3) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
        proxy.lead_to(other.getsockname()[1])
        with pytest.raises(ConnectionResetError):
            client.recv(5)
        with socket.create_connection((HOST, proxy.port), 3) as again:
            again.sendall(b"there")
            connection, _ = other.accept()
            with connection:
                assert connection.recv(5) == b"there"
