# Sets the guest's clock and gives its kernel random bytes, each time that it reads a message.
#
#   perl reseed.pl MACHINE     MACHINE: what "uname -m" prints
#
# A message is one line on stdin: seconds since 1970 in ten digits, nanoseconds in nine, 32 random bytes in
# hexadecimal, with a space between. The answer is one line on stdout: 0, or the number of the step that
# failed (1 clock, 2 random bytes, 3 random generator). The program exits with 1 when what it reads is shorter
# than a message.
#
# Needs the interpreter alone, no module. Without modules Perl has neither a function that sets the clock nor
# the names of system calls. So this has the numbers of clock_settime(2), and of the ioctls RNDADDENTROPY and
# RNDRESEEDCRNG of random(4), for each architecture.
#
# Sources, in the kernel: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h,
# arch/s390/kernel/syscalls/syscall.tbl, arch/powerpc/kernel/syscalls/syscall.tbl,
# include/uapi/linux/random.h, include/uapi/asm-generic/ioctl.h, arch/powerpc/include/uapi/asm/ioctl.h.

my @generic = (0x40085203, 0x5207);
my %numbers = (
    x86_64  => [227, @generic],
    aarch64 => [112, @generic],
    riscv64 => [112, @generic],
    s390x   => [259, @generic],
    ppc64le => [245, 0x80085203, 0x20005207],
);

my $machine = shift;
my $known   = $numbers{$machine} or die "reseed.pl: no numbers for $machine\n";
my ($clock_settime, $add_entropy, $reseed) = @$known;
my $CLOCK_REALTIME = 0;
my $size           = 10 + 1 + 9 + 1 + 64 + 1;
open(my $random, ">", "/dev/random") or die "/dev/random: $!\n";

while (sysread(STDIN, my $message, $size) == $size) {
    my ($seconds, $nanoseconds, $bytes) = unpack("a10 x a9 x a64", $message);
    my $now    = pack("q q", $seconds, $nanoseconds);    # struct timespec
    my $pool   = pack("l l H64", 8 * 32, 32, $bytes);    # struct rand_pool_info
    my $failed =
          syscall($clock_settime, $CLOCK_REALTIME, $now) != 0 ? 1
        : !ioctl($random, $add_entropy, $pool)                ? 2
        : !ioctl($random, $reseed, 0)                         ? 3
        :                                                       0;
    syswrite(STDOUT, "$failed\n");
}
exit 1;
