/* SPDX-License-Identifier: MIT */
#ifndef DEVICE_H
#define DEVICE_H

#include <stdint.h>

#define UNUSED 0xA5A5A5A5u /* what memory holds that no stack has come to */

int main(void);
void say(const char *text);
void say_number(uint32_t number);
void finish(int is_wrong);
uint32_t ticks(void);
uint32_t since(uint32_t before); /* ticks, fewer than 2^24 */

#endif
