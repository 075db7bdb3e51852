/* Paths through a trellis, one symbol after the other or several side by side. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#define HIGHEST_EXPONENT 280
#define LARGEST_INDEX ((int64_t)1 << 30)

static const uint16_t parities[11][2] = {{05, 02},      {017, 02},      {035, 016},     {043, 024},
                                         {0141, 066},   {0365, 0156},   {0405, 0356},   {01655, 0746},
                                         {02413, 01132}, {04117, 02704}, {015303, 07064}};

static unsigned parity(unsigned value) {
    value ^= value >> 8;
    value ^= value >> 4;
    value ^= value >> 2;
    return (value ^ value >> 1) & 1;
}

/* A trellis, and what codes its indices. */
typedef struct path {
    wf_stream *stream;
    const wf_coded *coded;
    unsigned flips, picks, mask;
} path;

static path path_of(wf_stream *stream, const wf_coded *coded) {
    path found;
    found.stream = stream;
    found.coded = coded;
    found.flips = parities[coded->log_states - 2][0] >> 1;
    found.picks = parities[coded->log_states - 2][1] >> 1;
    found.mask = (1u << coded->log_states) - 1;
    return found;
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

/* Decode the next level of a path in a lane of the stream. `sum`: of the scales of its element. */
static wf_code next_level(const path *p, unsigned lane, unsigned *state, int32_t sum, int32_t *level) {
    const wf_coded *coded = p->coded;
    int is_aside = sum < coded->least;
    unsigned subset = is_aside ? 0 : parity(*state & p->picks), kind, low, scale, byte;
    int32_t exponent = coded->bases[subset] + 2 * sum;
    const uint32_t *slots;
    int64_t k;
    exponent = exponent < 0 ? 0 : exponent > HIGHEST_EXPONENT ? HIGHEST_EXPONENT : exponent;
    low = exponent > 49 ? (unsigned)(exponent - 49) / 8 : 0;
    scale = (unsigned)exponent - 8 * low;
    scale = scale > 56 ? 56 : scale;
    kind = subset == 0 ? WF_WHOLE : coded->zero ? WF_ZERO : WF_HALF;
    slots = wf_slots(p->stream, kind, coded->families[subset], scale);
    if (slots == NULL) return WF_MEMORY;
    byte = wf_pull(p->stream, lane, slots);
    k = (int64_t)byte - 128;
    if (byte == 0 || low) {
        unsigned last = wf_last_magnitude(kind, coded->families[subset], scale);
        k = rest_of(p->stream, lane, k, byte == 0, low, kind != WF_HALF, last);
    }
    if (p->stream->is_short) return wf_short(p->stream->work);
    if (k >= LARGEST_INDEX || k < -LARGEST_INDEX) return wf_beyond(p->stream->work);
    *level = (int32_t)(2 * k);
    if (subset) *level += kind == WF_HALF ? 1 : (k < 0) - (k > 0);
    if (!is_aside) *state = (2 * *state + (((unsigned)k & 1) ^ parity(*state & p->flips))) & p->mask;
    return WF_OK;
}

wf_code wf_read_path(wf_stream *stream, const wf_coded *coded, uint64_t at, uint64_t count, int32_t *levels) {
    path p = path_of(stream, coded);
    wf_walk walk = wf_walk_from(coded, coded->spreads, at);
    uint64_t span = wf_span(coded), left = span, n;
    unsigned state = 0;
    for (n = 0; n < count; n++, left--) {
        if (left == 0) {
            state = 0;
            left = span;
        }
        WF_TRY(next_level(&p, n & 7, &state, wf_walk_sum(&walk), levels + n));
        wf_walk_next(&walk);
    }
    return WF_OK;
}

/* Where a place of a line is: `walk` of its sums. */
static int32_t sum_at(const wf_coded *coded, uint64_t line, uint64_t place) {
    wf_walk walk = wf_walk_from(coded, coded->spreads, line * wf_line_length(coded) + place);
    return wf_walk_sum(&walk);
}

wf_code wf_read_lanes(wf_stream *stream, const wf_coded *coded, uint64_t at, uint64_t count, int32_t *levels) {
    path p = path_of(stream, coded);
    uint64_t length = wf_line_length(coded), first_line = at / length, lines = count / length, first;
    uint64_t depth = wf_least(coded->lines, lines), round = depth * coded->lanes;
    unsigned states[32], lane;
    for (first = 0; first < lines; first += round) {
        uint64_t left = wf_least(lines - first, round), line, place;
        memset(states, 0, sizeof states);
        for (line = 0; line < wf_least(depth, left); line++) {
            for (place = 0; place < length; place++) {
                for (lane = 0; lane < coded->lanes && lane * depth + line < left; lane++) {
                    uint64_t own = first + lane * depth + line;
                    int32_t sum = sum_at(coded, first_line + own, place);
                    WF_TRY(next_level(&p, lane, states + lane, sum, levels + own * length + place));
                }
            }
        }
    }
    return WF_OK;
}
