/* Runs the fuzzer's function on inputs from standard input, each with its length before it (32 bits, little-endian). */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(void) {
    uint8_t head[4];
    unsigned long count = 0;
    while (fread(head, 1, 4, stdin) == 4) {
        size_t size = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
        uint8_t *data = (uint8_t *)malloc(size ? size : 1); /* exactly, so that reads beyond it are seen */
        if (data == NULL || fread(data, 1, size, stdin) != size) return 1;
        LLVMFuzzerTestOneInput(data, size);
        free(data);
        count++;
    }
    printf("%lu\n", count);
    return 0;
}
