"""Receivers here wait for no disk: what they do is what counts, and they do it often."""

from __future__ import annotations

import os

import pytest

from bftfs.backup import receiving


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(receiving, "_sync", lambda _: None)
