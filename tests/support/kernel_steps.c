/* Tells a program of what it is about to change in the kernel's network, and of what it has.
 *
 * To be loaded before libc (LD_PRELOAD), so that it stands between the kernel and whoever asks:
 * the interpreter, libraries, and libraries that libraries call. Nothing happens until somebody
 * in the process asks to be told. A process that is forked off is not watched. */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/netlink.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NETLINK = 1, TUN = 2, MOUNT = 3, UNMOUNT = 4, UNSHARE = 5, UNLINK = 6 };

typedef void (*teller)(int after, int kind, long number, const void *data, long size);

static teller told;
static pid_t watched;

void decisec_watch(teller wanted)
{
	watched = getpid();
	told = wanted;
}

static int is_watched(void)
{
	return told && syscall(SYS_getpid) == watched;
}

/* The kernel's answer, with whoever wanted it told before and after. */
#define STEP(watch, kind, number, data, size, call) ({ \
	int step_watched = (watch) && is_watched(); \
	if (step_watched) \
		told(0, kind, number, data, size); \
	long step_answer = (call); \
	if (step_watched) { \
		int step_error = errno; \
		told(1, kind, number, data, size); \
		errno = step_error; \
	} \
	step_answer; })

/* The protocol of a netlink socket; -1 for any other descriptor. */
static int netlink_of(int fd)
{
	int domain = 0, protocol = 0, error = errno;
	socklen_t size = sizeof domain;
	if (!is_watched())
		return -1;
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) || domain != AF_NETLINK ||
	    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size))
		protocol = -1;
	errno = error;
	return protocol;
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to,
	       socklen_t length)
{
	int netlink = netlink_of(fd);
	return STEP(netlink >= 0, NETLINK, netlink, data, (long)size,
		    syscall(SYS_sendto, fd, data, size, flags, to, length));
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
	return sendto(fd, data, size, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	int netlink = netlink_of(fd);
	char *all = NULL;
	long size = 0;
	if (netlink >= 0) {
		for (size_t i = 0; i < message->msg_iovlen; i++)
			size += (long)message->msg_iov[i].iov_len;
		all = malloc((size_t)size + 1);
		if (!all)
			abort();
		size = 0;
		for (size_t i = 0; i < message->msg_iovlen; i++) {
			memcpy(all + size, message->msg_iov[i].iov_base,
			       message->msg_iov[i].iov_len);
			size += (long)message->msg_iov[i].iov_len;
		}
	}
	ssize_t answer = STEP(netlink >= 0, NETLINK, netlink, all, size,
			      syscall(SYS_sendmsg, fd, message, flags));
	int error = errno;
	free(all);
	errno = error;
	return answer;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	va_start(more, request);
	void *argument = va_arg(more, void *);
	va_end(more);
	/* Those that set something of a tap: _IOW('T', ..., int). */
	int tun = (request & 0xffffff00) == 0x40045400;
	return (int)STEP(tun, TUN, (long)(request & 0xff), NULL, 0,
			 syscall(SYS_ioctl, fd, request, argument));
}

int mount(const char *what, const char *where, const char *type, unsigned long flags,
	  const void *more)
{
	return (int)STEP(1, MOUNT, (long)flags, where, (long)strlen(where),
			 syscall(SYS_mount, what, where, type, flags, more));
}

int umount2(const char *where, int flags)
{
	return (int)STEP(1, UNMOUNT, flags, where, (long)strlen(where),
			 syscall(SYS_umount2, where, flags));
}

int unshare(int flags)
{
	return (int)STEP(1, UNSHARE, flags, NULL, 0, syscall(SYS_unshare, flags));
}

int unlink(const char *path)
{
	int ours = strncmp(path, "/run/netns/", 11) == 0;
	return (int)STEP(ours, UNLINK, 0, path, (long)strlen(path), syscall(SYS_unlink, path));
}
