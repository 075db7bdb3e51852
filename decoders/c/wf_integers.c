/* Integers of any size, one after the other. SPDX-License-Identifier: MIT */
#include "wf_internal.h"

#define MOST_LOW 62 /* bits below a high part; with more an integer is too large in any case */

static wf_run run_at(const wf_stream *stream) {
    wf_run run;
    run.stream = *stream;
    run.place = 0;
    return run;
}

static uint32_t uniform(wf_run *run, unsigned bits) {
    return wf_pull_uniform(&run->stream, run->place++ & 7, bits);
}

/* The high part of an integer, plus 128; 0 for an escape. */
static wf_code high_part(wf_run *run, wf_class class, uint32_t *byte) {
    wf_table table;
    WF_TRY(wf_bank_table(&run->stream, WF_WHOLE, 0, class & 0xFFFF, &table));
    *byte = wf_pull(&run->stream, run->place++ & 7, table);
    return WF_OK;
}

static wf_code check(const wf_run *run) {
    return run->stream.is_short ? wf_short(run->stream.work) : WF_OK;
}

wf_code wf_integers_find(wf_integers *integers, const wf_stream *stream, wf_classes *classes) {
    wf_run run = run_at(stream);
    wf_class class;
    uint64_t escapes = 0, bytes = 0;
    unsigned most = 0, from;
    uint32_t byte;
    int more;
    integers->high = run;
    for (classes->begin(classes);;) {
        WF_TRY(classes->next(classes, &class, &more));
        if (!more) break;
        WF_TRY(high_part(&run, class, &byte));
        WF_TRY(check(&run));
        escapes += byte == 0;
        most = class >> 16 > most ? class >> 16 : most;
    }
    if (most > MOST_LOW) return wf_beyond(stream->work);
    for (from = 0; from < most; from += 8) {
        integers->low[from / 8] = run = run_at(&run.stream);
        for (classes->begin(classes);;) {
            WF_TRY(classes->next(classes, &class, &more));
            if (!more) break;
            if (class >> 16 > from) uniform(&run, (unsigned)wf_least((class >> 16) - from, 8));
            WF_TRY(check(&run));
        }
    }
    integers->sizes = run = run_at(&run.stream);
    for (; escapes; escapes--) {
        bytes += 1 + uniform(&run, 2);
        WF_TRY(check(&run));
    }
    integers->bytes = run = run_at(&run.stream);
    for (; bytes; bytes--) {
        uniform(&run, 8);
        WF_TRY(check(&run));
    }
    return wf_stream_end(&run.stream);
}

wf_code wf_integer(wf_integers *integers, wf_class class, int32_t *value) {
    wf_work *work = integers->high.stream.work;
    unsigned low = class >> 16, i;
    uint32_t byte;
    int64_t found;
    uint64_t rest = 0;
    WF_TRY(high_part(&integers->high, class, &byte));
    found = (int64_t)byte - 128;
    for (i = 0; i < low; i += 8) rest |= (uint64_t)uniform(&integers->low[i / 8], (unsigned)wf_least(low - i, 8)) << i;
    if (byte == 0) {
        uint32_t extra = 0;
        unsigned count = 1 + uniform(&integers->sizes, 2);
        for (i = 0; i < count; i++) extra |= uniform(&integers->bytes, 8) << (8 * i);
        found = (int64_t)(extra >> 1) + wf_last_magnitude(WF_WHOLE, 0, class & 0xFFFF) + 1;
        if (found > INT32_MAX) return wf_beyond(work);
        if (extra & 1) found = -found;
    }
    if (low) {
        if (low > 32 && found != 0) return wf_beyond(work);
        found = found * ((int64_t)1 << (found ? low : 0)) + (int64_t)rest - ((int64_t)1 << (low - 1));
        if (found > INT32_MAX || found < -INT32_MAX) return wf_beyond(work);
    }
    *value = (int32_t)found;
    return WF_OK;
}
