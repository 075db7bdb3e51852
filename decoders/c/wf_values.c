/* Symbols to values, and values in other types. SPDX-License-Identifier: MIT */
#include "wf_internal.h"
#include "wf_tables.h"

#define LEVEL_UNIT 64
#define SOME 256 /* sums at a time */
#define LARGEST_FLOAT 3.4028234663852886e38
#define LARGEST_FLOAT16 65504.0
#define LARGEST_BFLOAT16 3.3895313892515355e38

/* 2^(index / 64). */
static float power_of(int32_t index) {
    int32_t part = index & 63, whole = (index - part) / 64;
    return wf_float_of(wf_octave[part] + (uint32_t)whole * (1u << 23));
}

/* The level of a symbol; without branches on its sign, which no processor foresees. */
static float uniform_level(const wf_coded *coded, const int32_t *shrink, int32_t symbol) {
    int64_t wide = symbol, sign = (symbol > 0) - (symbol < 0), size = sign * wide;
    return (float)(LEVEL_UNIT * (wide + coded->offset) - sign * shrink[size < 3 ? size : 3]);
}

#define SMALL ((int64_t)1 << 22)

/*
 * The levels of symbols, as `uniform_level` has them, times a power, in a form that compilers turn into vectors; returns
 * whether all symbols are so small that their levels fit into 32 bits, else values mean nothing.
 */
static inline int levels_of(const int32_t *symbols, size_t count, int32_t offset, const int32_t *shrink, float power,
                            float *values) {
    int32_t one = shrink[1], two = shrink[2], more = shrink[3], bits = 0;
    size_t n;
    for (n = 0; n < count; n++) {
        int32_t k = symbols[n], sign = -(k < 0), near = k ^ sign; /* of k < 0 one less than its size */
        int32_t towards = near > 2 + sign ? more : near > 1 + sign ? two : near > sign ? one : 0;
        uint32_t level = LEVEL_UNIT * ((uint32_t)k + (uint32_t)offset) - (uint32_t)((towards ^ sign) - sign);
        bits |= near;
        values[n] = (float)(int32_t)level * power;
    }
    return bits < SMALL;
}

/* Values times the powers 2^((step + 16 sum) / 64) of sums, in the same form. */
static inline void multiply(float *values, const int32_t *sums, size_t count, int32_t step) {
    size_t n;
    for (n = 0; n < count; n++) {
        int32_t index = step + 16 * sums[n];
        values[n] *= power_of(index);
    }
}

#if WF_VECTORS
static __attribute__((target("avx2"))) int wide_levels(const int32_t *symbols, size_t count, int32_t offset,
                                                       const int32_t *shrink, float power, float *values) {
    return levels_of(symbols, count, offset, shrink, power, values);
}

static __attribute__((target("avx2"))) void wide_multiply(float *values, const int32_t *sums, size_t count,
                                                          int32_t step) {
    multiply(values, sums, count, step);
}
#endif

static int small_levels(const int32_t *symbols, size_t count, int32_t offset, const int32_t *shrink, float power,
                        float *values) {
#if WF_VECTORS
    if (__builtin_cpu_supports("avx2")) return wide_levels(symbols, count, offset, shrink, power, values);
#endif
    return levels_of(symbols, count, offset, shrink, power, values);
}

static void multiply_by_steps(float *values, const int32_t *sums, size_t count, int32_t step) {
#if WF_VECTORS
    if (__builtin_cpu_supports("avx2")) {
        wide_multiply(values, sums, count, step);
        return;
    }
#endif
    multiply(values, sums, count, step);
}

/* The sums of scales of some elements of one line, which differ. */
static void sums_of(wf_walk walk, size_t count, int32_t *sums) {
    const int16_t *const *scales = walk.scales;
    uint64_t taps = walk.coded->axes[2];
    size_t n;
    if (walk.coded->down) {
        int32_t rest = wf_walk_sum(&walk) - scales[0][walk.row];
        for (n = 0; n < count; n++) sums[n] = rest + scales[0][walk.row + n];
    } else if (taps == 1 && scales[1]) {
        int32_t rest = wf_walk_sum(&walk) - scales[1][walk.channel];
        for (n = 0; n < count; n++) sums[n] = rest + scales[1][walk.channel + n];
    } else {
        for (n = 0; n < count; n++, wf_walk_along(&walk)) sums[n] = wf_walk_sum(&walk);
    }
}

static float relative_value(const wf_coded *coded, int32_t symbol) {
    uint32_t sign = coded->is_signed ? (uint32_t)symbol & 1 : 0;
    int64_t wide = coded->is_signed ? ((int64_t)symbol - (int64_t)sign) / 2 : symbol;
    int64_t pattern = (wide + coded->offset) * ((int64_t)1 << (23 - coded->mantissa));
    if (pattern < 0 || pattern >= 0x7F800000) pattern = 0;
    return wf_float_of((uint32_t)pattern | sign << 31);
}

static void uniform_values(const wf_coded *coded, const int32_t *symbols, uint64_t at, size_t count, float *values) {
    int32_t step = coded->step - 64 * 6, shrink[4] = {0, coded->shrink[0], coded->shrink[1], coded->shrink[2]};
    int is_even = coded->down ? !coded->steps[0] : !coded->steps[1] && !coded->steps[2];
    wf_walk walk = wf_walk_from(coded, coded->steps, at);
    float power = power_of(step + 16 * wf_walk_sum(&walk));
    size_t n;
    int is_small = coded->offset > -SMALL && coded->offset < SMALL &&
                   small_levels(symbols, count, (int32_t)coded->offset, shrink, is_even ? power : 1, values);
    if (!is_small) {
        for (n = 0; n < count; n++) values[n] = uniform_level(coded, shrink, symbols[n]) * (is_even ? power : 1);
    }
    for (n = 0; n < count && !is_even; n += SOME) {
        int32_t sums[SOME];
        size_t some = count - n < SOME ? count - n : SOME;
        sums_of(wf_walk_from(coded, coded->steps, at + n), some, sums);
        multiply_by_steps(values + n, sums, some, step);
    }
}

void wf_values(const wf_coded *coded, const int32_t *symbols, uint64_t at, size_t count, float *values) {
    size_t n;
    if (coded->kind == 'c') {
        for (n = 0; n < count; n++) values[n] = coded->book[symbols[n] - coded->first];
    } else if (coded->kind == 'r') {
        for (n = 0; n < count; n++) values[n] = relative_value(coded, symbols[n]);
    } else {
        uniform_values(coded, symbols, at, count, values);
    }
}

/* Round bits to a multiple of 2^drop, to nearest, to even; drop in 1..31. */
static uint32_t rounded(uint32_t bits, unsigned drop) {
    uint32_t half = 1u << (drop - 1), odd = bits >> drop & 1;
    return (bits + half - 1 + odd) >> drop;
}

uint16_t wf_to_float16(float value) {
    uint32_t bits = wf_bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    uint32_t exponent = rest >> 23;
    if (rest > 0x7F800000) return (uint16_t)(sign | 0x7E00);
    if (rest >= 0x47800000) return (uint16_t)(sign | 0x7C00);
    if (exponent < 102) return (uint16_t)sign; /* below half of the smallest one */
    if (exponent < 113) return (uint16_t)(sign | rounded((rest & 0x7FFFFF) | 0x800000, 126 - exponent));
    return (uint16_t)(sign | rounded(rest - (112u << 23), 13)); /* a carry may make it infinite, as it should */
}

float wf_from_float16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7FFF, exponent = rest >> 10, shift = 0;
    if (exponent == 31) return wf_float_of(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    if (exponent) return wf_float_of(sign | ((rest << 13) + (112u << 23)));
    if (rest == 0) return wf_float_of(sign);
    while (!(rest & 0x400)) {
        rest <<= 1;
        shift++;
    }
    return wf_float_of(sign | (113 - shift) << 23 | (rest & 0x3FF) << 13);
}

uint16_t wf_to_bfloat16(float value) {
    uint32_t bits = wf_bits_of(value);
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : (uint16_t)rounded(bits, 16);
}

float wf_from_bfloat16(uint16_t bits) {
    return wf_float_of((uint32_t)bits << 16);
}

static double limit_of(wf_type type) {
    return type == WF_FLOAT16 ? LARGEST_FLOAT16 : type == WF_BFLOAT16 ? LARGEST_BFLOAT16 : LARGEST_FLOAT;
}

/* A value that is not beyond a type, rounded to it. */
static inline float rounded_to(float value, wf_type type) {
    if (type == WF_FLOAT16) return wf_from_float16(wf_to_float16(value));
    return type == WF_BFLOAT16 ? wf_from_bfloat16(wf_to_bfloat16(value)) : value;
}

float wf_in_type(double value, wf_type type) {
    double limit = limit_of(type);
    if (value > limit) value = limit;
    if (value < -limit) value = -limit;
    return rounded_to((float)value, type);
}

void wf_put(void *out, wf_type type, uint64_t at, double value) {
    if (type == WF_FLOAT64) ((double *)out)[at] = value;
    else if (type == WF_FLOAT32) ((float *)out)[at] = (float)value;
    else if (type == WF_FLOAT16) ((uint16_t *)out)[at] = wf_to_float16((float)value);
    else ((uint16_t *)out)[at] = wf_to_bfloat16((float)value);
}

/* Values of float32 into neighbours of an array of float32. */
static void put_floats(float *out, const float *values, size_t count) {
    float limit = (float)LARGEST_FLOAT;
    size_t n;
    for (n = 0; n < count; n++) {
        float value = values[n] > limit ? limit : values[n];
        out[n] = value < -limit ? -limit : value;
    }
}

void wf_put_run(void *out, wf_type type, wf_type own, uint64_t at, uint64_t stride, const float *values, size_t count) {
    float limit = (float)limit_of(own);
    size_t n;
    if (type == WF_FLOAT32 && own == type && stride == 1) {
        put_floats((float *)out + at, values, count);
        return;
    }
    for (n = 0; n < count; n++) {
        float value = values[n];
        uint64_t place = at + n * stride;
        if (value > limit) value = limit;
        if (value < -limit) value = -limit;
        if (own != type) value = rounded_to(value, own);
        if (type == WF_FLOAT32) ((float *)out)[place] = value;
        else if (type == WF_FLOAT16) ((uint16_t *)out)[place] = wf_to_float16(value);
        else if (type == WF_BFLOAT16) ((uint16_t *)out)[place] = wf_to_bfloat16(value);
        else ((double *)out)[place] = value;
    }
}
