/* The relay of the packet suite on Linux, as `relay=1` is in guest.c: says RELAY; then sends each
 * frame that a datagram to port 57024 holds, as it is, and prints what else comes to the interface
 * as GOT and hexadecimal digits.
 *
 *   relay INTERFACE
 */
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

enum { RELAY_PORT = 57024, DATAGRAM = 14 + 40 + 8 };

/* How many bytes of a frame to send a received one holds; 0 if it is none of those. */
static size_t told(const unsigned char *frame, size_t length)
{
	if (length < DATAGRAM || frame[12] != 0x86 || frame[13] != 0xdd || frame[20] != 17)
		return 0;
	size_t port = frame[56] << 8 | frame[57], held = (frame[58] << 8 | frame[59]) - 8;
	return port == RELAY_PORT && DATAGRAM + held <= length ? held : 0;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int count, char **words)
{
	static unsigned char frame[65536];
	int wire = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
	struct sockaddr_ll place = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
	int one = 1;
	if (count != 2 || wire < 0)
		fail("socket");
	place.sll_ifindex = if_nametoindex(words[1]);
	if (bind(wire, (struct sockaddr *)&place, sizeof place))
		fail("bind");
	if (setsockopt(wire, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one))
		fail("PACKET_IGNORE_OUTGOING");
	/* Its own stack would answer orders that nobody listens for. */
	int orders = socket(AF_INET6, SOCK_DGRAM, 0);
	struct sockaddr_in6 port = {.sin6_family = AF_INET6, .sin6_port = htons(RELAY_PORT)};
	if (orders < 0 || bind(orders, (struct sockaddr *)&port, sizeof port))
		fail("port");
	puts("RELAY");
	for (;;) {
		fflush(stdout); /* a line at a time, also where it is no terminal */
		ssize_t length = recv(wire, frame, sizeof frame, 0);
		if (length < 0)
			fail("recv");
		size_t held = told(frame, length);
		if (held) {
			if (send(wire, frame + DATAGRAM, held, 0) < 0)
				printf("REFUSED %zu bytes\n", held);
			continue;
		}
		fputs("GOT ", stdout);
		for (ssize_t i = 0; i < length; i++)
			printf("%02x", frame[i]);
		putchar('\n');
	}
}
