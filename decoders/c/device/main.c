/*
 * Decodes a packed file on a device, tensor by tensor, and says what came out: for each its name, how many values it has
 * and the CRC-32 of its bytes; then the memory that was used and the instructions that it took, a value.
 *
 * model.h is what wf2c writes. SPDX-License-Identifier: MIT
 */
#include "device.h"
#include "wf_internal.h"

#include MODEL_HEADER

#define HEAP (1 << 20)

extern uint32_t bss_end, stack_top;

static uint64_t heap[HEAP / 8];
static size_t at, in_use, most; /* the end of the heap; bytes that the reader has, and the most it ever had */
static uint32_t out[1 << 16];

/* A heap that grows and shrinks at its end: the reader gives back what it took last, first, or nearly so. */
typedef struct piece {
    size_t size, is_free;
} piece;

static void *allocate(void *context, size_t size) {
    piece *head = (piece *)((char *)heap + at);
    (void)context;
    size = (size + 7) / 8 * 8;
    if (at + sizeof *head + size + sizeof(size_t) * 2 > HEAP) return NULL;
    head->size = size;
    head->is_free = 0;
    at += sizeof *head + size;
    in_use += size;
    if (in_use > most) most = in_use;
    return head + 1;
}

static void release(void *context, void *memory, size_t size) {
    size_t place = 0, end = 0;
    (void)context;
    (void)size;
    in_use -= ((piece *)memory)[-1].size;
    ((piece *)memory)[-1].is_free = 1;
    while (place < at) { /* the end of the last piece that is in use */
        const piece *head = (const piece *)((char *)heap + place);
        place += sizeof *head + head->size;
        if (!head->is_free) end = place;
    }
    at = end;
}

static uint32_t stack_used(void) {
    const uint32_t *end = &bss_end;
    while (*end == UNUSED) end++;
    return (uint32_t)((const char *)&stack_top - (const char *)end);
}

/* Instructions of a tick: of a loop of which one knows how many it has. */
static uint32_t instructions_of_a_tick(void) {
    uint32_t before = ticks(), count = 1000000;
    __asm__ volatile("1: subs %0, %0, #1\n bne 1b" : "+r"(count) : : "cc");
    return 2000000 / since(before);
}

int main(void) {
    wf_allocator allocator = {allocate, release, NULL, HEAP};
    wf_source source = {MODEL_DATA, sizeof MODEL_DATA, NULL, NULL, 0};
    wf_error error;
    wf_file *file;
    wf_kept kept = {{{0, NULL, NULL}, {0, NULL, NULL}}};
    uint32_t each = instructions_of_a_tick(), before = ticks(), values = 0, opened, decoded = 0;
    size_t i, open_size;
    if (wf_open(&file, &source, &allocator, 0, &error) != WF_OK) {
        say(error.message);
        return 1;
    }
    opened = since(before);
    open_size = in_use;
    for (i = 0; i < wf_count(file); i++) {
        const wf_tensor *tensor = wf_at(file, i);
        size_t size = wf_size(file, i, WF_OWN, &error), n;
        before = ticks();
        if (size > sizeof out || wf_decode(file, &kept, i, WF_OWN, out, size, &error) != WF_OK) {
            say(error.message);
            return 1;
        }
        decoded += since(before);
        for (n = 0; n < tensor->name_size; n++) {
            char letter[2] = {tensor->name[n], 0};
            say(letter);
        }
        say(" ");
        say_number((uint32_t)tensor->values);
        say(" ");
        say_number(wf_crc32(0, (const uint8_t *)out, size));
        say("\n");
        values += (uint32_t)tensor->values;
    }
    wf_forget(file, &kept);
    wf_close(file);
    if (in_use) return 1; /* nothing may stay */
    say("open, bytes of the heap: ");
    say_number((uint32_t)open_size);
    say("\nat most, bytes of the heap: ");
    say_number((uint32_t)most);
    say("\nat most, bytes of the stack: ");
    say_number(stack_used());
    say("\ninstructions to open: ");
    say_number(opened * each);
    say("\ninstructions to decode, a value: ");
    say_number((uint32_t)((uint64_t)decoded * each / values));
    say("\n");
    return 0;
}
