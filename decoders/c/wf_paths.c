/* Paths through a trellis, one symbol after the other or several side by side. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#define HIGHEST_EXPONENT 280
#define LARGEST_INDEX ((int64_t)1 << 30)

static const uint16_t parities[11][2] = {{05, 02},      {017, 02},      {035, 016},     {043, 024},
                                         {0141, 066},   {0365, 0156},   {0405, 0356},   {01655, 0746},
                                         {02413, 01132}, {04117, 02704}, {015303, 07064}};

#define LEAST_SUM (-3 * 127)
#define SUMS (2 * 3 * 127 + 1)

wf_code wf_path_begin(wf_path *p, wf_stream *stream, const wf_coded *coded, uint64_t at) {
    memset(p, 0, sizeof *p);
    p->stream = stream;
    p->coded = coded;
    p->flips = parities[coded->log_states - 2][0] >> 1;
    p->picks = parities[coded->log_states - 2][1] >> 1;
    p->kinds[0] = WF_WHOLE;
    p->kinds[1] = coded->zero ? WF_ZERO : WF_HALF;
    p->is_half = !coded->zero;
    p->left = wf_span(coded);
    p->walk = wf_walk_from(coded, coded->spreads, at);
#ifndef WF_SMALL
    p->sums = (wf_pair *)wf_take(stream->work, SUMS, sizeof *p->sums);
    if (p->sums == NULL) return WF_MEMORY;
#endif
    return WF_OK;
}

/* What codes the indices of a subset where scales have a sum. */
static wf_code make_table(const wf_path *p, int32_t sum, unsigned q, wf_pair *pair) {
    int32_t exponent = p->coded->bases[q] + 2 * sum;
    unsigned scale, family = p->coded->families[q];
    wf_class class;
    exponent = exponent < 0 ? 0 : exponent > HIGHEST_EXPONENT ? HIGHEST_EXPONENT : exponent;
    class = wf_class_of(exponent, 0);
    scale = class & 0xFFFF;
    pair->low[q] = (uint8_t)(class >> 16);
    pair->last[q] = (uint8_t)wf_last_magnitude(p->kinds[q], family, scale);
    return wf_bank_table(p->stream, p->kinds[q], family, scale, &pair->of[q]);
}

/* The index that an escape stands for, and low bits, of which there are `low`. */
static int64_t rest_of(wf_stream *stream, unsigned lane, int64_t high, int is_escape, unsigned low, int is_middle,
                       unsigned last) {
    int64_t rest = 0;
    unsigned i;
    for (i = 0; i < low; i += 8) {
        rest |= (int64_t)wf_pull_uniform(stream, lane, low - i < 8 ? low - i : 8) << i;
    }
    if (is_escape) {
        unsigned count = wf_pull_uniform(stream, lane, 2) + 1;
        uint32_t extra = 0;
        for (i = 0; i < count; i++) extra |= wf_pull_uniform(stream, lane, 8) << (8 * i);
        high = (int64_t)(extra >> 1) + last + 1;
        if (extra & 1) high = is_middle ? -high : -high - 1;
    }
    return high * ((int64_t)1 << low) + rest - (is_middle ? (int64_t)1 << low >> 1 : 0);
}

/* The index of an escape or with low bits in a lane of the stream, of which the high part is read. */
static int64_t rare_index(wf_path *p, unsigned lane, unsigned byte, unsigned subset, const wf_pair *found) {
    int is_middle = p->kinds[subset] != WF_HALF;
    int64_t k = rest_of(p->stream, lane, (int64_t)byte - 128, byte == 0, found->low[subset], is_middle,
                        found->last[subset]);
    if (k < LARGEST_INDEX && k >= -LARGEST_INDEX) return k;
    p->is_beyond = 1;
    return 0;
}

/*
 * Decode the next level of a path in a lane of the stream. `found`: what codes its index.
 *
 * What both subsets have at the slot is read before the state of the trellis says which one it is, so that only a few
 * instructions are between one state and the next, and no memory.
 */
static inline int32_t next_level(wf_path *p, unsigned lane, unsigned *state, const wf_pair *found) {
    unsigned subset = *state & 1 & found->is_coded, byte, is_odd;
    int64_t k;
    int32_t sign;
#ifdef WF_SMALL
    make_table(p, p->last_sum, subset, &p->last);
    byte = wf_pull(p->stream, lane, found->of[subset]);
#else
    uint32_t x = p->stream->states[lane], slot = x & 4095, info;
    unsigned bytes[2];
    bytes[0] = found->of[0]->of[slot];
    bytes[1] = found->of[1]->of[slot];
    byte = bytes[0] ^ ((bytes[0] ^ bytes[1]) & (0u - subset));
    info = found->of[subset]->symbols[byte];
    p->stream->states[lane] = wf_refilled(p->stream, (info >> 16) * (x >> 12) + slot - (info & 0xFFFF));
#endif
    k = (int64_t)byte - 128;
    if (byte == 0 || found->low[subset]) k = rare_index(p, lane, byte, subset, found);
    is_odd = (unsigned)(k & 1);
    if (found->is_coded) *state = *state >> 1 ^ (p->picks & (0u - is_odd)) ^ (p->flips & (0u - subset));
    sign = p->is_half ? 1 : (k < 0) - (k > 0);
    return (int32_t)(2 * k) + (sign & -(int32_t)subset);
}

/* What codes elements whose scales have a sum; NULL after a failure. */
#ifdef WF_SMALL /* one subset alone is needed, once it is known */
static const wf_pair *pair_of(wf_path *p, int32_t sum) {
    p->last.is_coded = sum >= p->coded->least;
    p->last_sum = sum;
    return &p->last;
}
#else
static wf_code make_pair(const wf_path *p, int32_t sum, wf_pair *made) {
    made->is_coded = sum >= p->coded->least;
    WF_TRY(make_table(p, sum, 0, made));
    WF_TRY(make_table(p, sum, 1, made));
    made->is_made = 1;
    return WF_OK;
}

static inline const wf_pair *pair_of(const wf_path *p, int32_t sum) {
    wf_pair *found = p->sums + (sum - LEAST_SUM);
    return found->is_made || make_pair(p, sum, found) == WF_OK ? found : NULL;
}
#endif

static wf_code check(const wf_path *p) {
    if (p->stream->is_short) return wf_short(p->stream->work);
    return p->is_beyond ? wf_beyond(p->stream->work) : WF_OK;
}

wf_code wf_path_next(wf_path *path, uint64_t count, int32_t *levels) {
    wf_path p = *path; /* a copy stays in registers, for no level that is written can be a part of it */
    uint64_t n;
    for (n = 0; n < count; n++, p.left--) {
        const wf_pair *found = pair_of(&p, wf_walk_sum(&p.walk));
        if (found == NULL) return WF_MEMORY;
        if (p.left == 0) {
            p.state = 0;
            p.left = wf_span(p.coded);
        }
        levels[n] = next_level(&p, p.done++ & 7, &p.state, found);
        if (n % 64 == 0) WF_TRY(check(&p));
        wf_walk_next(&p.walk);
    }
    *path = p;
    return check(&p);
}

/* The part that a line has of the sums of scales, or that a place in every line has. */
static int32_t part_of_sum(const wf_coded *coded, uint64_t number, int is_row) {
    const int16_t *const *scales = coded->spreads;
    uint64_t taps = coded->axes[2];
    int32_t sum = 0;
    if (is_row) return scales[0] ? scales[0][number] : 0;
    if (scales[1]) sum += scales[1][number / taps];
    if (scales[2]) sum += scales[2][number % taps];
    return sum;
}

#if WF_VECTORS
#include "wf_lanes_avx2.h"
#endif

/* Lines that are decoded side by side. */
typedef struct side_by_side {
    wf_path p;
    uint64_t first_line, length, depth, left; /* `left`: lines of this round */
    unsigned states[32];
    int32_t *levels;
#if WF_VECTORS
    vectors v;
#endif
} side_by_side;

/* Decode line `line` of the group of every lane that has as many. */
static wf_code read_step(side_by_side *r, uint64_t line) {
    const wf_coded *coded = r->p.coded;
    int32_t sums[32], *levels = r->levels + line * r->length;
    uint64_t place, apart = r->depth * r->length;
    unsigned lane, many = 0;
    for (; many < coded->lanes && many * r->depth + line < r->left; many++) {
        sums[many] = part_of_sum(coded, r->first_line + many * r->depth + line, !coded->down);
    }
#if WF_VECTORS
    if (r->v.count && many % WIDTH == 0) {
        return read_lines(&r->v, &r->p, sums, many, r->states, r->length, levels, apart);
    }
#endif
    for (place = 0; place < r->length; place++) {
        int32_t within = part_of_sum(coded, place, coded->down);
        for (lane = 0; lane < many; lane++) {
            const wf_pair *found = pair_of(&r->p, sums[lane] + within);
            if (found == NULL) return WF_MEMORY;
            levels[lane * apart + place] = next_level(&r->p, lane, r->states + lane, found);
        }
        if (r->p.stream->is_short | r->p.is_beyond) return check(&r->p);
    }
    return WF_OK;
}

wf_code wf_read_lanes(wf_stream *stream, const wf_coded *coded, uint64_t at, uint64_t count, int32_t *levels) {
    uint64_t lines, first, line;
    side_by_side r;
    WF_TRY(wf_path_begin(&r.p, stream, coded, at));
    r.length = wf_line_length(coded);
    lines = count / r.length;
    r.depth = wf_least(coded->lines, lines);
#if WF_VECTORS
    WF_TRY(begin_vectors(&r.v, &r.p, at / r.length, lines, r.length));
#endif
    for (first = 0; first < lines; first += r.depth * coded->lanes) {
        r.first_line = at / r.length + first;
        r.left = wf_least(lines - first, r.depth * coded->lanes);
        r.levels = levels + first * r.length;
        memset(r.states, 0, sizeof r.states);
        for (line = 0; line < wf_least(r.depth, r.left); line++) WF_TRY(read_step(&r, line));
    }
#if WF_VECTORS
    end_vectors(&r.v, stream);
#endif
#ifndef WF_SMALL
    wf_give(stream->work, r.p.sums);
#endif
    return WF_OK;
}
