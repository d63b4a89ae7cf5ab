/* mapper maps a memory file as QEMU does, and reports what it finds, one line each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct stat st;
	unsigned char *p;
	unsigned long sum = 0;
	int fd = open(argv[1], O_RDWR | O_CREAT, 0644);

	if (argc < 2 || fd < 0 || fstat(fd, &st) < 0)
		return 1;
	printf("write: %s\n", write(fd, "x", 1) < 0 ? strerror(errno) : "went through");
	/* QEMU reserves the addresses first and then maps over them. */
	p = mmap(NULL, st.st_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	p = mmap(p, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (p == MAP_FAILED)
		return 1;
	printf("second: %s\n", mmap(NULL, st.st_size, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED ? strerror(errno) : "mapped");
	for (off_t i = 0; i < st.st_size; i++)
		sum += p[i] * (1 + i % 251);
	printf("sum: %lu\n", sum);
	memset(p, 9, 8192);
	fflush(stdout);
	if (fork() == 0) { /* a child has no guest memory */
		p[0] = 1;
		_exit(0);
	}
	int status;
	wait(&status);
	printf("child: %s\n", WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "went through");
	printf("wrote: %d\n", p[0] + p[8191]);
	return 0;
}
