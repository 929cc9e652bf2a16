from __future__ import annotations

import os

import pytest

from harness.errors import Unsupported
from harness.guest.variant import PLAIN, VARIANTS, Variant
from harness.tests.qemu.specs import share


@pytest.mark.parametrize("name", VARIANTS)
def test_each_is_a_share(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    made = VARIANTS[name].apply(share())
    assert (made.id, made.path, made.mount_tag) == (share().id, share().path, share().mount_tag)
    assert (made == share()) == (name == PLAIN or bool(VARIANTS[name].mount_options))


def test_what_needs_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unsupported, match="passthrough: chown needs"):
        Variant(root_only=True).apply(share())
