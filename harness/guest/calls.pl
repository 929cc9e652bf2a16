# Makes one system call that no command of the guest's busybox makes; prints its result or its error.
#
#   calls.pl create FILE MODE                 open(2), O_CREAT | O_EXCL, with an octal mode
#   calls.pl socket FILE                      bind(2) of a Unix socket
#   calls.pl talk FILE                        sends a word through a new Unix socket, and prints what arrived
#   calls.pl setxattr FILE NAME VALUE [FLAG]  lsetxattr(2); FLAG: create, replace
#   calls.pl number FILE NAME COUNT           lsetxattr(2) of NAME1 to NAMECOUNT, each with its number
#   calls.pl fill FILE NAME SIZE              lsetxattr(2) of SIZE bytes
#   calls.pl getxattr FILE NAME               lgetxattr(2)
#   calls.pl size FILE NAME                   lgetxattr(2), prints the size
#   calls.pl listxattr FILE                   llistxattr(2), in order
#   calls.pl removexattr FILE NAME            lremovexattr(2)
#   calls.pl types FOLDER                     getdents64(2): the type of each entry but . and .., in order
#   calls.pl as UID GID COMMAND               runs COMMAND as another user, in that group only
#
# Needs only the Perl interpreter, no modules. Numbers: kernel arch/x86/entry/syscalls/syscall_64.tbl,
# include/uapi/linux/xattr.h.

my %flags = (create => 1, replace => 2);

sub call {
    my ($name, $number) = (shift, shift);
    my $result = syscall($number, @_);    # The caller's own variables: some are written to.
    die "$name: $!\n" if $result == -1;
    return $result;
}

sub value {
    my ($file, $name) = @_;
    my $buffer = "\0" x 65536;
    my $length = call("lgetxattr", 192, $file, $name, $buffer, length($buffer));
    return substr($buffer, 0, $length);
}

sub setxattr {
    my ($file, $name, $value, $flag) = @_;
    call("lsetxattr", 189, $file, $name, $value, length($value), $flag ? $flags{$flag} : 0);
}

sub bound {
    my ($file) = @_;
    socket(my $socket, 1, 1, 0) or die "socket: $!\n";
    bind($socket, pack("S a*", 1, $file)) or die "bind: $!\n";
    return $socket;
}

my %operations = (
    create => sub { sysopen(my $file, $_[0], 01 | 0100 | 0200, oct($_[1])) or die "open: $!\n" },
    socket => sub { bound(@_) },
    talk   => sub {
        my ($file) = @_;
        my $server = bound($file);
        listen($server, 1) or die "listen: $!\n";
        socket(my $client, 1, 1, 0) or die "socket: $!\n";
        connect($client, pack("S a*", 1, $file)) or die "connect: $!\n";
        syswrite($client, "through it\n");
        accept(my $there, $server) or die "accept: $!\n";
        sysread($there, my $word, 100) or die "read: $!\n";
        print $word;
    },
    setxattr => \&setxattr,
    number   => sub { setxattr($_[0], "$_[1]$_", "$_") for 1 .. $_[2] },
    fill     => sub { setxattr($_[0], $_[1], "x" x $_[2]) },
    getxattr => sub { print value(@_), "\n" },
    size     => sub {
        my $value = value(@_);
        $value eq "x" x length($value) or die "another value\n";
        print length($value), "\n";
    },
    listxattr => sub {
        my ($file) = @_;
        my $buffer = "\0" x 65536;
        my $length = call("llistxattr", 194, $file, $buffer, length($buffer));
        print join(" ", sort(split(/\0/, substr($buffer, 0, $length)))), "\n";
    },
    removexattr => sub { call("lremovexattr", 198, @_) },
    types       => sub {
        my ($folder) = @_;
        my $file = call("open", 2, $folder, 0200000);
        my ($buffer, %types, $length) = ("\0" x 65536);
        while (($length = call("getdents64", 217, $file, $buffer, length($buffer))) > 0) {
            for (my $at = 0; $at < $length;) {
                my ($size, $type, $name) = unpack("x16 S C Z*", substr($buffer, $at));
                $types{$name} = $type unless $name =~ /^\.\.?$/;
                $at += $size;
            }
        }
        print join(" ", map { "$_:$types{$_}" } sort(keys(%types))), "\n";
    },
    as => sub {
        my ($user, $group, @command) = @_;
        $) = "$group $group";
        $( = $group;
        ($<, $>) = ($user, $user);
        exec("sh", "-c", "@command");
    },
);

my ($what, @values) = @ARGV;
my $operation = $operations{$what} or die "calls.pl: no operation $what\n";
$operation->(@values);
