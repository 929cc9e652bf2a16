# A worker of a workload: repeats a round of operations on files, and adds each to its journal after it has returned.
#
#   perl worker.pl rounds FOLDER JOURNAL STOP [OPTION...]  until the file STOP exists
#   perl worker.pl OPERATION FILE [VALUE]                  one operation
#
# OPTION: an optional operation that the file system supports: direct, map, xattr, lock. Exits with 0 if all
# operations succeeded, else prints which one failed. Needs only the Perl interpreter, no modules.
# Numbers: kernel arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/{fcntl,mman}.h.

my $lines = 1500;     # The number of lines of a file, minus one; more than a page.
my $size  = 65536;    # The size of a pipe's buffer.
my $pause = 0.1;      # Seconds between rounds, so that other processes get the CPU.
my ($O_RDWR, $O_CREAT, $O_DIRECT) = (2, 0100, 040000);
my ($PROT_READ, $PROT_WRITE, $MAP_SHARED, $MAP_ANONYMOUS, $MS_SYNC) = (1, 2, 1, 0x22, 4);

sub call {
    my ($name, $number) = (shift, shift);
    my $result = syscall($number, @_);    # @_ aliases the caller's variables: the kernel writes to some of them.
    die "$name: $!\n" if $result == -1;
    return $result;
}

sub content { my ($first) = @_; return join "", map { "$_\n" } $first .. $first + $lines; }

sub written {
    my ($mode, $path, $first, $then) = @_;
    open(my $file, $mode, $path) or die "open: $!\n";
    my $bytes = content($first);
    syswrite($file, $bytes) == length($bytes) or die "write: $!\n";
    $then->($file) if $then;
    close($file) or die "close: $!\n";
}

sub fsync { call("fsync", 74, fileno($_[0])); }

sub expect_content {
    my ($file, $first) = @_;
    local $/ = undef;
    my $seen = <$file>;
    close($file) && defined $seen or die "read: $!\n";    # close reports errors of the read, too.
    $seen eq content($first) or die "other bytes were read\n";
}

# System calls without a Perl function, and their helpers.

sub open_file { my ($name, $flags) = @_; return call("open", 2, $name, $flags, 0644); }

sub close_file { call("close", 3, $_[0]); }

sub map_memory { return call("mmap", 9, 0, $size, $_[0], $_[1], $_[2], 0); }

sub unmap { call("munmap", 11, $_[0], $size); }

# Perl cannot write to a raw address; read(2) from a pipe can.
sub fill {
    my ($address, $value) = @_;
    pipe(my $from, my $to) or die "pipe: $!\n";
    syswrite($to, chr($value) x $size) == $size or die "pipe: short write\n";
    call("read", 0, fileno($from), $address, $size) == $size or die "pipe: short read\n";
}

sub expect_filled {
    my ($address, $value) = @_;
    unpack("P$size", pack("Q", $address)) eq chr($value) x $size or die "other bytes were read\n";
}

my %operations = (
    write  => sub { written(">",  @_, \&fsync) },
    append => sub { written(">>", @_) },    # Without fsync: it is written back when the share is unmounted.
    read   => sub {
        my ($path, $first) = @_;
        open(my $file, "<", $path) or die "open: $!\n";
        expect_content($file, $first);
    },
    unlink_open => sub {
        my ($path, $first) = @_;
        open(my $file, "<", $path) or die "open: $!\n";
        unlink($path) or die "unlink: $!\n";
        expect_content($file, $first);
    },
    rename  => sub { rename($_[0], $_[1])  or die "$!\n" },
    link    => sub { link($_[0], $_[1])    or die "$!\n" },
    symlink => sub { symlink($_[0], $_[1]) or die "$!\n" },
    unlink  => sub { unlink($_[0])         or die "$!\n" },
    listed  => sub {
        my ($path) = @_;
        opendir(my $folder, ".") or die "opendir: $!\n";
        my @names = readdir($folder);
        1 == grep { $_ eq $path } @names or die "not listed, or twice\n";
        lstat($_) or die "lstat $_: $!\n" for @names;
    },
    deep => sub {
        my ($path, $first) = @_;
        for my $folder ($path, "$path/a", "$path/a/b", "$path/a/b/c") { mkdir($folder) or die "mkdir: $!\n"; }
        written(">", "$path/a/b/c/leaf", $first);
    },

    # Write and read with O_DIRECT.
    direct => sub {
        my ($path, $value) = @_;
        my $file = open_file($path, $O_RDWR | $O_CREAT | $O_DIRECT);
        my ($out, $in) = map { map_memory($PROT_READ | $PROT_WRITE, $MAP_ANONYMOUS, -1) } 1 .. 2;
        fill($out, $value);
        call("pwrite64", 18, $file, $out, $size, 0) == $size or die "pwrite64: short\n";
        call("pread64", 17, $file, $in, $size, 0) == $size or die "pread64: short\n";
        expect_filled($in, $value);
        unmap($_) for $out, $in;
        close_file($file);
    },

    # Write through a shared mapping, and msync.
    map => sub {
        my ($path, $value) = @_;
        my $file = open_file($path, $O_RDWR | $O_CREAT);
        call("ftruncate", 77, $file, $size);
        my $address = map_memory($PROT_READ | $PROT_WRITE, $MAP_SHARED, $file);
        fill($address, $value);
        call("msync", 26, $address, $size, $MS_SYNC);
        expect_filled($address, $value);
        unmap($address);
        close_file($file);
    },
    mapread => sub {
        my ($path, $value) = @_;
        my $file = open_file($path, 0);
        my $address = map_memory($PROT_READ, $MAP_SHARED, $file);
        expect_filled($address, $value);
        unmap($address);
        close_file($file);
    },
    xattr => sub {
        my ($path, $value) = @_;
        my $attribute = "user.workload";
        call("setxattr", 188, $path, $attribute, $value, length($value), 0);
        my $seen   = "\0" x 256;
        my $length = call("getxattr", 191, $path, $attribute, $seen, length($seen));
        substr($seen, 0, $length) eq $value or die "getxattr: another value\n";
    },

    # Take and release a flock and a record lock.
    lock => sub {
        my ($path) = @_;
        open(my $file, "+<", $path) or die "open: $!\n";
        my ($LOCK_EX, $LOCK_NB, $LOCK_UN, $F_SETLK, $F_WRLCK, $F_UNLCK) = (2, 4, 8, 6, 1, 2);
        flock($file, $LOCK_EX | $LOCK_NB) or die "flock: $!\n";
        flock($file, $LOCK_UN)            or die "flock: $!\n";
        for my $kind ($F_WRLCK, $F_UNLCK) {
            fcntl($file, $F_SETLK, pack("s s x4 q q l x4", $kind, 0, 0, 100, 0)) or die "fcntl: $!\n";
        }
    },
);

sub operate {
    my ($what, @values) = @_;
    my $operation = $operations{$what} or die "worker.pl: no operation $what\n";
    eval { $operation->(@values); 1 } or die "$what: $@";
}

# SIGBUS: a page of a mapping cannot be read.
$SIG{BUS} = sub { die "bus error\n" };

my $journal;

# Perform an operation and add it to the journal; ack_as takes the journal's name of it, if that differs.
sub ack { ack_as("@_", @_) }

sub ack_as {
    my ($words, @operation) = @_;
    my $failed = eval { operate(@operation); 1 } ? undef : $@;
    syswrite($journal, defined $failed ? "error $words\n" : "$words\n");
    die $failed if defined $failed;
}

sub round {
    my ($n, %can) = @_;
    my $byte = $n % 26 + 65;
    ack("write", "f$n", $n);
    ack_as("read f$n", "read", "f$n", $n);
    ack("write", "o$n", $n);
    ack_as("unlink o$n", "unlink_open", "o$n", $n);
    ack("rename",  "f$n", "g$n");
    ack("append",  "g$n", 7);
    ack("link",    "g$n", "h$n");
    ack("symlink", "g$n", "s$n");
    ack_as("read g$n", "listed", "g$n");
    ack("deep", "d$n", $n);
    ack_as("fill D$n $byte", "direct",  "D$n", $byte) if $can{direct};
    ack_as("fill M$n $byte", "map",     "M$n", $byte) if $can{map};
    ack_as("read D$n",       "mapread", "D$n", $byte) if $can{direct};
    if ($can{xattr}) {
        ack("write", "x$n", $n);
        ack("xattr", "x$n", "v$n");
    }
    ack("lock",   "g$n")          if $can{lock};
    ack("unlink", "h" . ($n - 3)) if $n > 3;
}

sub rounds {
    my ($folder, $kept, $stop, @options) = @_;
    open($journal, ">>", $kept) or die "$kept: $!\n";
    -d $folder or mkdir($folder) or die "mkdir: $!\n";
    chdir($folder) or die "chdir: $!\n";
    for (my $n = 1; !-e $stop; $n++) {
        round($n, map { $_ => 1 } @options);
        select(undef, undef, undef, $pause);
    }
}

my ($what, @values) = @ARGV;
$what eq "rounds" ? rounds(@values) : operate($what, @values);
