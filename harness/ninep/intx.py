"""The PCI interrupt lines (INTx) of a ``pc`` machine that was never started, read over qtest.

All lines are routed to one input of the interrupt controller, which is set to level-triggered: its request
bit then shows the level of the line, whichever devices share it.

Sources: the data sheets of PIIX (PIRQRC) and of the 8259 (OCW3, ELCR); QEMU ``hw/isa/piix3.c``, later
``hw/isa/piix.c``, ``hw/pci-host/i440fx.c``, ``hw/intc/i8259.c``.
"""

from __future__ import annotations

from harness.channel.qtest import Qtest

_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
#: The slot of the ISA bridge on bus 0, and its four routing registers, one for each line of the bus.
_ISA_BRIDGE, _PIRQ_ROUTES = 1, 0x60
_LINES = 4
#: The input that all four lines are routed to; it belongs to the second controller.
_INPUT = 10
_CONTROLLER, _EDGE_LEVEL = 0xA0, 0x4D1
_READ_REQUESTS = 0x0A
_MASK = 1 << _INPUT - 8


class InterruptLine:
    """The four interrupt lines of the PCI bus of a ``pc``, routed to one input."""

    def __init__(self, qtest: Qtest) -> None:
        self._qtest = qtest
        qtest.outb(_EDGE_LEVEL, _MASK)
        qtest.outl(_CONFIG_ADDRESS, 1 << 31 | _ISA_BRIDGE << 11 | _PIRQ_ROUTES)
        qtest.outl(_CONFIG_DATA, sum(_INPUT << 8 * line for line in range(_LINES)))

    @property
    def asserted(self) -> bool:
        """Whether a device asserts its interrupt now."""
        self._qtest.outb(_CONTROLLER, _READ_REQUESTS)
        return bool(self._qtest.inb(_CONTROLLER) & _MASK)
