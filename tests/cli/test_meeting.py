"""Processes meet in time, or everyone learns who is missing: threads in place of processes."""

import json
import socket
import threading
import time

import pytest

from feddpa_jax.cli import meeting
from feddpa_jax.cli.meeting import introduction, meet, refusal
from feddpa_jax.types import UserError
from tests.e2e.test_processes import free_port


def gather(*places: tuple[int, int], wait: float = 20.0, port: int | None = None) -> list[str]:
    """What each (count, number) is told; empty if it may go on. A pause lets them come in order."""
    port = port or free_port()
    said = ["does not end"] * len(places)

    def come(place: int, count: int, number: int) -> None:
        try:
            meet("127.0.0.1", port, count, number, wait)
            said[place] = ""
        except UserError as error:
            said[place] = str(error)

    threads = []
    for place, (count, number) in enumerate(places):
        threads.append(threading.Thread(target=come, args=(place, count, number), daemon=True))
        threads[-1].start()
        time.sleep(0.3)
    for thread in threads:
        thread.join(timeout=wait + 10)
    return said


def test_all_come_in_any_order():
    assert gather((3, 2), (3, 0), (3, 1)) == ["", "", ""]
    assert gather((1, 0)) == [""]


def test_the_port_is_free_for_jax_at_once():
    port = free_port()
    assert gather((2, 0), (2, 1), port=port) == ["", ""]
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_the_first_alone():
    (said,) = gather((3, 0), wait=0.6)
    assert "1 of 3 processes came within 0.6 s (missing: process 1, 2)" in said and "--wait" in said


def test_without_the_first():
    (said,) = gather((2, 1), wait=0.6)
    assert "no process 0 at 127.0.0.1:" in said and "(Connection refused)" in said


def test_one_is_missing_and_all_know():
    first, second = gather((3, 0), (3, 2), wait=1.0)
    assert "2 of 3 processes came within 1 s (missing: process 1)" in first
    assert second == first


def test_a_number_twice_is_refused_and_the_others_go_on():
    first, one, again, two = gather((3, 0), (3, 1), (3, 1), (3, 2))
    assert (first, one, two) == ("", "", "")
    assert "another process 1 has come already" in again


def test_another_count_is_refused():
    first, wrong = gather((2, 0), (3, 1), wait=1.0)
    assert wrong.startswith("--processes: process 1 says 3, process 0 says 2")
    assert "(missing: process 1; refused: --processes: process 1 says 3" in first


def test_one_too_many_comes_late():
    """The port is JAX's by then."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as other:

        def hang_up() -> None:
            while True:
                try:
                    friend, _ = other.accept()
                except OSError:
                    return
                friend.sendall(b"\x00\x00\x12\x04garbage")
                friend.close()

        threading.Thread(target=hang_up, daemon=True).start()
        (said,) = gather((2, 1), wait=0.8, port=port)
        assert "no waiting process 0; a run that has begun" in said
        (said,) = gather((2, 0), wait=0.8, port=port)
        assert f"cannot listen at port {port}" in said and "in use" in said
        other.shutdown(socket.SHUT_RDWR)


def test_process_0_on_another_machine(monkeypatch):
    """Two listen, as on two machines, and the address is the other one's."""
    theirs = free_port()
    threading.Thread(target=gather, args=((2, 0),), kwargs={"port": theirs, "wait": 4.0}).start()
    time.sleep(0.3)
    listen = meeting._listen
    monkeypatch.setattr(meeting, "_listen", lambda host, port: listen(host, free_port()))
    (alone,) = gather((1, 0), port=theirs, wait=1.0)
    assert "process 0 says 2" in alone
    (said,) = gather((2, 0), port=theirs, wait=1.0)
    assert "another process 0 has come already" in said


def test_strangers_and_the_dead_do_not_count():
    port = free_port()
    said: list[str] = []
    first = threading.Thread(target=lambda: said.extend(gather((3, 0), port=port)), daemon=True)
    first.start()
    time.sleep(0.4)
    odd = json.dumps({**introduction(3, 1), "process": [3]}).encode() + b"\n"
    for noise in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 100_000 + b"\n",
        b"7\n",
        b'{"process": "x"}\n',
        odd,
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(noise)
    with socket.create_connection(("127.0.0.1", port)) as dead:
        meeting._send(dead, introduction(3, 1))
        time.sleep(0.2)
    time.sleep(0.4)
    assert gather((3, 1), (3, 2), port=port) == ["", ""]
    first.join(timeout=20)
    assert said == [""]


def test_other_versions_are_refused():
    own = introduction(2, 0)
    other = introduction(2, 1)
    assert refusal(own, other) == ""
    other["versions"] = {**other["versions"], "jaxlib": "0.1"}
    assert f"process 1 has jaxlib 0.1, process 0 has {own['versions']['jaxlib']}" in refusal(
        own, other
    )
    other["versions"] = "none"
    assert "--process" in refusal(own, other)


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:0", "host:65536", "h:٣"])
def test_addresses(address: str):
    from feddpa_jax.cli.join import check_place

    with pytest.raises(UserError, match="is not HOST:PORT"):
        check_place(address, 2, 0, 1.0, 1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e7])
def test_times(seconds: float):
    from feddpa_jax.cli.join import check_place

    with pytest.raises(UserError, match="--wait: "):
        check_place("host:80", 2, 0, seconds, 1.0)
    with pytest.raises(UserError, match="--heartbeat: "):
        check_place("host:80", 2, 0, 1.0, seconds)
