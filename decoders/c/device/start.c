/*
 * What a Cortex-M runs before and around main, and how it talks to a debugger or an emulator (semihosting of Arm).
 * SPDX-License-Identifier: MIT
 */
#include "device.h"

extern uint32_t data_start, data_end, data_kept, bss_start, bss_end, stack_top;

void reset(void);

static void stop(void) {
    finish(1);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, (const void *)stop, (const void *)stop, (const void *)stop, (const void *)stop,
    (const void *)stop,
};

static int ask(int what, const void *with) {
    register int r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = with;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void say(const char *text) {
    ask(0x04, text); /* SYS_WRITE0 */
}

void say_number(uint32_t number) {
    char text[11];
    int at = 10;
    text[at] = 0;
    do {
        text[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    say(text + at);
}

void finish(int is_wrong) {
    ask(0x18, (const void *)(is_wrong ? 0x20023u : 0x20026u)); /* SYS_EXIT: an error, or the end of the program */
    for (;;) continue;
}

/* Ticks of the processor's own timer, which counts down from 2^24 - 1. */
#define SYSTICK ((volatile uint32_t *)0xE000E010)

uint32_t ticks(void) {
    return 0xFFFFFF - SYSTICK[2];
}

uint32_t since(uint32_t before) {
    return (ticks() - before) & 0xFFFFFF;
}

void reset(void) {
    uint32_t *from = &data_kept, *to, *end = (uint32_t *)__builtin_frame_address(0) - 64;
    for (to = &data_start; to < &data_end;) *to++ = *from++;
    for (to = &bss_start; to < &bss_end;) *to++ = 0;
    for (to = &bss_end; to < end;) *to++ = UNUSED; /* so that one sees how far the stack has come */
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20;  /* floating point, where the processor has it */
    SYSTICK[1] = 0xFFFFFF;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5;
    finish(main());
}
