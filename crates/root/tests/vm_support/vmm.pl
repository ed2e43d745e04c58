#!/usr/bin/perl
# A stand-in for hostile and broken VMMs: it takes Firecracker's arguments and behaves as the mode below says.
use strict;
use Socket;
my $mode = '@MODE@';
my %arg = @ARGV;
$| = 1;
my $config = do { local $/; open(my $f, '<', $arg{'--config-file'}) or die "no config: $!\n"; <$f> };
print "config $config\n";
if ($mode eq 'dies') { print "first\nsecond\nthird\nboom: no such kernel\e[31m\nlast\n"; exit 3 }
if ($mode eq 'silent') { exit 4 }
if ($mode eq 'hangs') { sleep 1000 }
if ($mode eq 'drives') { while ($config =~ /"path_on_host":"([^"]+)"/g) { open(my $d, '+<', $1) or die "$1: $!\n"; syswrite($d, "written by the VM") or die "$1: $!\n"; print "wrote $1\n"; push our @open, $d } }
sub listener { my ($path) = @_; socket(my $s, AF_UNIX, SOCK_STREAM, 0); bind($s, sockaddr_un($path)) or die "bind: $!\n"; listen($s, 8); $s }
my ($vsock) = $config =~ /"uds_path":"([^"]+)"/;
my $v = listener($vsock) unless $mode eq 'no-vsock';
if ($mode eq 'not-its-own') { if (!fork) { my $s = listener($arg{'--api-sock'}); while (accept(my $c, $s)) {} exit } sleep 1000 }
if ($mode eq 'link') { symlink('/mnt/o/other.sock', $arg{'--api-sock'}); sleep 1000 }
if ($mode eq 'file') { open(my $f, '>', $arg{'--api-sock'}); sleep 1000 }
my $s = listener($arg{'--api-sock'});
$SIG{TERM} = sub { print "term\n"; exit 0 };
while (1) {
    accept(my $c, $s) or next;
    my $asked = '';
    while ($asked !~ /\r\n\r\n/) { my $n = sysread($c, $asked, 4096, length $asked); last unless $n }
    if ($mode eq 'killed') { kill 'KILL', $$ }
    if ($mode eq 'hangs-up') { close $c; next }
    if ($mode eq 'mute') { sleep 1000 }
    if ($mode eq 'garbage') { syswrite($c, "\x00\xff no http at all\n" x 10); next }
    if ($mode eq 'endless') { local $SIG{PIPE} = 'IGNORE'; syswrite($c, "HTTP/1.1 200 OK\r\n"); while (syswrite($c, 'x' x 4096)) {} next }
    if ($mode eq 'refuses') { my $b = '{"fault_message":"no way."}'; syswrite($c, "HTTP/1.1 400 Bad Request\r\nContent-Length: " . length($b) . "\r\n\r\n$b"); next }
    my $state = $mode eq 'not-started' ? 'Not started' : 'Running';
    my $b = qq({"id":"$arg{'--id'}","state":"$state","vmm_version":"1.0","app_name":"stand-in"});
    syswrite($c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: " . length($b) . "\r\n\r\n$b");
}
