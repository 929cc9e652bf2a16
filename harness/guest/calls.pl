# System calls that no shell command makes: O_DIRECT, a writable shared mapping, extended attributes, locks.
#
#   perl calls.pl direct FILE BYTE    write SIZE times BYTE with O_DIRECT, read it back the same way
#   perl calls.pl map FILE BYTE       the same through a shared mapping, and msync
#   perl calls.pl mapread FILE BYTE   read it through a mapping
#   perl calls.pl xattr FILE VALUE    set user.workload, and get it
#   perl calls.pl lock FILE           flock, and a record lock, taken and given back
#
# Exits with 0 when all of it worked, else says what did not. Needs the interpreter alone, no module.
# Numbers: kernel arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/{fcntl,mman}.h.

my ($what, $path, $value) = @ARGV;
my $size = 65536;    # What a pipe takes in one write.
my ($O_RDWR, $O_CREAT, $O_DIRECT) = (2, 0100, 040000);
my ($PROT_READ, $PROT_WRITE, $MAP_SHARED, $MAP_ANONYMOUS, $MS_SYNC) = (1, 2, 1, 0x22, 4);

sub call {
    my ($name, $number) = (shift, shift);
    my $result = syscall($number, @_);    # The caller's own variables: some are written to.
    die "$name: $!\n" if $result == -1;
    return $result;
}

sub open_file { my $name = $path; return call("open", 2, $name, $_[0], 0644); }

sub map_memory { return call("mmap", 9, 0, $size, $_[0], $_[1], $_[2], 0); }

# A pipe is the way to a raw address: read(2) puts the bytes there.
sub fill {
    my ($address) = @_;
    pipe(my $from, my $to) or die "pipe: $!\n";
    syswrite($to, chr($value) x $size) == $size or die "pipe: short write\n";
    call("read", 0, fileno($from), $address, $size) == $size or die "pipe: short read\n";
}

sub expect_filled {
    my ($address) = @_;
    unpack("P$size", pack("Q", $address)) eq chr($value) x $size or die "$what: other bytes were read\n";
}

my %operations = (
    direct => sub {
        my $file = open_file($O_RDWR | $O_CREAT | $O_DIRECT);
        my ($out, $in) = map { map_memory($PROT_READ | $PROT_WRITE, $MAP_ANONYMOUS, -1) } 1 .. 2;
        fill($out);
        call("pwrite64", 18, $file, $out, $size, 0) == $size or die "pwrite64: short\n";
        call("pread64", 17, $file, $in, $size, 0) == $size or die "pread64: short\n";
        expect_filled($in);
    },
    map => sub {
        my $file = open_file($O_RDWR | $O_CREAT);
        call("ftruncate", 77, $file, $size);
        my $address = map_memory($PROT_READ | $PROT_WRITE, $MAP_SHARED, $file);
        fill($address);
        call("msync", 26, $address, $size, $MS_SYNC);
        expect_filled($address);
    },
    mapread => sub { expect_filled(map_memory($PROT_READ, $MAP_SHARED, open_file(0))); },
    xattr   => sub {
        my ($name, $attribute, $given) = ($path, "user.workload", $value);
        call("setxattr", 188, $name, $attribute, $given, length($given), 0);
        my $seen   = "\0" x 256;
        my $length = call("getxattr", 191, $name, $attribute, $seen, length($seen));
        substr($seen, 0, $length) eq $value or die "getxattr: another value\n";
    },
    lock => sub {
        open(my $file, "+<", $path) or die "open: $!\n";
        my ($LOCK_EX, $LOCK_NB, $LOCK_UN, $F_SETLK, $F_WRLCK, $F_UNLCK) = (2, 4, 8, 6, 1, 2);
        flock($file, $LOCK_EX | $LOCK_NB) or die "flock: $!\n";
        flock($file, $LOCK_UN)            or die "flock: $!\n";
        for my $kind ($F_WRLCK, $F_UNLCK) {
            fcntl($file, $F_SETLK, pack("s s x4 q q l x4", $kind, 0, 0, 100, 0)) or die "fcntl: $!\n";
        }
    },
);

my $operation = $operations{$what} or die "calls.pl: no operation $what\n";
$operation->();
