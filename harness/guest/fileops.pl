# Operations on files, each checked, in one process of the guest: far cheaper than a command for each.
#
#   perl fileops.pl SIZE PLACE < POOL PROGRAM
#
# Standard input begins with SIZE bytes, the pool, of which all content is taken; the program follows, a line for
# each operation (see fileops.py, which writes it). A line "expect ERRNO OPERATION…" says that the operation has
# to fail so. What went wrong is printed, a line for each failed operation: its number, the operation, why; the
# last line is "done" and how many operations there were. An operation that fails does not end the program. PLACE
# is a folder for its process id, and for the files by which it is told to go on after a pause.
#
# Needs the interpreter alone, no module.
# Numbers: kernel arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/{fcntl,mman}.h.

my ($PROT_READ, $PROT_WRITE, $MAP_SHARED, $MAP_PRIVATE, $MS_SYNC) = (1, 2, 1, 2, 4);
my $AT_FDCWD = -100;

# A signal is to find a process that handles it, and to do nothing.
$SIG{USR1} = sub { };
my ($size, $place) = @ARGV;
open(my $pid, ">", "$place/fileops.pid") or die "fileops.pid: $!\n";
print $pid "$$\n";
close($pid);

binmode STDIN;
read(STDIN, my $pool, $size) == $size or die "the pool is short\n";
my @program = <STDIN>;
chomp @program;

# The pool, repeated: SIZE is a prime number, so that no two blocks of a file are alike by chance.
my $bytes = $pool x 40;

sub content { my ($seed, $length) = @_; return substr($bytes, $seed % $size, $length); }

# Files that are open, by the program's name for them: descriptor, and whose content they have.
my %files;
# What each file has to contain. Two names for the same file share it.
my %content;

sub call {
    my $number = shift;
    my $result = syscall($number, @_);    # The caller's own variables: some are written to.
    die 0 + $!, "\n" if $result == -1;
    return $result;
}

sub handle { my ($name) = @_; return $files{$name} || die "no file $name is open\n"; }

# A shorter file is filled up with zeros, as by the kernel.
sub put {
    my ($model, $offset, $new) = @_;
    my $old = \$content{$model};
    $$old .= "\0" x ($offset - length($$old)) if length($$old) < $offset;
    substr($$old, $offset, length($new)) = $new;
}

sub expected {
    my ($model, $offset, $length) = @_;
    return $offset < length($content{$model}) ? substr($content{$model}, $offset, $length) : "";
}

sub compare {
    my ($seen, $expected) = @_;
    return if $seen eq $expected;
    length($seen) == length($expected)
        or die length($seen), " bytes, and not ", length($expected), "\n";
    ($seen ^ $expected) =~ /[^\0]/ or die "other bytes\n";
    die "another byte at $-[0] of ", length($seen), "\n";
}

sub read_at {
    my ($descriptor, $offset, $length) = @_;
    my $buffer = "\0" x $length;
    my $count  = call(17, $descriptor, $buffer, $length, $offset);
    return substr($buffer, 0, $count);
}

# mmap(2) works in pages; what is looked at need not.
sub mapped {
    my ($descriptor, $offset, $length, $protection, $kind, $then) = @_;
    my $first   = $offset - $offset % 4096;
    my $span    = $offset + $length - $first;
    my $address = call(9, 0, $span, $protection, $kind, $descriptor, $first);
    my $result  = eval { $then->($address + $offset - $first, $address, $span); 1 } ? undef : $@;
    call(11, $address, $span);
    die $result if defined $result;
}

sub at { my ($address, $length) = @_; return unpack("P$length", pack("Q", $address)); }

# Bytes get to a raw address by read(2), here from a pipe.
sub fill {
    my ($address, $new) = @_;
    pipe(my $from, my $to) or die "pipe: $!\n";
    for (my $done = 0; $done < length($new); $done += 65536) {
        my $part = substr($new, $done, 65536);
        syswrite($to, $part) == length($part) or die "pipe: short write\n";
        call(0, fileno($from), $address + $done, length($part)) == length($part) or die "pipe: short\n";
    }
}

sub attributes {
    my @found = ref($_[0]) ? stat($_[0]) : lstat($_[0]);
    @found or die 0 + $!, "\n";
    return @found;
}

sub same { my ($what, $seen, $expected) = @_; $seen == $expected or die "$what is $seen, and not $expected\n"; }

# The names of a folder, without "." and ".." (getdents64(2)); at its end, or after one call.
sub names {
    my ($fd, $step, $once) = @_;
    my @names;
    while (1) {
        my $buffer = "\0" x $step;
        my $count  = call(217, $fd, $buffer, $step) or last;
        for (my $at = 0; $at < $count;) {
            my $length = unpack("S", substr($buffer, $at + 16, 2));
            push @names, unpack("Z*", substr($buffer, $at + 19, $length - 19));
            $at += $length;
        }
        last if $once;
    }
    return grep { $_ ne "." && $_ ne ".." } @names;
}

sub each_once {
    my ($count, @names) = @_;
    my %seen = map { $_ => 1 } @names;
    same("the number of names",           scalar(@names),     $count);
    same("the number of different names", scalar(keys %seen), $count);
}

# Each process has a part of every stripe: it writes it, and reads it back, round after round.
sub one_of_many {
    my ($file, $me, $count, $length, $rounds, $seed) = @_;
    for my $round (0 .. $rounds - 1) {
        my $offset = ($round * $count + $me) * $length;
        my $new    = content($seed + $offset, $length);
        call(18, $file->{fd}, $new, $length, $offset) == $length or die "short write at $offset\n";
        eval { compare(read_at($file->{fd}, $offset, $length), $new); 1 } or die "at $offset: $@";
    }
}

my %operations = (
    # open FILE MODEL FLAGS MODE PATH
    open => sub {
        my ($name, $model, $flags, $mode, $path) = @_;
        my $fd = call(2, $path, $flags, $mode);
        open(my $kept, "<&=$fd") or die "fdopen: $!\n";
        $files{$name} = { fd => $fd, kept => $kept, model => $model };
        $content{$model} = "" if $flags & 01000 or !defined $content{$model};
    },
    close => sub { my ($name) = @_; my $file = delete $files{$name}; close($file->{kept}) or die 0 + $!, "\n"; },
    # The host's own file has this content: seed and length.
    given  => sub { my ($model, $seed, $length) = @_; $content{$model} = content($seed, $length); },
    pwrite => sub {
        my ($name, $offset, $length, $seed) = @_;
        my ($file, $new) = (handle($name), content($seed, $length));
        same("the count", call(18, $file->{fd}, $new, $length, $offset), $length);
        put($file->{model}, $offset, $new);
    },
    append => sub {
        my ($name, $length, $seed) = @_;
        my ($file, $new) = (handle($name), content($seed, $length));
        same("the count", call(1, $file->{fd}, $new, $length), $length);
        put($file->{model}, length($content{ $file->{model} }), $new);
    },
    pread => sub {
        my ($name, $offset, $length) = @_;
        my $file = handle($name);
        compare(read_at($file->{fd}, $offset, $length), expected($file->{model}, $offset, $length));
    },
    # The whole file, by requests of that many bytes.
    whole => sub {
        my ($name, $step) = @_;
        my ($file, $offset) = (handle($name), 0);
        do {
            my $seen = read_at($file->{fd}, $offset, $step);
            eval { compare($seen, expected($file->{model}, $offset, $step)); 1 } or die "at $offset: $@";
            $offset += $step;
        } while ($offset < length($content{ $file->{model} }));
    },
    truncate => sub {
        my ($name, $to) = @_;
        my $file = handle($name);
        call(77, $file->{fd}, $to);
        my $old = length($content{ $file->{model} });
        if   ($to > $old) { $content{ $file->{model} } .= "\0" x ($to - $old) }
        else              { substr($content{ $file->{model} }, $to) = "" }
    },
    fsync  => sub { call(74, handle($_[0])->{fd}) },
    # fstat FILE LINKS: its size is that of its content.
    fstat => sub {
        my ($name, $links) = @_;
        my $file  = handle($name);
        my @found = attributes($file->{kept});
        same("the size",  $found[7], length($content{ $file->{model} }));
        same("the links", $found[3], $links);
    },
    # links FILE LINKS: of what has no content, a folder.
    links => sub { my ($name, $links) = @_; same("the links", (attributes(handle($name)->{kept}))[3], $links) },
    fchmod => sub {
        my ($name, $mode) = @_;
        my $file = handle($name);
        call(91, $file->{fd}, $mode);
        same("the mode", (attributes($file->{kept}))[2] & 07777, $mode);
    },
    futimens => sub {
        my ($name, $seconds) = @_;
        my $file  = handle($name);
        my $times = pack("q4", $seconds, 0, $seconds, 0);
        call(280, $file->{fd}, 0, $times, 0);
        same("the time", (attributes($file->{kept}))[9], $seconds);
    },
    lock => sub {
        my ($name) = @_;
        my ($F_SETLK, $F_WRLCK) = (6, 1);
        my $lock = pack("s s x4 q q l x4", $F_WRLCK, 0, 0, 100, 0);
        call(72, handle($name)->{fd}, $F_SETLK, $lock);
    },
    # A shared mapping, written to and synced; a private one, which the file does not see.
    map_shared => sub {
        my ($name, $offset, $length, $seed) = @_;
        my ($file, $new) = (handle($name), content($seed, $length));
        mapped($file->{fd}, $offset, $length, $PROT_READ | $PROT_WRITE, $MAP_SHARED, sub {
            my ($address, $first, $span) = @_;
            fill($address, $new);
            call(26, $first, $span, $MS_SYNC);
        });
        put($file->{model}, $offset, $new);
    },
    map_private => sub {
        my ($name, $offset, $length, $seed) = @_;
        my ($file, $new) = (handle($name), content($seed, $length));
        mapped($file->{fd}, $offset, $length, $PROT_READ | $PROT_WRITE, $MAP_PRIVATE, sub {
            my ($address) = @_;
            compare(at($address, $length), expected($file->{model}, $offset, $length));
            fill($address, $new);
            compare(at($address, $length), $new);
        });
    },
    # processes FILE COUNT LENGTH ROUNDS SEED: all use the same open file at the same time.
    processes => sub {
        my ($name, $count, $length, $rounds, $seed) = @_;
        my $file = handle($name);
        pipe(my $from, my $to) or die "pipe: $!\n";
        for my $me (0 .. $count - 1) {
            my $pid = fork;
            defined $pid or die "fork: $!\n";
            next if $pid;
            eval { one_of_many($file, $me, $count, $length, $rounds, $seed); 1 } or syswrite($to, "process $me $@");
            exit;
        }
        close($to);
        1 while wait() != -1;
        put($file->{model}, 0, content($seed, $count * $length * $rounds));
        my $said = <$from>;
        die $said if defined $said;
    },
    unlink => sub { my ($path) = @_; call(87, $path) },
    rmdir  => sub { my ($path) = @_; call(84, $path) },
    mkdir  => sub { my ($path) = @_; call(83, $path, 0755) },
    rename => sub { my ($from, $to) = @_; call(82, $from, $to) },
    link   => sub { my ($from, $to) = @_; call(86, $from, $to) },
    symlink => sub { my ($target, $path) = @_; call(88, $target, $path) },
    access  => sub { my ($path) = @_; call(4, $path, my $buffer = "\0" x 144) },
    chmod   => sub { my ($path, $mode) = @_; call(90, $path, $mode) },
    statfs  => sub { my ($path) = @_; call(137, $path, my $buffer = "\0" x 120) },
    setxattr => sub {
        my ($path, $name, $length) = @_;
        my $value = content(0, $length);
        call(188, $path, $name, $value, $length, 0);
    },
    # names FILE COUNT BYTES: a folder that is open has so many names, each once, read by so many bytes.
    names => sub {
        my ($name, $count, $step) = @_;
        call(8, handle($name)->{fd}, 0, 0);
        each_once($count, names(handle($name)->{fd}, $step, 0));
    },
    # part FILE BYTES: only as much of it as one call gives. rest FILE PREFIX COUNT BYTES: the others, of which
    # those that begin with PREFIX have been there all the time.
    part => sub {
        my ($name, $step) = @_;
        call(8, handle($name)->{fd}, 0, 0);
        handle($name)->{part} = [names(handle($name)->{fd}, $step, 1)];
    },
    rest => sub {
        my ($name, $prefix, $count, $step) = @_;
        my @names = (@{ handle($name)->{part} }, names(handle($name)->{fd}, $step, 0));
        my %seen;
        $seen{$_}++ for @names;
        my @twice = grep { $seen{$_} > 1 } sort keys %seen;
        @twice == 0 or die scalar(@twice), " names twice, as $twice[0]\n";
        each_once($count, grep { /^\Q$prefix/ } @names);
    },
    # Wait, with everything open, for those outside.
    pause => sub {
        my ($name) = @_;
        open(my $file, ">", "$place/fileops.$name.reached") or die "pause: $!\n";
        close($file);
        select(undef, undef, undef, 0.02) until -e "$place/fileops.$name.go";
    },
);

sub operate {
    my ($what, @values) = @_;
    my $operation = $operations{$what} or die "there is no such operation\n";
    $operation->(@values);
}

# What a failed system call said is its number: then it has a name.
sub told { my ($why) = @_; chomp $why; return $why =~ /^\d+$/ ? do { local $! = $why; "errno $why ($!)" } : $why; }

$| = 1;
for my $number (1 .. @program) {
    # To syscall(), what is not a number yet is an address.
    my @words    = map { /^-?\d+$/ ? $_ + 0 : $_ } split / /, $program[ $number - 1 ];
    my $expected = $words[0] eq "expect" ? (splice @words, 0, 2)[1] : 0;
    my $failed   = eval { operate(@words); 1 } ? undef : $@;
    if ($expected) {
        next if defined $failed && $failed eq "$expected\n";
        print "$number @words: ", defined $failed ? told($failed) : "succeeded", ", and not ", told($expected), "\n";
    }
    elsif (defined $failed) { print "$number @words: ", told($failed), "\n" }
}
print "done ", scalar(@program), "\n";
