"""A virtio device's registers, read by a program in the guest.

Virtio's common configuration is in a BAR, which a program cannot read without a driver. The capability
``VIRTIO_PCI_CAP_PCI_CFG`` gives access to it through the PCI configuration space (virtio 1.2, 4.1.4.9).
"""

from __future__ import annotations

from harness.errors import GuestError
from harness.guest.commands import quote
from harness.guest.device import sysfs_folder
from harness.guest.guest import Guest
from harness.qemu.spec import Share

#: The list of capabilities begins at offset 0x34. Those of virtio have the id 9 and their type at offset 3:
#: 1 is the common configuration, 5 is PCI configuration access. Offsets and sizes of the registers:
#: virtio 1.2, 4.1.4.3.
_PROGRAM = r"""
sysopen(my $f, $ARGV[0], 2) or die "$ARGV[0]: $!";
sub at { my ($at, $size) = @_; sysseek($f, $at, 0); sysread($f, my $b, $size) == $size or die "read $at"; $b }
sub put { my ($at, $b) = @_; sysseek($f, $at, 0); syswrite($f, $b) == length $b or die "write $at: $!" }
print "config ", unpack("H*", at(0, 64)), "\n";
my ($common, $window, $next) = (0, 0, unpack("C", at(0x34, 1)));
while ($next) {
    my ($id, $after, undef, $type) = unpack("C4", at($next, 4));
    $common = $next if $id == 9 && $type == 1;
    $window = $next if $id == 9 && $type == 5;
    print "msix ", unpack("H*", at($next, 12)), "\n" if $id == 0x11;
    $next = $after;
}
exit 0 unless $common && $window;
my ($bar, $base) = (unpack("C", at($common + 4, 1)), unpack("V", at($common + 8, 4)));
my %format = (1, "C", 2, "v", 4, "V");
sub aim { my ($at, $size) = @_;
    put($window + 4, pack("C", $bar)); put($window + 8, pack("V", $base + $at));
    put($window + 12, pack("V", $size)) }
sub get { my ($at, $size) = @_; aim($at, $size); unpack($format{$size}, at($window + 16, $size)) }
sub set { my ($at, $size, $value) = @_; aim($at, $size); put($window + 16, pack($format{$size}, $value)) }
for my $half (0, 1) {
    set(0, 4, $half); printf "device features %d %08x\n", $half, get(4, 4);
    set(8, 4, $half); printf "driver features %d %08x\n", $half, get(12, 4);
}
printf "%s %x\n", @$_[0], get(@$_[1], @$_[2]) for
    ["configuration's vector", 16, 2], ["queues", 18, 2], ["status", 20, 1];
set(22, 2, 0);
printf "queue's %s %x\n", @$_[0], get(@$_[1], @$_[2]) for
    ["size", 24, 2], ["vector", 26, 2], ["enable", 28, 2], ["notify offset", 30, 2],
    ["descriptors", 32, 4], ["descriptors above", 36, 4], ["driver ring", 40, 4],
    ["driver ring above", 44, 4], ["device ring", 48, 4], ["device ring above", 52, 4];
"""


def registers(guest: Guest, share: Share) -> dict[str, str]:
    """The registers of ``share``'s device as the guest reads them, by name.

    :raises GuestError: when the device has no modern virtio interface.
    :raises Unsupported: when it is no PCI device.
    """
    guest.machine.spec.machine_type.require_pci()
    command = f"perl -e {quote(_PROGRAM)} {sysfs_folder(guest.machine, share)}/config"
    found = dict(line.rsplit(" ", 1) for line in guest.succeed(command).splitlines())
    if "queue's size" not in found:
        raise GuestError(f"{share.id}: the guest finds no modern virtio interface: {found}")
    return found
