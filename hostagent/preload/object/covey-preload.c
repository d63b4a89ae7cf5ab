/*
 * covey-preload.so makes a VMM that maps its guest's memory from a file take it from Covey's pager. See doc.go.
 *
 * The object is inert unless COVEY_MEM_FD is set. Whatever goes wrong ends the process with status 127 and one line on
 * standard error: a VM whose memory is not what it should be must never run.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW /* kernel headers before 6.1 */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* What the environment said; written once, before main. mem_fd is -1 where the object is inert. */
static int mem_fd = -1, dev_fd = -1;
static dev_t mem_dev;
static ino_t mem_ino;
static char mem_path[64];
static struct sockaddr_un pager = {.sun_family = AF_UNIX};
/* Set by the first mapping of the memory file. */
static atomic_flag mapped = ATOMIC_FLAG_INIT;

static void die(const char *what, int err)
{
	char line[512];
	int n = snprintf(line, sizeof line, "covey-preload: %s%s%s\n", what, err ? ": " : "", err ? strerror(err) : "");

	if (n > 0 && write(STDERR_FILENO, line, (size_t)n < sizeof line ? (size_t)n : sizeof line - 1) < 0)
		_exit(127);
	_exit(127);
}

/* env_fd reads a descriptor's number from the environment; -1 where the variable is not set. */
static int env_fd(const char *name)
{
	const char *s = getenv(name);
	char *end, what[128];
	long fd;

	if (!s)
		return -1;
	errno = 0;
	fd = strtol(s, &end, 10);
	snprintf(what, sizeof what, "%s=%.40s is not an open descriptor", name, s);
	if (errno || end == s || *end || fd < 0 || fd > INT_MAX)
		die(what, 0);
	if (fcntl((int)fd, F_GETFD) < 0)
		die(what, errno);
	return (int)fd;
}

__attribute__((constructor)) static void start(void)
{
	const char *socket_path = getenv("COVEY_PAGER_SOCKET");
	struct stat st;
	int fd = env_fd("COVEY_MEM_FD");

	if (fd < 0)
		return;
	if (!socket_path)
		die("COVEY_PAGER_SOCKET is not set", 0);
	if (strlen(socket_path) >= sizeof pager.sun_path)
		die("COVEY_PAGER_SOCKET is too long for a Unix socket's path (at most 107 bytes)", 0);
	strcpy(pager.sun_path, socket_path);
	if (fstat(fd, &st) < 0)
		die("fstat of the memory file", errno);
	dev_fd = env_fd("COVEY_UFFD_FD");
	mem_dev = st.st_dev;
	mem_ino = st.st_ino;
	snprintf(mem_path, sizeof mem_path, "/proc/self/fd/%d", fd);
	mem_fd = fd;
	/* Programs that the VMM starts have no guest memory, nor these descriptors. */
	unsetenv("LD_PRELOAD");
	unsetenv("COVEY_MEM_FD");
	unsetenv("COVEY_UFFD_FD");
	unsetenv("COVEY_PAGER_SOCKET");
}

/* new_userfaultfd makes one that also serves faults of the kernel on the VMM's behalf (a read from the disk into the guest). */
static int new_userfaultfd(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int fd;

	if (dev_fd >= 0)
		fd = ioctl(dev_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	else
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		die(dev_fd >= 0 ? "making a userfaultfd from COVEY_UFFD_FD" : "userfaultfd (COVEY_UFFD_FD is not set)", errno);
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		die("UFFDIO_API", errno);
	return fd;
}

/* hand_over sends the regions and the userfaultfd, as Firecracker does. page_size_kib is bytes there too, for all its name. */
static void hand_over(int uffd, void *addr, size_t len, off_t off)
{
	char text[256], control[CMSG_SPACE(sizeof(int))] = {0};
	int n = snprintf(text, sizeof text,
			 "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,\"page_size\":4096,\"page_size_kib\":4096}]",
			 (unsigned long long)(size_t)addr, (unsigned long long)len, (unsigned long long)off);
	struct iovec iov = {text, (size_t)n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	ssize_t sent;
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &uffd, sizeof uffd);
	if (s < 0)
		die("socket", errno);
	if (connect(s, (struct sockaddr *)&pager, sizeof pager) < 0)
		die("connecting to the pager at COVEY_PAGER_SOCKET", errno);
	do
		sent = sendmsg(s, &msg, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent != n)
		die("sending the userfaultfd to the pager", sent < 0 ? errno : EIO);
	close(s);
}

static void *raw_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, off);
}

/*
 * map_memory maps the guest's memory. The userfaultfd stays open: it keeps the range registered while no pager runs, and
 * the next pager takes it from here. Children must not see the range: in them it would not be registered.
 */
static void *map_memory(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	int uffd;
	void *p = raw_mmap(addr, len, prot, (flags & ~(MAP_TYPE | MAP_SYNC | MAP_POPULATE)) | MAP_PRIVATE | MAP_NORESERVE, fd, off);

	if (p == MAP_FAILED)
		return p;
	uffd = new_userfaultfd();
	reg.range.start = (size_t)p;
	reg.range.len = len;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0)
		die("UFFDIO_REGISTER", errno);
	if (madvise(p, len, MADV_DONTFORK) < 0)
		die("MADV_DONTFORK", errno);
	hand_over(uffd, p, len, off);
	return p;
}

static int is_memory(int fd)
{
	struct stat st;

	return mem_fd >= 0 && fd >= 0 && fstat(fd, &st) == 0 && st.st_ino == mem_ino && st.st_dev == mem_dev;
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
	if ((flags & MAP_ANONYMOUS) || !is_memory(fd))
		return raw_mmap(addr, len, prot, flags, fd, off);
	if (atomic_flag_test_and_set(&mapped)) {
		/* Touched outside the registered range, a hole of the file would become a page of zeros for every clone. */
		errno = EBUSY;
		return MAP_FAILED;
	}
	return map_memory(addr, len, prot, flags, fd, off);
}

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return mmap64(addr, len, prot, flags, fd, off);
}

/* open_any answers an open of the memory file with a duplicate of the read-only descriptor, whatever access is asked for. */
static int open_any(int dir, const char *path, int flags, mode_t mode)
{
	if (mem_fd >= 0 && path && strcmp(path, mem_path) == 0)
		return fcntl(mem_fd, flags & O_CLOEXEC ? F_DUPFD_CLOEXEC : F_DUPFD, 3);
	return (int)syscall(SYS_openat, dir, path, flags, mode);
}

/* mode_of reads the mode that follows flags in a call of open, where there is one. */
#define mode_of(flags, mode)                                           \
	do {                                                           \
		if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
			va_list args;                                  \
			va_start(args, flags);                         \
			mode = va_arg(args, mode_t);                   \
			va_end(args);                                  \
		}                                                      \
	} while (0)

int open(const char *path, int flags, ...)
{
	mode_t mode = 0;

	mode_of(flags, mode);
	return open_any(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	mode_t mode = 0;

	mode_of(flags, mode);
	return open_any(AT_FDCWD, path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...)
{
	mode_t mode = 0;

	mode_of(flags, mode);
	return open_any(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...)
{
	mode_t mode = 0;

	mode_of(flags, mode);
	return open_any(dir, path, flags, mode);
}

/* What glibc's headers make of open with _FORTIFY_SOURCE. */
int __open_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
int __openat_2(int dir, const char *path, int flags) { return open_any(dir, path, flags, 0); }
int __openat64_2(int dir, const char *path, int flags) { return open_any(dir, path, flags, 0); }
