/* A worker that a hostile image has taken over: what it does stands in the path that it is asked for. */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* The socket, and what comes over it. */
enum { SOCKET = 3, IMAGE, REQUEST, OUT };

static void job(void) {
    char byte, space[CMSG_SPACE(3 * sizeof(int))];
    struct iovec into = {&byte, 1};
    struct msghdr message = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    if (recvmsg(SOCKET, &message, 0) != 1 || !CMSG_FIRSTHDR(&message)) exit(9);
}

static void le(unsigned char *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) at[i] = value >> (8 * i);
}

static void reply(uint32_t kind, uint64_t a, uint64_t b, uint64_t c) {
    unsigned char said[38] = "bngr-rep";
    le(said + 8, kind, 4), le(said + 12, a, 8), le(said + 20, b, 8), le(said + 28, c, 8);
    if (write(SOCKET, said, sizeof said) != sizeof said) exit(9);
}

static uint32_t crc(uint32_t sum, const unsigned char *at, size_t length) {
    while (length--) {
        sum ^= *at++;
        for (int i = 0; i < 8; i++) sum = sum & 1 ? sum >> 1 ^ 0x82f63b78 : sum >> 1;
    }
    return sum;
}

/* A log of one change, 512 bytes at `offset`, for an image of `size` bytes, right but for what the caller made wrong. */
static void log_of(uint64_t offset, uint64_t length, uint64_t size) {
    unsigned char end[64];
    le(end, offset, 8), le(end + 8, length, 8), le(end + 16, 0, 8), le(end + 24, 0xffffffff, 8);
    memcpy(end + 32, "bngr-log", 8);
    le(end + 40, size, 8), le(end + 48, length, 8), le(end + 56, 1, 4);
    le(end + 60, crc(crc(~0u, end, 32), end + 40, 20), 4);
    for (uint64_t at = 0; at < length; at += 512) {
        char piece[512] = "overwritten";
        if (write(OUT, piece, sizeof piece) != sizeof piece) exit(9);
    }
    if (write(OUT, end, sizeof end) != sizeof end) exit(9);
    reply(102, length + sizeof end, 1, 7);
}

int main(void) {
    static char asked[4096];
    struct stat image;
    job();
    if (pread(REQUEST, asked, sizeof asked - 1, 0) < 20 || fstat(IMAGE, &image)) return 9;
    for (char *at = asked; at < asked + sizeof asked - 9; at++)
        if (*at == '/' && at[-1] != '/') {
            char *what = at + 1;
            if (!strncmp(what, "abort", 5)) abort();
            if (!strncmp(what, "status", 6)) return 3;
            if (!strncmp(what, "silence", 7)) for (;;) pause();
            if (!strncmp(what, "spin", 4)) for (;;) ;
            if (!strncmp(what, "flood", 5)) {
                static char piece[1 << 20];
                for (int i = 0; i < 256; i++) if (write(OUT, piece, sizeof piece) < 0) return 6;
                return 5;
            }
            if (!strncmp(what, "nothing", 7)) return 0;
            if (!strncmp(what, "noise", 5)) { char noise[4096] = {1}; return write(SOCKET, noise, sizeof noise) < 0; }
            if (!strncmp(what, "huge", 4)) return reply(101, 1ull << 60, 0, 0), 0;
            if (!strncmp(what, "more", 4)) return reply(101, 4096, 0, 0), 0;
            if (!strncmp(what, "written", 7)) return reply(102, 0, 0, 0), 0;
            if (!strncmp(what, "beyond", 6)) return log_of(image.st_size, 512, image.st_size), 0;
            if (!strncmp(what, "across", 6)) return log_of(image.st_size - 512, 1024, image.st_size), 0;
            if (!strncmp(what, "wrap", 4)) return log_of(~511ull, 512, image.st_size), 0;
            if (!strncmp(what, "another", 7)) return log_of(1 << 20, 512, image.st_size + 512), 0;
            if (!strncmp(what, "crooked", 7)) return log_of(7, 512, image.st_size), 0;
            if (!strncmp(what, "good", 4)) return log_of(512, 512, image.st_size), 0;
            if (!strncmp(what, "image", 5)) return write(IMAGE, "x", 1) == 1 ? 0 : 4;
            if (!strncmp(what, "names", 5)) {
                /* What it can reach: told by the status. */
                int wrong = (open("/etc/passwd", O_RDONLY) >= 0) + (open("/proc/self/status", O_RDONLY) >= 0) +
                            (open("/new", O_CREAT | O_WRONLY, 0600) >= 0) + (open("/lib/new", O_CREAT | O_WRONLY, 0600) >= 0) +
                            (fork() >= 0) + (getuid() == 0) + (setuid(0) == 0) + (kill(1, 0) == 0) +
                            (open("/lib/libc.so.6", O_RDWR) >= 0) + (access("/dev/null", F_OK) == 0);
                return 20 + wrong;
            }
            return 8;
        }
    return 9;
}
