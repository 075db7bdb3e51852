/* Paths through a trellis, one symbol after the other or several side by side. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#define HIGHEST_EXPONENT 280
#define LARGEST_INDEX ((int64_t)1 << 30)

static const uint16_t parities[11][2] = {{05, 02},      {017, 02},      {035, 016},     {043, 024},
                                         {0141, 066},   {0365, 0156},   {0405, 0356},   {01655, 0746},
                                         {02413, 01132}, {04117, 02704}, {015303, 07064}};

/* What codes the indices of elements whose scales have one sum, in each of the two subsets. */
typedef struct tables {
    const wf_slots *slots[2]; /* NULL until they are needed */
    uint8_t low[2], last[2], is_coded; /* `is_coded`: 0 where elements stand aside, in subset 0 */
} tables;

#define LEAST_SUM (-3 * 127)
#define SUMS (2 * 3 * 127 + 1)

/*
 * A trellis, and what codes its indices. Its state is in another form than in docs/format.md, in which the subset is the
 * lowest bit: s becomes s / 2 xor h1 / 2 (if k is odd) xor h0 / 2 (in subset 1). Subsets are the same, symbol by symbol.
 */
typedef struct path {
    wf_stream *stream;
    const wf_coded *coded;
    tables *sums;          /* [SUMS] */
    unsigned flips, picks; /* h0 and h1, halved */
    unsigned kinds[2];
    int is_half, is_beyond; /* whether subset 1 is between the whole numbers; whether an index was out of range */
} path;

static wf_code open_path(path *p, wf_stream *stream, const wf_coded *coded) {
    p->stream = stream;
    p->coded = coded;
    p->flips = parities[coded->log_states - 2][0] >> 1;
    p->picks = parities[coded->log_states - 2][1] >> 1;
    p->kinds[0] = WF_WHOLE;
    p->kinds[1] = coded->zero ? WF_ZERO : WF_HALF;
    p->is_half = !coded->zero;
    p->is_beyond = 0;
    p->sums = (tables *)wf_take(stream->work, SUMS, sizeof *p->sums);
    return p->sums ? WF_OK : WF_MEMORY;
}

static wf_code make_tables(const path *p, int32_t sum, tables *made) {
    unsigned q;
    made->is_coded = sum >= p->coded->least;
    for (q = 0; q < 2; q++) {
        int32_t exponent = p->coded->bases[q] + 2 * sum;
        unsigned scale, family = p->coded->families[q];
        exponent = exponent < 0 ? 0 : exponent > HIGHEST_EXPONENT ? HIGHEST_EXPONENT : exponent;
        scale = wf_class_of(exponent, 0) & 0xFFFF;
        made->low[q] = (uint8_t)(wf_class_of(exponent, 0) >> 16);
        made->last[q] = (uint8_t)wf_last_magnitude(p->kinds[q], family, scale);
        made->slots[q] = wf_slots_of(p->stream, p->kinds[q], family, scale);
        if (made->slots[q] == NULL) return WF_MEMORY;
    }
    return WF_OK;
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
static int64_t rare_index(path *p, unsigned lane, unsigned byte, unsigned subset, const tables *found) {
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
static inline int32_t next_level(path *p, unsigned lane, unsigned *state, const tables *found) {
    uint32_t x = p->stream->states[lane], slot = x & 4095, info;
    unsigned bytes[2], subset = *state & 1 & found->is_coded, byte, is_odd;
    int64_t k;
    int32_t sign;
    bytes[0] = found->slots[0]->of[slot];
    bytes[1] = found->slots[1]->of[slot];
    byte = bytes[0] ^ ((bytes[0] ^ bytes[1]) & (0u - subset));
    info = found->slots[subset]->symbols[byte];
    p->stream->states[lane] = wf_refilled(p->stream, (info >> 16) * (x >> 12) + slot - (info & 0xFFFF));
    k = (int64_t)byte - 128;
    if (byte == 0 || found->low[subset]) k = rare_index(p, lane, byte, subset, found);
    is_odd = (unsigned)(k & 1);
    if (found->is_coded) *state = *state >> 1 ^ (p->picks & (0u - is_odd)) ^ (p->flips & (0u - subset));
    sign = p->is_half ? 1 : (k < 0) - (k > 0);
    return (int32_t)(2 * k) + (sign & -(int32_t)subset);
}

/* What codes elements whose scales have a sum; NULL after a failure. */
static inline const tables *tables_of(const path *p, int32_t sum) {
    tables *found = p->sums + (sum - LEAST_SUM);
    return found->slots[1] || make_tables(p, sum, found) == WF_OK ? found : NULL;
}

static wf_code check(const path *p) {
    if (p->stream->is_short) return wf_short(p->stream->work);
    return p->is_beyond ? wf_beyond(p->stream->work) : WF_OK;
}

wf_code wf_read_path(wf_stream *stream, const wf_coded *coded, uint64_t at, uint64_t count, int32_t *levels) {
    wf_walk walk = wf_walk_from(coded, coded->spreads, at);
    uint64_t span = wf_span(coded), left = span, n;
    unsigned state = 0;
    path p;
    WF_TRY(open_path(&p, stream, coded));
    for (n = 0; n < count; n++, left--) {
        const tables *found = tables_of(&p, wf_walk_sum(&walk));
        if (found == NULL) return WF_MEMORY;
        if (left == 0) {
            state = 0;
            left = span;
        }
        levels[n] = next_level(&p, n & 7, &state, found);
        if (n % 64 == 0) WF_TRY(check(&p));
        wf_walk_next(&walk);
    }
    wf_give(stream->work, p.sums);
    return check(&p);
}

/* The part that a line has of the sums of scales, or that a place in every line has. */
static int32_t part_of_sum(const wf_coded *coded, uint64_t number, int is_row) {
    const int32_t *const *scales = coded->spreads;
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
    path p;
    uint64_t first_line, length, depth, left; /* `left`: lines of this round */
    unsigned states[32];
    int32_t *levels;
#if WF_VECTORS
    vectors v;
#endif
} side_by_side;

/* What codes the elements of all lanes at a place whose part of the sum of scales is `within`. */
static wf_code find_tables(const side_by_side *r, const int32_t *sums, int32_t within, unsigned many,
                           const tables **found) {
    unsigned lane;
    for (lane = 0; lane < many; lane++) {
        found[lane] = tables_of(&r->p, sums[lane] + within);
        if (found[lane] == NULL) return WF_MEMORY;
    }
    return WF_OK;
}

/* Decode line `line` of the group of every lane that has as many. */
static wf_code read_step(side_by_side *r, uint64_t line) {
    const wf_coded *coded = r->p.coded;
    const tables *found[32];
    int32_t sums[32], last = 0, *levels = r->levels + line * r->length;
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
    WF_TRY(find_tables(r, sums, 0, many, found));
    for (place = 0; place < r->length; place++) {
        int32_t within = part_of_sum(coded, place, coded->down);
        if (within != last) WF_TRY(find_tables(r, sums, within, many, found));
        last = within;
        for (lane = 0; lane < many; lane++) {
            levels[lane * apart + place] = next_level(&r->p, lane, r->states + lane, found[lane]);
        }
        if (r->p.stream->is_short | r->p.is_beyond) return check(&r->p);
    }
    return WF_OK;
}

wf_code wf_read_lanes(wf_stream *stream, const wf_coded *coded, uint64_t at, uint64_t count, int32_t *levels) {
    uint64_t lines, first, line;
    side_by_side r;
    WF_TRY(open_path(&r.p, stream, coded));
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
    wf_give(stream->work, r.p.sums);
    return WF_OK;
}
