# The payload: a guest of a few instructions that counts in memory and reports on the serial port. It begins in 64-bit mode, as the
# Linux boot protocol says: %rsi points to the boot parameters, the first GiB is mapped one to one, interrupts are off.
#
# It uses only plain instructions, because it also has to run where KVM emulates them one by one.
#
# Memory (see payload.go): the counter at 0x2000000, 64 pages of patterns from 0x2100000, a ring of 16 pages from 0x2200000.
# For each count n: the counter becomes n, page n%16 of the ring gets n, pattern n%64 is read and checked, and "T" and n are printed.
# With "!" in the command line the guest resets the machine at its third count; with "#" it halts as Linux does.

        .text
        .globl  _start
_start:
        movl    0x228(%rsi), %eax               # boot_params.hdr.cmd_line_ptr
        movq    %rax, %rsi
        xorl    %ebp, %ebp                      # what to do at the third count
next_letter:
        movb    (%rsi), %al
        incq    %rsi
        testb   %al, %al
        jz      patterns
        cmpb    $'!', %al
        jne     1f
        orl     $1, %ebp
1:      cmpb    $'#', %al
        jne     next_letter
        orl     $2, %ebp
        jmp     next_letter

patterns:
        movabsq $0x0101010101010101, %r12
        movq    $0x2100000, %rdi
        xorl    %ebx, %ebx
next_pattern:
        incq    %rbx
        movq    %rbx, %rax
        imulq   %r12, %rax                      # pattern i is 8 bytes of i+1, all over its page
        movl    $512, %ecx
1:      movq    %rax, (%rdi)
        addq    $8, %rdi
        decl    %ecx
        jnz     1b
        cmpq    $64, %rbx
        jb      next_pattern

count:
        movq    $0x2000000, %rdi
        incq    (%rdi)
        movq    (%rdi), %rbx

        movq    %rbx, %rax
        andl    $15, %eax
        shlq    $12, %rax
        movq    %rbx, 0x2200000(%rax)

        movq    %rbx, %rax
        andl    $63, %eax
        movq    %rax, %rcx
        incq    %rcx
        imulq   %r12, %rcx
        shlq    $12, %rax
        cmpq    %rcx, 0x2100000(%rax)
        jne     wrong

        movb    $'T', %al
        call    report

        cmpq    $3, %rbx
        jne     wait
        testl   $1, %ebp
        jnz     reset
        testl   $2, %ebp
        jnz     halt
wait:
        movl    $DELAY, %ecx
1:      decl    %ecx
        jnz     1b
        jmp     count

wrong:                                          # memory is not what it was
        movb    $'B', %al
        call    report
        jmp     stop
reset:
        movb    $0xfe, %al
        outb    %al, $0x64                      # the keyboard controller's reset line
        jmp     stop
halt:
        leaq    last_words(%rip), %rsi
        movw    $0x3f8, %dx
1:      movb    (%rsi), %al
        testb   %al, %al
        jz      stop
        outb    %al, %dx
        incq    %rsi
        jmp     1b
stop:
        hlt
        jmp     stop

# report prints the letter in %al, %rbx in 16 hexadecimal digits, and a line feed.
report:
        movw    $0x3f8, %dx
        outb    %al, %dx
        movq    %rbx, %rsi
        movl    $16, %ecx
1:      rolq    $4, %rsi
        movl    %esi, %eax
        andl    $15, %eax
        addl    $'0', %eax
        cmpl    $'9', %eax
        jbe     2f
        addl    $('a' - '0' - 10), %eax
2:      outb    %al, %dx
        decl    %ecx
        jnz     1b
        movb    $'\n', %al
        outb    %al, %dx
        ret

last_words:
        .asciz  "reboot: System halted\r\n"
