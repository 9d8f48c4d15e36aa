/* The C beneath _fastwal.pyx: one thread that writes and syncs batches of the log without Python.
 *
 * Two mutexes. `queue` guards the lists of batches and is never held during I/O: the loop takes it for every
 * submission. `state` guards what the log's end looks like, and is held while a batch is written and synced: whoever is to write to
 * the log by other means holds it meanwhile. Who needs both takes `state` first.
 *
 * A batch that is not plain (it begins a segment, changes term or vote, is a job) is left to the caller in Python, who
 * finds it as `current`. Formats: `batch.py`.
 */
#ifndef SMTPRAFT_FASTWAL_H
#define SMTPRAFT_FASTWAL_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "../_fastlog.h"

/* glibc 2.34 moved this out of libpthread, and gave it a new version there. The old one is in every glibc, and a module that
 * asks for it loads with any: wheels are to run on systems older than the one they are built on. */
#if defined(__GLIBC__) && defined(__x86_64__)
#if __GLIBC_PREREQ(2, 34)
__asm__(".symver pthread_condattr_setclock,pthread_condattr_setclock@GLIBC_2.3.3");
#endif
#elif defined(__GLIBC__) && defined(__aarch64__)
#if __GLIBC_PREREQ(2, 34)
__asm__(".symver pthread_condattr_setclock,pthread_condattr_setclock@GLIBC_2.17");
#endif
#endif

enum { WAL_HEADER = 152, WAL_PAGE = 4096, WAL_VOTE = 64, WAL_IOVECS = 1000 };
enum { RUN_CLOSED = 0, RUN_IDLE = 1, RUN_SLOW = 2, RUN_WRITE_FAILED = 3, RUN_SYNC_FAILED = 4 };

typedef struct wal_batch {
    struct wal_batch *next;
    void *owner;
    uint64_t first, last, first_term, last_term, entries_bytes;
    uint32_t entries_crc;
    uint32_t *ends; /* where each record ends, from the first on */
    size_t ends_count, ends_room;
    struct iovec *spans; /* [0] is for the header, and there is room for the padding */
    int span_count, span_room;
    int has_hard_state, vote_length, sync, slow;
    uint64_t term, commit;
    char vote[WAL_VOTE];
    double since_s, took_s, synced_s;
    uint64_t position, size_bytes; /* in the segment; 0 bytes: not written from here */
} wal_batch;

typedef struct {
    pthread_mutex_t queue, state;
    pthread_cond_t given;
    int event_fd;
    /* under `queue` */
    wal_batch *waiting, *waiting_last, *current, *done, *done_last;
    int closing, idle_told;
    uint64_t pending_bytes;
    double done_s; /* when the last batch was */
    /* under `state` */
    int fd; /* -1: nothing may be written from here */
    uint64_t salt, segment_bytes, end_offset, number, durable, floor, first_index, last_index, last_term, term, commit;
    uint64_t reserve_bytes;
    uint32_t crc;
    int vote_length, error;
    char vote[WAL_VOTE];
} wal_pump;

static const uint8_t wal_zeros[WAL_PAGE];

static double wal_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Returns 0, or an errno. */
static int wal_pump_begin(wal_pump *pump) {
    pthread_condattr_t attributes;
    memset(pump, 0, sizeof *pump);
    pump->fd = -1;
    pump->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pump->event_fd < 0) return errno;
    pthread_mutex_init(&pump->queue, NULL);
    pthread_mutex_init(&pump->state, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&pump->given, &attributes);
    pthread_condattr_destroy(&attributes);
    crc32c_init();
    return 0;
}

static void wal_pump_end(wal_pump *pump) {
    close(pump->event_fd);
    pthread_mutex_destroy(&pump->queue);
    pthread_mutex_destroy(&pump->state);
    pthread_cond_destroy(&pump->given);
}

/* Walks along the records of one span and adds them to the batch. 0: they are not whole records, or not in order. */
static int wal_batch_add(wal_batch *batch, const uint8_t *start, size_t size) {
    size_t at = 0;
    while (at < size) {
        const uint8_t *record = start + at;
        uint64_t length, index;
        if (size - at < 36) return 0;
        length = load_u32(record + 4);
        index = load_u64(record + 16);
        if (length < 36 || length > size - at) return 0;
        if (batch->last && index != batch->last + 1) return 0;
        if (batch->entries_bytes + length > 0xFFFFFFFFu) return 0;
        if (batch->ends_count == batch->ends_room) {
            size_t room = batch->ends_room ? 2 * batch->ends_room : 16;
            uint32_t *ends = (uint32_t *)realloc(batch->ends, room * sizeof *ends);
            if (ends == NULL) return -1;
            batch->ends = ends;
            batch->ends_room = room;
        }
        batch->entries_crc = crc32c_best(batch->entries_crc, record, 4);
        batch->last_term = load_u64(record + 8);
        if (!batch->last) {
            batch->first = index;
            batch->first_term = batch->last_term;
        }
        batch->last = index;
        batch->entries_bytes += length;
        batch->ends[batch->ends_count++] = (uint32_t)batch->entries_bytes;
        at += length;
    }
    if (batch->span_count + 2 > batch->span_room) {
        int room = batch->span_room ? 2 * batch->span_room : 8;
        struct iovec *spans = (struct iovec *)realloc(batch->spans, (size_t)room * sizeof *spans);
        if (spans == NULL) return -1;
        batch->spans = spans;
        batch->span_room = room;
    }
    if (!batch->span_count) batch->span_count = 1;
    batch->spans[batch->span_count].iov_base = (void *)start;
    batch->spans[batch->span_count++].iov_len = size;
    return 1;
}

static void wal_batch_end(wal_batch *batch) {
    free(batch->ends);
    free(batch->spans);
    batch->ends = NULL;
    batch->spans = NULL;
}

static void wal_encode_header(uint8_t *to, const wal_pump *pump, const wal_batch *batch) {
    memcpy(to, "SRWB", 4);
    store_u64(to + 8, pump->salt);
    store_u64(to + 16, pump->number + 1);
    store_u64(to + 24, pump->durable);
    store_u64(to + 32, batch->first);
    store_u64(to + 40, batch->last);
    store_u64(to + 48, pump->floor);
    store_u32(to + 56, (uint32_t)batch->entries_bytes);
    store_u32(to + 60, batch->entries_crc);
    store_u32(to + 64, pump->crc);
    to[68] = (uint8_t)pump->vote_length;
    memset(to + 69, 0, 3);
    store_u64(to + 72, pump->term);
    store_u64(to + 80, batch->has_hard_state ? batch->commit : pump->commit);
    memset(to + 88, 0, WAL_VOTE);
    memcpy(to + 88, pump->vote, (size_t)pump->vote_length);
    store_u32(to + 4, crc32c_best(0, to + 8, WAL_HEADER - 8));
}

/* As `File.pwritev`: all of it, or an errno. */
static int wal_write_all(int fd, struct iovec *spans, int count, uint64_t position) {
    while (count) {
        ssize_t written = pwritev(fd, spans, count, (off_t)position);
        if (written < 0) {
            if (errno == EINTR) continue;
            return errno;
        }
        position += (uint64_t)written;
        while (count && (size_t)written >= spans->iov_len) {
            written -= (ssize_t)spans->iov_len;
            spans++;
            count--;
        }
        if (count) {
            spans->iov_base = (char *)spans->iov_base + written;
            spans->iov_len -= (size_t)written;
            if (!written) return EIO;
        }
    }
    return 0;
}

/* Is this a batch that follows the last one, in the same segment and under the same promises? Under `state`. */
static int wal_is_plain(const wal_pump *pump, const wal_batch *batch, uint64_t size_bytes) {
    uint64_t end = batch->last ? batch->last : pump->last_index;
    if (pump->fd < 0 || batch->slow) return 0;
    if (pump->end_offset + size_bytes + pump->reserve_bytes > pump->segment_bytes) return 0;
    if (batch->has_hard_state) {
        if (batch->term != pump->term || batch->vote_length != pump->vote_length) return 0;
        if (memcmp(batch->vote, pump->vote, (size_t)pump->vote_length)) return 0;
    }
    if ((batch->has_hard_state ? batch->commit : pump->commit) > end) return 0;
    if (batch->last) {
        if (batch->first < pump->first_index || batch->first > pump->last_index + 1) return 0;
        if (batch->first == pump->last_index + 1 && batch->first_term < pump->last_term) return 0;
    }
    return 1;
}

/* Write and sync one batch: 0, or what the caller in Python has to see to. */
static int wal_write_batch(wal_pump *pump, wal_batch *batch) {
    uint8_t header[WAL_HEADER];
    uint64_t size_bytes = (WAL_HEADER + batch->entries_bytes + WAL_PAGE - 1) / WAL_PAGE * WAL_PAGE;
    struct iovec alone[2], *spans = batch->spans != NULL ? batch->spans : alone;
    int count = batch->span_count ? batch->span_count : 1, result = 0;
    double began;
    if (!batch->last && !batch->has_hard_state && !batch->sync && !batch->slow) return 0; /* only the order counts */
    pthread_mutex_lock(&pump->state);
    if (!wal_is_plain(pump, batch, size_bytes)) {
        pthread_mutex_unlock(&pump->state);
        return RUN_SLOW;
    }
    began = wal_now();
    wal_encode_header(header, pump, batch);
    spans[0].iov_base = header;
    spans[0].iov_len = WAL_HEADER;
    spans[count].iov_base = (void *)wal_zeros;
    spans[count].iov_len = (size_t)(size_bytes - WAL_HEADER - batch->entries_bytes);
    if (spans[count].iov_len) count++;
    pump->error = wal_write_all(pump->fd, spans, count, pump->end_offset);
    if (pump->error) {
        result = RUN_WRITE_FAILED;
    } else {
        batch->position = pump->end_offset + WAL_HEADER;
        batch->size_bytes = size_bytes;
        pump->end_offset += size_bytes;
        pump->number++;
        pump->crc = load_u32(header + 4);
        if (batch->has_hard_state) pump->commit = batch->commit;
        if (batch->last) {
            pump->last_index = batch->last;
            pump->last_term = batch->last_term;
        }
        if (batch->sync) {
            double from = wal_now();
            if (fdatasync(pump->fd)) {
                pump->error = errno;
                result = RUN_SYNC_FAILED;
            } else {
                pump->durable = pump->number;
                batch->synced_s = wal_now() - from;
            }
        }
        batch->took_s = wal_now() - began;
    }
    pthread_mutex_unlock(&pump->state);
    return result;
}

/* `current` is done: hand it back, and wake the loop. */
static void wal_finish(wal_pump *pump) {
    const uint64_t one = 1;
    ssize_t written;
    wal_batch *batch;
    int first;
    pthread_mutex_lock(&pump->queue);
    batch = pump->current;
    pump->current = NULL;
    pump->pending_bytes -= batch->entries_bytes;
    pump->done_s = wal_now();
    batch->next = NULL;
    first = pump->done == NULL;
    if (first) pump->done = batch;
    else pump->done_last->next = batch;
    pump->done_last = batch;
    pthread_mutex_unlock(&pump->queue);
    if (first) {
        do written = write(pump->event_fd, &one, sizeof one);
        while (written < 0 && errno == EINTR);
    }
}

/* Write what is given until Python is needed. After `idle_s` with nothing to write that is said, once. */
static int wal_pump_run(wal_pump *pump, double idle_s) {
    for (;;) {
        wal_batch *batch;
        int result = 0;
        pthread_mutex_lock(&pump->queue);
        if (pump->waiting == NULL && !pump->closing && !pump->idle_told) {
            struct timespec until;
            double at = wal_now() + idle_s;
            until.tv_sec = (time_t)at;
            until.tv_nsec = (long)((at - (double)until.tv_sec) * 1e9);
            while (pump->waiting == NULL && !pump->closing && !result)
                result = pthread_cond_timedwait(&pump->given, &pump->queue, &until);
            if (pump->waiting == NULL && !pump->closing) {
                pump->idle_told = 1;
                pthread_mutex_unlock(&pump->queue);
                return RUN_IDLE;
            }
        }
        while (pump->waiting == NULL && !pump->closing) pthread_cond_wait(&pump->given, &pump->queue);
        batch = pump->waiting;
        if (batch == NULL) {
            pthread_mutex_unlock(&pump->queue);
            return RUN_CLOSED;
        }
        pump->waiting = batch->next;
        if (pump->waiting == NULL) pump->waiting_last = NULL;
        batch->next = NULL;
        pump->current = batch;
        pump->idle_told = 0;
        pthread_mutex_unlock(&pump->queue);
        result = wal_write_batch(pump, batch);
        if (result) return result;
        wal_finish(pump);
    }
}

#endif
