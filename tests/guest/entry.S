/* Entry of the test guest.
 *
 * One PVH note makes the same ELF file boot in Firecracker, Cloud Hypervisor and QEMU microvm:
 * they all enter at `_start` in 32-bit protected mode without paging, %ebx pointing to a
 * `hvm_start_info` (https://xenbits.xen.org/docs/unstable/misc/pvh.html). From there: identity
 * map 4 GiB with 2 MiB pages, switch to long mode, call kmain(command line).
 */
	.section .note.pvh, "a", @note
	.align 4
	.long 4, 4, 18			/* name size, value size, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long _start

	.set PML4, 0x400000		/* page tables live at 4 MiB, above the image at 1 MiB */
	.set PDPT, 0x401000
	.set PD, 0x402000		/* four pages: one GiB each */

	.section .text.start, "ax"
	.code32
	.globl _start
_start:
	cli
	movl %ebx, %esi			/* hvm_start_info */
	movl $(PDPT + 3), PML4		/* present, writable */
	movl $0, PML4 + 4
	movl $PDPT, %edi
	movl $(PD + 3), %eax
	movl $4, %ecx
1:	movl %eax, (%edi)
	movl $0, 4(%edi)
	addl $0x1000, %eax
	addl $8, %edi
	decl %ecx
	jnz 1b
	movl $PD, %edi
	movl $0x83, %eax		/* present, writable, 2 MiB page */
	movl $2048, %ecx
2:	cmpl $0xc0000000, %eax
	jb 3f
	orl $0x10, %eax			/* device registers live above 3 GiB: not cached */
3:	movl %eax, (%edi)
	movl $0, 4(%edi)
	addl $0x200000, %eax
	addl $8, %edi
	decl %ecx
	jnz 2b
	movl %cr4, %eax
	orl $0x20, %eax			/* PAE */
	movl %eax, %cr4
	movl $PML4, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx		/* EFER.LME */
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	orl $0x80000001, %eax		/* paging, protected mode */
	movl %eax, %cr0
	lgdt gdt_pointer
	ljmp $8, $long_mode

	.code64
long_mode:
	movl $16, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl $0x1f0000, %esp
	movl %esi, %esi			/* clears the upper half */
	movq 24(%rsi), %rdi		/* hvm_start_info.cmdline_paddr */
	call kmain
4:	hlt
	jmp 4b

	/* Interrupt stubs: save what C may change, call the handler, return. */
	.macro ISR name, handler
	.globl \name
\name:
	push %rax
	push %rcx
	push %rdx
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	call \handler
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rdx
	pop %rcx
	pop %rax
	iretq
	.endm

	ISR tick_stub, on_tick
	ISR keyboard_stub, on_keyboard
	ISR power_button_stub, on_power_button
	.globl ignore_stub
ignore_stub:
	iretq

	.align 8
gdt:	.quad 0
	.quad 0x00af9b000000ffff	/* 8: 64-bit code */
	.quad 0x00cf93000000ffff	/* 16: data */
gdt_pointer:
	.word 23
	.long gdt
