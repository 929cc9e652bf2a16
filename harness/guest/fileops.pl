# Performs operations on files, and checks each, in one process of the guest: faster than a command for each.
#
#   perl fileops.pl SIZE FOLDER < POOL PROGRAM
#
# Standard input begins with SIZE bytes, the pool, from which all content is taken. The program follows, one
# line for each operation (fileops.py writes it). A line "expect ERRNO OPERATION…" means that the operation
# must fail with this errno. For each operation with a wrong result one line is printed: its number, the
# operation, the reason. The last line is "done" and the number of operations. A failed operation does not end
# the program. FOLDER is for the file with the process id, and for the files that control pauses.
#
# Needs only the Perl interpreter, no modules.
# Numbers: kernel arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/{fcntl,mman}.h.

my ($PROT_READ, $PROT_WRITE, $MAP_SHARED, $MAP_PRIVATE, $MS_SYNC) = (1, 2, 1, 2, 4);
my $AT_FDCWD = -100;

# The process handles this signal, and does nothing.
$SIG{USR1} = sub { };
my ($size, $control) = @ARGV;
open(my $pid, ">", "$control/fileops.pid") or die "fileops.pid: $!\n";
print $pid "$$\n";
close($pid);

binmode STDIN;
read(STDIN, my $pool, $size) == $size or die "the pool is short\n";
my @program = <STDIN>;
chomp @program;

# The pool, repeated. SIZE is a prime number, so that no two blocks of a file are equal by chance.
my $bytes = $pool x 40;

sub content { my ($seed, $length) = @_; return substr($bytes, $seed % $size, $length); }

# The open files by the program's names for them: descriptor, and the name of their content.
my %files;
# The expected content of each file. Several names of a file share it.
my %content;

sub call {
    my $number = shift;
    my $result = syscall($number, @_);    # @_ aliases the caller's variables: the kernel writes to some of them.
    die 0 + $!, "\n" if $result == -1;
    return $result;
}

sub handle { my ($name) = @_; return $files{$name} || die "no file $name is open\n"; }

# A gap is filled with zeros, as the kernel does.
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

# mmap(2) maps whole pages; the accessed range need not begin or end with a page.
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

# Perl cannot write to a raw address; read(2) from a pipe can.
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

# The names in a folder, without "." and ".." (getdents64(2)): all of them, or those of one call.
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

# Each process writes its part of each stripe and reads it back, stripe by stripe.
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
    # given MODEL SEED LENGTH: the host has created the file with this content.
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
    # whole FILE BYTES: read the whole file, BYTES at a time.
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
    # fstat FILE LINKS: check the size and the number of links.
    fstat => sub {
        my ($name, $links) = @_;
        my $file  = handle($name);
        my @found = attributes($file->{kept});
        same("the size",  $found[7], length($content{ $file->{model} }));
        same("the links", $found[3], $links);
    },
    # links FILE LINKS: check only the number of links, as for a folder.
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
    # Write to a shared mapping and sync it; write to a private mapping, which does not change the file.
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
    # processes FILE COUNT LENGTH ROUNDS SEED: COUNT processes use the same open file at the same time.
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
        my $failed = <$from>;
        die $failed if defined $failed;
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
    # names FILE COUNT BYTES: an open folder has COUNT names, each once; it is read BYTES at a time.
    names => sub {
        my ($name, $count, $step) = @_;
        call(8, handle($name)->{fd}, 0, 0);
        each_once($count, names(handle($name)->{fd}, $step, 0));
    },
    # part FILE BYTES: read the names that one call returns. rest FILE PREFIX COUNT BYTES: read the others; no name
    # may come twice, and COUNT names that begin with PREFIX have existed all the time.
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
    # pause NAME: wait, with all files open, until the host continues the program.
    pause => sub {
        my ($name) = @_;
        open(my $file, ">", "$control/fileops.$name.reached") or die "pause: $!\n";
        close($file);
        select(undef, undef, undef, 0.02) until -e "$control/fileops.$name.go";
    },
);

sub operate {
    my ($what, @values) = @_;
    my $operation = $operations{$what} or die "there is no such operation\n";
    $operation->(@values);
}

# A failed system call dies with its errno, which is given its text here.
sub reason { my ($why) = @_; chomp $why; return $why =~ /^\d+$/ ? do { local $! = $why; "errno $why ($!)" } : $why; }

$| = 1;
for my $number (1 .. @program) {
    # syscall() passes strings as addresses, so numbers are converted.
    my @words    = map { /^-?\d+$/ ? $_ + 0 : $_ } split / /, $program[ $number - 1 ];
    my $expected = $words[0] eq "expect" ? (splice @words, 0, 2)[1] : 0;
    my $failed   = eval { operate(@words); 1 } ? undef : $@;
    if ($expected) {
        next if defined $failed && $failed eq "$expected\n";
        print "$number @words: ", defined $failed ? reason($failed) : "succeeded", ", and not ", reason($expected), "\n";
    }
    elsif (defined $failed) { print "$number @words: ", reason($failed), "\n" }
}
print "done ", scalar(@program), "\n";
