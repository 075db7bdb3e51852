/* A strict reader of JSON (RFC 8259). SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#ifndef WF_PLAIN

#define MOST_DIGITS 4300 /* of a whole number */

wf_code wf_json_fail(wf_json *json, const char *expected) {
    return wf_fail(json->work, WF_FORMAT, "its JSON cannot be read (expected %s at byte %u)", expected,
                   (uint64_t)json->at);
}

static void skip_space(wf_json *json) {
    while (json->at < json->size) {
        char c = json->text[json->at];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r') return;
        json->at++;
    }
}

/* The next byte that is no space; 0 at the end. */
static char next(wf_json *json) {
    skip_space(json);
    return json->at < json->size ? json->text[json->at] : 0;
}

static int peek(const wf_json *json, size_t ahead) {
    return json->at + ahead < json->size ? (unsigned char)json->text[json->at + ahead] : -1;
}

static int is_digit(int c) {
    return c >= '0' && c <= '9';
}

static int has_word(wf_json *json, const char *word) {
    size_t size = strlen(word);
    skip_space(json);
    if (json->size - json->at < size || memcmp(json->text + json->at, word, size) != 0) return 0;
    json->at += size;
    return 1;
}

wf_code wf_json_open(wf_json *json, char bracket) {
    char expected[2] = {0, 0};
    if (next(json) == bracket) {
        json->at++;
        return WF_OK;
    }
    expected[0] = bracket;
    return wf_json_fail(json, expected);
}

wf_code wf_json_more(wf_json *json, char bracket, int *first, int *more) {
    char c = next(json);
    int is_first = *first;
    *first = 0;
    *more = 0;
    if (c == bracket) {
        json->at++;
        return WF_OK;
    }
    if (!is_first) {
        if (c != ',') return wf_json_fail(json, "a comma or the end");
        json->at++;
        if (next(json) == bracket) return wf_json_fail(json, "another member");
    }
    *more = 1;
    return WF_OK;
}

int wf_json_is_null(wf_json *json) {
    return has_word(json, "null");
}

wf_code wf_json_bool(wf_json *json, uint8_t *value) {
    *value = 1;
    if (has_word(json, "true")) return WF_OK;
    *value = 0;
    return has_word(json, "false") ? WF_OK : wf_json_fail(json, "true or false");
}

wf_code wf_json_end(wf_json *json) {
    return next(json) == 0 && json->at == json->size ? WF_OK : wf_json_fail(json, "the end");
}

/* Strings */

static wf_code hexadecimal(wf_json *json, uint32_t *value) {
    int i;
    *value = 0;
    for (i = 0; i < 4; i++) {
        int c = peek(json, 0);
        uint32_t digit;
        if (is_digit(c)) digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f') digit = (uint32_t)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F') digit = (uint32_t)(c - 'A' + 10);
        else return wf_json_fail(json, "four hexadecimal digits");
        *value = *value << 4 | digit;
        json->at++;
    }
    return WF_OK;
}

static char *put_utf8(char *to, uint32_t c) {
    if (c < 0x80) {
        *to++ = (char)c;
        return to;
    }
    if (c < 0x800) {
        *to++ = (char)(0xC0 | c >> 6);
    } else {
        if (c < 0x10000) {
            *to++ = (char)(0xE0 | c >> 12);
        } else {
            *to++ = (char)(0xF0 | c >> 18);
            *to++ = (char)(0x80 | (c >> 12 & 63));
        }
        *to++ = (char)(0x80 | (c >> 6 & 63));
    }
    *to++ = (char)(0x80 | (c & 63));
    return to;
}

/* What follows a backslash; it never takes more room than it had. */
static wf_code escape(wf_json *json, char **to) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    int c = peek(json, 0);
    const char *found = c > 0 ? (const char *)memchr(names, c, sizeof names - 1) : NULL;
    uint32_t one, other;
    if (found) {
        *(*to)++ = values[found - names];
        json->at++;
        return WF_OK;
    }
    if (c != 'u') return wf_json_fail(json, "an escape");
    json->at++;
    WF_TRY(hexadecimal(json, &one));
    if (one >= 0xD800 && one < 0xE000) {
        if (one >= 0xDC00 || peek(json, 0) != '\\' || peek(json, 1) != 'u') {
            return wf_json_fail(json, "a pair of surrogates");
        }
        json->at += 2;
        WF_TRY(hexadecimal(json, &other));
        if (other < 0xDC00 || other >= 0xE000) return wf_json_fail(json, "a pair of surrogates");
        one = 0x10000 + ((one - 0xD800) << 10) + (other - 0xDC00);
    }
    *to = put_utf8(*to, one);
    return WF_OK;
}

wf_code wf_json_text(wf_json *json, wf_text *text) {
    char *to;
    if (next(json) != '"') return wf_json_fail(json, "a string");
    json->at++;
    to = json->text + json->at;
    text->data = to;
    for (;;) {
        int c = peek(json, 0);
        size_t size;
        if (c == '"') break;
        if (c < 0x20) return wf_json_fail(json, "the end of a string");
        if (c == '\\') {
            json->at++;
            WF_TRY(escape(json, &to));
            continue;
        }
        size = wf_utf8(json->text + json->at, json->size - json->at);
        if (size == 0) return wf_json_fail(json, "UTF-8");
        for (; size; size--) *to++ = json->text[json->at++];
    }
    json->at++;
    text->size = (size_t)(to - text->data);
    return WF_OK;
}

wf_code wf_json_key(wf_json *json, wf_text *key) {
    WF_TRY(wf_json_text(json, key));
    if (next(json) != ':') return wf_json_fail(json, "a colon");
    json->at++;
    return WF_OK;
}

/* Numbers */


#define DIGITS 800 /* so many tell the nearest float64; of all others it counts whether one is not 0 */
#define WORDS 160

/* A whole number, the lowest word first. */
typedef struct large {
    uint32_t words[WORDS];
    int count;
} large;

static void multiply_add(large *n, uint32_t factor, uint32_t more) {
    uint64_t carry = more;
    int i;
    for (i = 0; i < n->count; i++) {
        carry += (uint64_t)n->words[i] * factor;
        n->words[i] = (uint32_t)carry;
        carry >>= 32;
    }
    if (carry) n->words[n->count++] = (uint32_t)carry;
}

static int bits_of_large(const large *n) {
    int bits = 32 * (n->count - 1);
    uint32_t top = n->words[n->count - 1];
    for (; top; top >>= 1) bits++;
    return bits;
}

static void shift_left(large *n, int bits) {
    for (; bits >= 16; bits -= 16) multiply_add(n, 1u << 16, 0);
    multiply_add(n, 1u << bits, 0);
}

static int is_less(const large *a, const large *b) {
    int i;
    if (a->count != b->count) return a->count < b->count;
    for (i = a->count - 1; i >= 0; i--) {
        if (a->words[i] != b->words[i]) return a->words[i] < b->words[i];
    }
    return 0;
}

static void subtract(large *a, const large *b) {
    uint64_t borrow = 0;
    int i;
    for (i = 0; i < a->count; i++) {
        uint64_t less = (i < b->count ? b->words[i] : 0) + borrow;
        borrow = a->words[i] < less;
        a->words[i] = (uint32_t)(a->words[i] - less);
    }
    while (a->count && a->words[a->count - 1] == 0) a->count--;
}

/* The quotient is in 1..2 times 2^exponent: its first 64 bits, and whether there are more. */
static uint64_t first_bits(large *above, large *below, int *exponent, int *is_more) {
    uint64_t bits = 0;
    int i, shift = bits_of_large(above) - bits_of_large(below);
    if (shift > 0) shift_left(below, shift);
    else shift_left(above, -shift);
    *exponent = shift;
    if (is_less(above, below)) {
        multiply_add(above, 2, 0);
        --*exponent;
    }
    for (i = 0; i < 64; i++) {
        int is_one = !is_less(above, below);
        bits = bits << 1 | (uint64_t)is_one;
        if (is_one) subtract(above, below);
        multiply_add(above, 2, 0);
    }
    *is_more = above->count > 0;
    return bits;
}

/* The nearest float64, to even; infinite where it is beyond. `is_cut`: whether the number is above that. */
static double rounded(uint64_t bits, int exponent, int is_more, int *is_cut) {
    int drop = exponent < -1022 ? 11 - 1022 - exponent : 11;
    uint64_t kept, rest, half, pattern;
    double value;
    *is_cut = 1;
    if (drop > 64) return 0.0;
    kept = drop == 64 ? 0 : bits >> drop;
    rest = drop == 64 ? bits : bits & (((uint64_t)1 << drop) - 1);
    half = (uint64_t)1 << (drop - 1);
    *is_cut = rest != 0 || is_more;
    if (rest > half || (rest == half && (is_more || (kept & 1)))) {
        *is_cut = 0;
        kept++;
    }
    /* A carry goes into the exponent, as it has to. */
    pattern = exponent < -1022 ? kept : kept + ((uint64_t)(exponent + 1022) << 52);
    if (exponent > 1023) pattern = (uint64_t)2047 << 52;
    memcpy(&value, &pattern, sizeof value);
    return value;
}

/* The digits of a number, without its sign. */
typedef struct digits {
    large value;
    int64_t exponent; /* of ten */
    int count;        /* how many are in `value` */
    int is_more;
} digits;

static void add_digit(digits *d, int digit, int is_fraction) {
    if (d->count == 0 && digit == 0) { /* at the beginning */
        d->exponent -= is_fraction;
        return;
    }
    if (d->count < DIGITS) {
        multiply_add(&d->value, 10, (uint32_t)digit);
        d->count++;
        d->exponent -= is_fraction;
    } else {
        d->is_more |= digit != 0;
        d->exponent += !is_fraction;
    }
}

static double value_of(digits *d, int *is_cut) {
    large below;
    int exponent, is_more;
    int64_t i, point = d->count + d->exponent;
    uint64_t bits;
    *is_cut = 0;
    if (d->count == 0) return 0.0;
    if (point < -330 || point > 310) return rounded((uint64_t)1 << 63, point < 0 ? -2000 : 2000, 0, is_cut);
    below.words[0] = below.count = 1;
    if (d->is_more) { /* anything small behind the last digit */
        multiply_add(&d->value, 10, 1);
        d->exponent--;
    }
    for (i = 0; i < d->exponent; i++) multiply_add(&d->value, 10, 0);
    for (i = 0; i > d->exponent; i--) multiply_add(&below, 10, 0);
    bits = first_bits(&d->value, &below, &exponent, &is_more);
    return rounded(bits, exponent, is_more, is_cut);
}

/* A token: a whole number, or one with a point or an exponent. */
static wf_code number(wf_json *json, wf_scalar *found) {
    digits d;
    int is_negative = next(json) == '-', is_cut;
    int64_t power = 0;
    size_t whole_digits = 0;
    memset(&d, 0, sizeof d);
    memset(found, 0, sizeof *found);
    found->kind = WF_INTEGER;
    found->is_whole = 1;
    json->at += (size_t)is_negative;
    if (!is_digit(peek(json, 0)) || (peek(json, 0) == '0' && is_digit(peek(json, 1)))) {
        return wf_json_fail(json, "a number");
    }
    for (; is_digit(peek(json, 0)); json->at++, whole_digits++) {
        int digit = peek(json, 0) - '0';
        add_digit(&d, digit, 0);
        found->is_whole = found->is_whole && found->whole <= (INT64_MAX - digit) / 10;
        if (found->is_whole) found->whole = 10 * found->whole + digit;
    }
    if (is_negative) found->whole = -found->whole;
    if (peek(json, 0) == '.') {
        found->kind = WF_REAL;
        json->at++;
        if (!is_digit(peek(json, 0))) return wf_json_fail(json, "digits behind the point");
        for (; is_digit(peek(json, 0)); json->at++) add_digit(&d, peek(json, 0) - '0', 1);
    }
    if (peek(json, 0) == 'e' || peek(json, 0) == 'E') {
        int sign = 1;
        found->kind = WF_REAL;
        json->at++;
        if (peek(json, 0) == '+' || peek(json, 0) == '-') sign = json->text[json->at++] == '-' ? -1 : 1;
        if (!is_digit(peek(json, 0))) return wf_json_fail(json, "digits of an exponent");
        for (; is_digit(peek(json, 0)); json->at++) {
            if (power < 1000000000) power = 10 * power + (peek(json, 0) - '0');
        }
        d.exponent += sign * power;
    }
    if (found->kind == WF_INTEGER && whole_digits > MOST_DIGITS) return wf_json_fail(json, "a smaller number");
    found->value = value_of(&d, &is_cut);
    if (found->value > 1.7976931348623157e308) {
        if (found->kind == WF_REAL) return wf_json_fail(json, "a smaller number");
        found->is_beyond = 1;
    }
    if (found->kind == WF_INTEGER && found->value == 1.7976931348623157e308) found->is_beyond = is_cut;
    if (is_negative && !(found->kind == WF_INTEGER && found->value == 0)) found->value = -found->value;
    return WF_OK;
}

wf_code wf_json_whole(wf_json *json, int64_t least, int64_t most, int64_t *value) {
    wf_scalar found;
    WF_TRY(number(json, &found));
    if (found.kind != WF_INTEGER || !found.is_whole || found.whole < least || found.whole > most) {
        return wf_json_fail(json, "a whole number within its bounds");
    }
    *value = found.whole;
    return WF_OK;
}

wf_code wf_json_scalar(wf_json *json, wf_scalar *scalar) {
    char c = next(json);
    memset(scalar, 0, sizeof *scalar);
    if (c == '"') {
        scalar->kind = WF_TEXT;
        return wf_json_text(json, &scalar->text);
    }
    if (c == 'n') return wf_json_is_null(json) ? WF_OK : wf_json_fail(json, "null");
    return number(json, scalar);
}
#endif
