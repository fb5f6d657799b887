/* The test guest: the measuring stick for metering.
 *
 * A freestanding x86-64 kernel of a few KiB that does exactly the I/O it is told to and nothing
 * else, so that every byte a meter shows can be checked. It prints READY once it runs. When its
 * work is over, or cut short by a request to stop, it prints DID and how many KiB it has written
 * and read and how many frames it has sent, and DONE n after n rounds, whole or not. Then it waits
 * for a request to stop, prints BYE, and obeys.
 *
 * Boot arguments, all numbers:
 *   blkw=KiB    write so much to the disk, each round
 *   blkr=KiB    read so much from the disk, each round
 *   tx=N        send N Ethernet frames of 1000 bytes, each round
 *   loop=N      rounds (default 1)
 *   hz=N        begin N rounds a second (19 to 1000) instead of one right after the other
 *   spin=1      burn CPU afterwards instead of halting
 *   relay=1     afterwards, say RELAY; then send each frame that a datagram to port 57024 holds,
 *               and print what else comes as GOT and hexadecimal digits
 *
 * Requests to stop: Ctrl-Alt-Del on the i8042 (Firecracker; answered with the reset line) and
 * the ACPI power button of a generic event device (QEMU microvm; answered with sleep type 5).
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }

static inline u8 inb(u16 port)
{
	u8 value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void barrier(void) { __asm__ volatile("" ::: "memory"); }

/* ---- serial console -------------------------------------------------------------------- */

#define COM1 0x3f8

static void print(const char *text)
{
	while (*text)
		outb(COM1, *text++);
}

/* With a space before it. */
static void print_number(u64 number)
{
	char digits[24];
	int at = 23;
	digits[at] = 0;
	do {
		digits[--at] = '0' + number % 10;
		number /= 10;
	} while (number);
	digits[--at] = ' ';
	print(digits + at);
}

/* ---- boot arguments -------------------------------------------------------------------- */

static const char *command_line;

static int starts_with(const char *text, const char *prefix)
{
	while (*prefix)
		if (*text++ != *prefix++)
			return 0;
	return 1;
}

/* Value of `name` (which ends in '='), 0 if it is not there. */
static u64 argument(const char *name)
{
	for (const char *at = command_line; *at; at++) {
		if ((at != command_line && at[-1] != ' ') || !starts_with(at, name))
			continue;
		while (*at != '=')
			at++;
		u64 value = 0;
		for (at++; *at >= '0' && *at <= '9'; at++)
			value = value * 10 + (*at - '0');
		return value;
	}
	return 0;
}

/* ---- virtio over MMIO, version 2 (virtio 1.2, section 4.2), polled ------------------------ */

enum register_offset {
	MAGIC = 0x00,
	DEVICE_ID = 0x08,
	DEVICE_FEATURES_SEL = 0x14,
	DRIVER_FEATURES = 0x20,
	DRIVER_FEATURES_SEL = 0x24,
	QUEUE_SEL = 0x30,
	QUEUE_NUM = 0x38,
	QUEUE_READY = 0x44,
	QUEUE_NOTIFY = 0x50,
	STATUS = 0x70,
	QUEUE_DESC = 0x80,
	QUEUE_DRIVER = 0x90,
	QUEUE_DEVICE = 0xa0,
	CONFIG = 0x100,
};

enum { TYPE_NET = 1, TYPE_BLOCK = 2 };
enum { DESC_NEXT = 1, DESC_WRITE = 2 };
enum { QUEUE_SIZE = 16 };

/* Where QEMU's microvm has its transports. With ACPI it does not name them on the command line. */
enum { QEMU_SLOTS = 24, QEMU_SLOT_BYTES = 0x200 };
#define QEMU_TRANSPORTS 0xfeb00000UL
#define VIRTIO_MAGIC 0x74726976 /* "virt"; empty slots have it too */

/* Fixed places in guest memory, below the page tables at 4 MiB. */
#define IDT 0x200000UL
#define BLOCK_QUEUES 0x210000UL
#define NET_QUEUES 0x220000UL
#define BLOCK_HEADER 0x240000UL
#define BLOCK_STATUS 0x240100UL
#define NET_FRAME 0x250000UL
#define NET_RECEIVED 0x260000UL
#define BLOCK_DATA 0x300000UL

#define REG(base, offset) (*(volatile u32 *)((base) + (offset)))

struct descriptor {
	u64 address;
	u32 length;
	u16 flags;
	u16 next;
};

struct queue {
	volatile struct descriptor *descriptors;
	volatile u16 *available;
	volatile u16 *used;
	u16 last_used;
	u32 number;
	u64 device;
};

static u64 probe_transport(u64 base, u32 type)
{
	return REG(base, MAGIC) == VIRTIO_MAGIC && REG(base, DEVICE_ID) == type ? base : 0;
}

static int on_qemu(void) { return REG(QEMU_TRANSPORTS, MAGIC) == VIRTIO_MAGIC; }

/* Registers of the first device of this type: as named on the command line
 * (virtio_mmio.device=4K@0xd0000000:5), else in QEMU's slots. 0 if there is none. */
static u64 find_device(u32 type)
{
	for (const char *at = command_line; *at; at++) {
		if (!starts_with(at, "@0x"))
			continue;
		u64 base = 0;
		for (at += 3;; at++) {
			if (*at >= '0' && *at <= '9')
				base = base * 16 + (*at - '0');
			else if (*at >= 'a' && *at <= 'f')
				base = base * 16 + (*at - 'a' + 10);
			else
				break;
		}
		if (probe_transport(base, type))
			return base;
		at--;
	}
	for (u64 slot = 0; on_qemu() && slot < QEMU_SLOTS; slot++)
		if (probe_transport(QEMU_TRANSPORTS + slot * QEMU_SLOT_BYTES, type))
			return QEMU_TRANSPORTS + slot * QEMU_SLOT_BYTES;
	return 0;
}

static void start_device(u64 device, struct queue *queues, u32 count, u64 memory)
{
	REG(device, STATUS) = 0;
	REG(device, STATUS) = 1;     /* ACKNOWLEDGE */
	REG(device, STATUS) = 1 | 2; /* DRIVER */
	REG(device, DRIVER_FEATURES_SEL) = 0;
	REG(device, DRIVER_FEATURES) = 0;
	REG(device, DRIVER_FEATURES_SEL) = 1;
	REG(device, DRIVER_FEATURES) = 1; /* VIRTIO_F_VERSION_1 and nothing else */
	REG(device, STATUS) = 1 | 2 | 8;  /* FEATURES_OK */
	for (u32 number = 0; number < count; number++) {
		struct queue *queue = &queues[number];
		u64 base = memory + number * 0x4000;
		for (u64 at = base; at < base + 0x3000; at += 8)
			*(volatile u64 *)at = 0;
		queue->descriptors = (void *)base;
		queue->available = (void *)(base + 0x1000);
		queue->used = (void *)(base + 0x2000);
		queue->last_used = 0;
		queue->number = number;
		queue->device = device;
		queue->available[0] = 1; /* VIRTQ_AVAIL_F_NO_INTERRUPT */
		REG(device, QUEUE_SEL) = number;
		REG(device, QUEUE_NUM) = QUEUE_SIZE;
		REG(device, QUEUE_DESC) = (u32)base;
		REG(device, QUEUE_DESC + 4) = 0;
		REG(device, QUEUE_DRIVER) = (u32)(base + 0x1000);
		REG(device, QUEUE_DRIVER + 4) = 0;
		REG(device, QUEUE_DEVICE) = (u32)(base + 0x2000);
		REG(device, QUEUE_DEVICE + 4) = 0;
		REG(device, QUEUE_READY) = 1;
	}
	REG(device, STATUS) = 1 | 2 | 4 | 8; /* DRIVER_OK */
}

static void describe(struct queue *queue, u16 at, u64 address, u32 length, u16 flags)
{
	queue->descriptors[at].address = address;
	queue->descriptors[at].length = length;
	queue->descriptors[at].flags = flags;
	queue->descriptors[at].next = at + 1;
}

/* Hand the chain that begins at descriptor 0 to the device, and wait until it is used. */
static void submit(struct queue *queue)
{
	u16 index = queue->available[1];
	queue->available[2 + index % QUEUE_SIZE] = 0;
	barrier();
	queue->available[1] = index + 1;
	barrier();
	REG(queue->device, QUEUE_NOTIFY) = queue->number;
	while (queue->used[1] == queue->last_used)
		__asm__ volatile("pause");
	queue->last_used++;
}

/* ---- work ------------------------------------------------------------------------------ */

static volatile u32 stopping;
static u64 block, net;
static struct queue block_queues[1], net_queues[2];

/* Returns the KiB done: fewer than asked for if it is to stop meanwhile. */
static u64 block_io(u32 type, u64 kib)
{
	volatile u32 *header = (void *)BLOCK_HEADER;
	volatile u8 *status = (void *)BLOCK_STATUS;
	u64 capacity = REG(block, CONFIG) | ((u64)REG(block, CONFIG + 4) << 32);
	u64 sector = 0, done = 0;
	while (done < kib && !stopping) {
		u32 chunk = kib - done > 64 ? 64 : kib - done;
		if (sector + chunk * 2 > capacity)
			sector = 0;
		header[0] = type;
		header[1] = 0;
		header[2] = (u32)sector;
		header[3] = (u32)(sector >> 32);
		*status = 0xff;
		describe(&block_queues[0], 0, BLOCK_HEADER, 16, DESC_NEXT);
		describe(&block_queues[0], 1, BLOCK_DATA, chunk << 10, type ? DESC_NEXT : DESC_NEXT | DESC_WRITE);
		describe(&block_queues[0], 2, BLOCK_STATUS, 1, DESC_WRITE);
		submit(&block_queues[0]);
		if (*status) {
			print("BLKERR\n");
			break;
		}
		done += chunk;
		sector += chunk * 2;
	}
	return done;
}

/* Returns the frames sent. */
static u64 send_frames(u64 frames)
{
	static const u8 ethernet[14] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x06, 0x00,
					0xac, 0x10, 0x00, 0x02, 0x88, 0xb5};
	volatile u8 *frame = (void *)NET_FRAME;
	for (int i = 0; i < 12 + 1000; i++) /* virtio-net header, then the frame */
		frame[i] = i >= 12 && i < 26 ? ethernet[i - 12] : 0;
	u64 sent = 0;
	while (sent < frames && !stopping) {
		describe(&net_queues[1], 0, NET_FRAME, 12 + 1000, 0);
		submit(&net_queues[1]);
		sent++;
	}
	return sent;
}

/* ---- relay ----------------------------------------------------------------------------- */

/* Firecracker reads from its tap only while it is lent room for the longest frame, 64 KiB. */
enum { BUFFERS = 15, BUFFER_BYTES = 8192, VNET_HEADER = 12, RELAY_PORT = 57024 };

/* Ethernet, IPv6 and UDP: where the payload of a datagram begins. */
enum { DATAGRAM = 14 + 40 + 8 };

/* How many bytes of a frame to send a received one holds; 0 if it is none of those. */
static u32 told(volatile u8 *frame, u32 length)
{
	if (length < DATAGRAM || frame[12] != 0x86 || frame[13] != 0xdd || frame[20] != 17)
		return 0;
	u32 port = frame[56] << 8 | frame[57], held = (frame[58] << 8 | frame[59]) - 8;
	return port == RELAY_PORT && DATAGRAM + held <= length ? held : 0;
}

static void print_frame(volatile u8 *frame, u32 length)
{
	char digits[3] = {0};
	print("GOT ");
	for (u32 i = 0; i < length; i++) {
		digits[0] = "0123456789abcdef"[frame[i] >> 4];
		digits[1] = "0123456789abcdef"[frame[i] & 15];
		print(digits);
	}
	print("\n");
}

static void relayed(volatile u8 *buffer, u32 length)
{
	volatile u8 *frame = buffer + VNET_HEADER, *sent = (volatile u8 *)NET_FRAME;
	u32 held = told(frame, length);
	if (!held) {
		print_frame(frame, length);
		return;
	}
	for (u32 i = 0; i < VNET_HEADER + held; i++)
		sent[i] = i < VNET_HEADER ? 0 : frame[DATAGRAM + i - VNET_HEADER];
	describe(&net_queues[1], 0, NET_FRAME, VNET_HEADER + held, 0);
	submit(&net_queues[1]);
}

/* Lend the device a buffer. */
static void lend(struct queue *queue, u16 number)
{
	u16 index = queue->available[1];
	describe(queue, number, NET_RECEIVED + number * BUFFER_BYTES, BUFFER_BYTES, DESC_WRITE);
	queue->available[2 + index % QUEUE_SIZE] = number;
	barrier();
	queue->available[1] = index + 1;
	barrier();
	REG(queue->device, QUEUE_NOTIFY) = queue->number;
}

/* Handle all that came. */
static void relay_waiting(void)
{
	struct queue *queue = &net_queues[0];
	while (queue->used[1] != queue->last_used) {
		volatile u32 *used = (volatile u32 *)(queue->used + 2) + queue->last_used++ % QUEUE_SIZE * 2;
		u16 number = used[0];
		relayed((volatile u8 *)NET_RECEIVED + number * BUFFER_BYTES, used[1] - VNET_HEADER);
		lend(queue, number);
	}
}

/* ---- interrupts ------------------------------------------------------------------------ */

#define PIC1 0x20
#define PIC2 0xa0
#define END_OF_INTERRUPT 0x20

/* QEMU's microvm firmware leaves the local APIC deaf to the PIC: open LINT0 as ExtINT. */
#define APIC_SPURIOUS 0xfee000f0UL
#define APIC_LINT0 0xfee00350UL

/* Generic event device of QEMU's microvm (ACPI 6.4, 5.6.9; QEMU docs/specs/acpi_hw_reduced). */
#define GED_EVENTS 0xfea00000UL
#define GED_SLEEP_CONTROL 0xfea00200UL
#define GED_POWER_BUTTON 2

struct gate {
	u16 offset_low, selector, flags, offset_mid;
	u32 offset_high, reserved;
};

extern void tick_stub(void), keyboard_stub(void), power_button_stub(void), ignore_stub(void);

/* Programmable interval timer, channel 0, on interrupt line 0. */
#define PIT_CHANNEL 0x40
#define PIT_MODE 0x43
#define PIT_HZ 1193182

static volatile u64 ticks;

void on_tick(void)
{
	outb(PIC1, END_OF_INTERRUPT);
	ticks++;
}

static void start_ticks(u64 hz)
{
	u64 divisor = PIT_HZ / hz;
	outb(PIT_MODE, 0x34); /* channel 0, both bytes, rate generator */
	outb(PIT_CHANNEL, divisor > 0xffff ? 0xff : divisor & 0xff);
	outb(PIT_CHANNEL, divisor > 0xffff ? 0xff : divisor >> 8);
	outb(PIC1 + 1, inb(PIC1 + 1) & ~1);
}

static void stop_ticks(void) { outb(PIC1 + 1, inb(PIC1 + 1) | 1); }

/* Halt until an interrupt comes; not at all if it is to stop or a tick came that is not `seen`. */
static void halt(u64 seen)
{
	__asm__ volatile("cli");
	/* `sti` takes effect after `hlt` has begun, so no interrupt slips in between. */
	if (ticks == seen && !stopping)
		__asm__ volatile("sti; hlt");
	else
		__asm__ volatile("sti");
}

/* Halt until a tick comes that is not `seen`; returns it. */
static u64 next_tick(u64 seen)
{
	while (ticks == seen && !stopping)
		halt(seen);
	return ticks;
}

void on_keyboard(void)
{
	u8 code = inb(0x60);
	outb(PIC1, END_OF_INTERRUPT);
	if (code == 0x53 || code == 0x71) /* Delete, in scan code set 1 or 2 */
		stopping = 1;
}

void on_power_button(void)
{
	u32 events = *(volatile u32 *)GED_EVENTS;
	outb(PIC2, END_OF_INTERRUPT);
	outb(PIC1, END_OF_INTERRUPT);
	if (events & GED_POWER_BUTTON)
		stopping = 1;
}

static void stop(void)
{
	print("BYE\n");
	if (on_qemu())
		*(volatile u8 *)GED_SLEEP_CONTROL = (5 << 2) | (1 << 5); /* SLP_TYP 5, SLP_EN */
	else
		outb(0x64, 0xfe); /* pulse the reset line */
	for (;;)
		__asm__ volatile("cli; hlt");
}

static void set_gate(int number, void (*handler)(void))
{
	volatile struct gate *gate = (volatile struct gate *)IDT + number;
	u64 address = (u64)handler;
	gate->offset_low = address;
	gate->selector = 8;
	gate->flags = 0x8e00;
	gate->offset_mid = address >> 16;
	gate->offset_high = 0;
	gate->reserved = 0;
}

static void start_interrupts(int with_power_button)
{
	static struct __attribute__((packed)) {
		u16 limit;
		u64 base;
	} pointer = {256 * 16 - 1, IDT};
	for (int number = 0; number < 256; number++)
		set_gate(number, ignore_stub);
	set_gate(0x20, tick_stub);
	set_gate(0x21, keyboard_stub);
	set_gate(0x29, power_button_stub);
	__asm__ volatile("lidt %0" ::"m"(pointer));
	outb(PIC1, 0x11); /* initialise: vectors 0x20 and 0x28, cascade on line 2 */
	outb(PIC2, 0x11);
	outb(PIC1 + 1, 0x20);
	outb(PIC2 + 1, 0x28);
	outb(PIC1 + 1, 4);
	outb(PIC2 + 1, 2);
	outb(PIC1 + 1, 1);
	outb(PIC2 + 1, 1);
	outb(PIC1 + 1, with_power_button ? 0xf9 : 0xfd); /* let through: keyboard, cascade */
	outb(PIC2 + 1, with_power_button ? 0xfd : 0xff); /* line 9: the power button */
	if (with_power_button) {
		*(volatile u32 *)APIC_SPURIOUS = 0x1ff;
		*(volatile u32 *)APIC_LINT0 = 0x700;
	}
	__asm__ volatile("sti");
}

static void relay(void)
{
	u64 tick = 0;
	for (u16 number = 0; number < BUFFERS; number++)
		lend(&net_queues[0], number);
	start_ticks(1000);
	print("RELAY\n");
	while (!stopping) {
		relay_waiting();
		tick = next_tick(tick);
	}
	stop_ticks();
}

void kmain(const char *arguments)
{
	command_line = arguments;
	start_interrupts(on_qemu());
	print("READY\n");
	block = find_device(TYPE_BLOCK);
	net = find_device(TYPE_NET);
	if (block)
		start_device(block, block_queues, 1, BLOCK_QUEUES);
	if (net)
		start_device(net, net_queues, 2, NET_QUEUES);

	u64 to_write = argument("blkw="), to_read = argument("blkr="), to_send = argument("tx=");
	u64 rounds = argument("loop="), spin = argument("spin="), done = 0;
	u64 written = 0, read = 0, sent = 0;
	u64 hz = argument("hz="), tick = 0;
	if (hz)
		start_ticks(hz);
	do {
		if (block && to_write)
			written += block_io(1, to_write);
		if (block && to_read)
			read += block_io(0, to_read);
		if (net && to_send)
			sent += send_frames(to_send);
		done++;
		if (hz && done < rounds)
			tick = next_tick(tick);
	} while (done < rounds && !stopping);
	if (hz)
		stop_ticks();
	print("DID");
	print_number(written);
	print_number(read);
	print_number(sent);
	print("\nDONE");
	print_number(done);
	print("\n");

	if (net && argument("relay="))
		relay();
	while (!stopping) {
		if (spin)
			for (volatile u32 i = 0; i < 1000; i++)
				;
		else
			halt(ticks);
	}
	stop();
}
