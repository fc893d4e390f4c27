"""Rates of a link as text and numbers, and the token bucket that keeps a rate."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcdml.errors import UsageError

SLOWEST, FASTEST = 1e6, 100e9  # bits per second
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_FORM = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)")

BURST_SECONDS = 1e-3
LEAST_BURST = 32 * 1024
LARGEST_PACKET = 64 * 1024
QUEUE_SECONDS = 10e-3
LEAST_QUEUE = 256 * 1024


@dataclass(frozen=True)
class Bucket:
    """A ``tbf`` queue discipline; sizes in bytes.

    Attributes:
        rate: bits per second, Ethernet headers included.
        burst: what may pass at once after a pause. Every byte of it is one that the emulated link would have delayed,
            so it is small: a 1 MB message after a pause is at most an eighth too fast at 1 Gbit/s.
        queue: what a port of the switch holds before it drops packets.
        packet: the largest packet that the kernel may hand over (a veth carries packets of up to 64 KiB unsegmented,
            whatever the MTU). A packet above the burst would be segmented in software, at half the speed and less.
    """

    rate: int
    burst: int
    queue: int
    packet: int


def parse_rate(text: str) -> int | None:
    """Bits per second of ``100mbit``, ``2.5gbit`` and the like; ``None`` for ``none``: unlimited.

    Raises:
        UsageError: another form, or a rate below 1 Mbit/s or above 100 Gbit/s.
    """
    if text == "none":
        return None
    found = _FORM.fullmatch(text)
    bits = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not SLOWEST <= bits <= FASTEST:
        raise UsageError(f"--rate {text}: must be from 1mbit to 100gbit, as in 100mbit or 2.5gbit; or none: unlimited")
    return round(bits)


def format_rate(bits: int | None) -> str:
    """The text of a rate in its largest unit, as ``parse_rate`` reads it."""
    if bits is None:
        return "none"
    unit, size = max(((u, s) for u, s in _UNITS.items() if s <= bits), key=lambda pair: pair[1])
    return f"{bits / size:g}{unit}"


def bucket(bits: int) -> Bucket:
    """The token bucket of a rate in bits per second.

    A burst of 1 ms rides out the delays of the kernel's timer on busy cores: one of 0.5 ms lost 2 % of 1 Gbit/s.
    """
    bytes_per_second = bits / 8
    burst = max(LEAST_BURST, round(bytes_per_second * BURST_SECONDS))
    queue = max(LEAST_QUEUE, round(bytes_per_second * QUEUE_SECONDS))
    return Bucket(bits, burst, burst + queue, min(LARGEST_PACKET, burst // 2))
