"""bftfs.ui.gate: only the browser that was given the token sees pages, and nothing is taken in."""

from __future__ import annotations

import re

import pytest

from bftfs.ui.gate import COOKIE, HEADERS, Gate
from tests.unit.ui.conftest import PORT, Browser, Shop

ADDRESSES = ("", "diff", "map", "health", "audit", "static/ui.js")


@pytest.mark.parametrize("address", ADDRESSES)
def test_without_the_cookie_there_is_nothing(shop: Shop, address: str) -> None:
    stranger = shop.stranger()
    for cookie in ("", "x", "é", shop.gate.token):
        stranger.set_cookie(COOKIE, cookie, domain="127.0.0.1")
        place = f"/{shop.gate.place}/{address}"
        answer = stranger.get(place, base_url=f"http://127.0.0.1:{PORT}")
        assert answer.status_code == 403
        assert "that `bftfs ui` has printed" in answer.text
        assert "Set-Cookie" not in answer.headers


def test_a_wrong_token_gives_no_cookie(shop: Shop) -> None:
    for token in ("", "x", "é", shop.gate.cookie):
        answer = shop.stranger().get(
            f"/{shop.gate.place}/enter",
            query_string={"token": token},
            base_url=f"http://127.0.0.1:{PORT}",
        )
        assert answer.status_code == 403
        assert "Set-Cookie" not in answer.headers


def test_the_printed_address_gives_the_cookie(shop: Shop) -> None:
    client = shop.stranger()
    answer = client.get(shop.gate.address)
    assert answer.status_code == 200
    cookie = answer.headers["Set-Cookie"]
    assert f"Path=/{shop.gate.place}/" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert shop.gate.token not in answer.text
    (onward,) = set(re.findall(rf'/{shop.gate.place}/[^"]*', answer.text))
    assert client.get(onward, base_url=f"http://127.0.0.1:{PORT}").status_code == 200


def test_elsewhere_there_is_nothing(shop: Shop) -> None:
    for address in ("/", "/favicon.ico", "/other/", "/static/ui.js"):
        answer = shop.stranger().get(address, base_url=f"http://127.0.0.1:{PORT}")
        assert answer.status_code == 403


def test_every_run_has_its_own_secrets() -> None:
    one, other = Gate.drawn(PORT), Gate.drawn(PORT)
    secrets = {each for gate in (one, other) for each in (gate.place, gate.token, gate.cookie)}
    assert len(secrets) == 6
    assert min(map(len, secrets)) >= 32


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        f"evil.example:{PORT}",
        "127.0.0.1",
        "127.0.0.1:8001",
        "[::1]:80",
    ],
)
def test_another_name_for_this_machine_is_refused(browser: Browser, host: str) -> None:
    answer = browser.send("GET", "health", host=host)
    assert answer.status_code == 403
    assert f"127.0.0.1:{PORT}" in answer.text


def test_localhost_is_this_machine(shop: Shop) -> None:
    assert shop.gate.is_ours(f"localhost:{PORT}")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_is_taken_in(browser: Browser, method: str) -> None:
    for address in ("", "audit", "health"):
        assert browser.send(method, address).status_code == 405


def test_every_answer_forbids_what_pages_do_not_need(browser: Browser) -> None:
    for address in (*ADDRESSES, "enter", "nothing"):
        answer = browser.get(address)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
