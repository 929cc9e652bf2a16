from __future__ import annotations

import pytest

from harness.leaks.vmstate import section_names

_START = b"QEVM\0\0\0\3"


def section(number: int, name: str, content: bytes) -> bytes:
    """As QEMU writes it (``migration/savevm.c``, ``save_section_header`` and ``save_section_footer``)."""
    which = number.to_bytes(4, "big")
    head = (
        b"\x04" + which + bytes([len(name)]) + name.encode() + (0).to_bytes(4, "big") + (1).to_bytes(4, "big")
    )
    return head + content + b"\x7e" + which


def test_a_state_without_sections() -> None:
    assert section_names(_START + b"\0") == []


def test_the_names_in_order() -> None:
    stream = _START + section(3, "timer", b"12345678") + section(7, "0000:00:02.0/virtio-9p", b"") + b"\0"
    assert section_names(stream) == ["timer", "0000:00:02.0/virtio-9p"]


@pytest.mark.parametrize("after", [b"\xff", b"\0"])
def test_a_content_that_looks_like_the_sections_own_footer(after: bytes) -> None:
    inner = b"\x7e" + (3).to_bytes(4, "big") + after
    stream = _START + section(3, "timer", inner) + section(4, "rtc", b"") + b"\0"
    assert section_names(stream) == ["timer", "rtc"]


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (b"", "no device state: it begins with b''"),
        (b"QEVM\0\0\0\2", "no device state"),
        ((_START + section(3, "timer", b"1"))[:-2], "no end of section 3"),
        (_START, "no section begins at 8 of 8 bytes"),
        (_START + b"\x04", "no section begins at 8 of 9 bytes"),
        (_START + b"\x04\0\0\0\3\5ti", "no end of section 3"),
        (_START + section(3, "timer", b"1") + b"\x04", "no section begins at 33"),
    ],
)
def test_what_is_no_device_state(stream: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        section_names(stream)
