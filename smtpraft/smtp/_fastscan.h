/* Octets of mail content, 64 at a time: are all line ends CRLF, is there a NUL, does a line begin with a dot?
 *
 * A word of 64 bits has one bit an octet. An LF must stand right after each CR and nowhere else, so the word of the LFs
 * is that of the CRs shifted by one; what follows an LF begins a line. `*cr` and `*line` carry both across the edge of
 * what is given: was the last octet a CR, does a line begin here?
 */
#ifndef SMTPRAFT_FASTSCAN_H
#define SMTPRAFT_FASTSCAN_H

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { SCAN_NOTHING, SCAN_DOT, SCAN_FAULT };

#define SCAN_STEP 64

typedef struct {
    uint64_t cr, lf, nul, dot, high;
} scan_words;

static inline scan_words scan_look(const uint8_t *at) {
    scan_words found = {0, 0, 0, 0, 0};
#if defined(__SSE2__)
    const __m128i cr = _mm_set1_epi8('\r'), lf = _mm_set1_epi8('\n'), dot = _mm_set1_epi8('.');
    const __m128i nul = _mm_setzero_si128();
    for (int part = 0; part < SCAN_STEP / 16; part++) {
        const __m128i octets = _mm_loadu_si128((const __m128i *)(at + 16 * part));
        const int place = 16 * part;
        found.cr |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(octets, cr)) << place;
        found.lf |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(octets, lf)) << place;
        found.nul |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(octets, nul)) << place;
        found.dot |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(octets, dot)) << place;
        found.high |= (uint64_t)(uint32_t)_mm_movemask_epi8(octets) << place;
    }
#else
    for (int place = 0; place < SCAN_STEP; place++) {
        const uint8_t octet = at[place];
        found.cr |= (uint64_t)(octet == '\r') << place;
        found.lf |= (uint64_t)(octet == '\n') << place;
        found.nul |= (uint64_t)(octet == 0) << place;
        found.dot |= (uint64_t)(octet == '.') << place;
        found.high |= (uint64_t)(octet >> 7) << place;
    }
#endif
    return found;
}

static inline int scan_first(uint64_t word) {
#if defined(__GNUC__)
    return __builtin_ctzll(word);
#else
    int place = 0;
    while (!(word >> place & 1)) place++;
    return place;
#endif
}

/* Look at `count` octets at `at`, up to the first event: a dot that begins a line, or a fault. Return how many octets
 * come before it (`count` if there is none), with `*cr` and `*line` as they are there; `*high` gains a bit if one of
 * these octets is above 127. */
static size_t scan_content(const uint8_t *at, size_t count, int *cr, int *line, int *high, int *event) {
    size_t done = 0;
    uint64_t cr_before = (uint64_t)*cr, lf_before = (uint64_t)*line;
    uint8_t last[SCAN_STEP];
    *event = SCAN_NOTHING;
    while (done < count) {
        const size_t left = count - done;
        const int size = left < SCAN_STEP ? (int)left : SCAN_STEP;
        const uint8_t *from = at + done;
        if (size < SCAN_STEP) {  /* nothing behind the end is read */
            memset(last, 'x', SCAN_STEP);
            memcpy(last, from, left);
            from = last;
        }
        const scan_words found = scan_look(from);
        const uint64_t valid = size == SCAN_STEP ? ~(uint64_t)0 : ((uint64_t)1 << size) - 1;
        const uint64_t fault = ((found.lf ^ (found.cr << 1 | cr_before)) | found.nul) & valid;
        const uint64_t dots = found.dot & (found.lf << 1 | lf_before) & valid;
        if (fault | dots) {
            const int place = scan_first(fault | dots);
            *event = fault >> place & 1 ? SCAN_FAULT : SCAN_DOT;
            *high |= (found.high & (((uint64_t)1 << place) - 1)) != 0;
            *cr = place ? (int)(found.cr >> (place - 1) & 1) : (int)cr_before;
            *line = place ? (int)(found.lf >> (place - 1) & 1) : (int)lf_before;
            return done + (size_t)place;
        }
        *high |= found.high != 0;
        cr_before = found.cr >> (size - 1) & 1;
        lf_before = found.lf >> (size - 1) & 1;
        done += (size_t)size;
    }
    *cr = (int)cr_before;
    *line = (int)lf_before;
    return count;
}

/* Classes of octets in a path (RFC 5321 §4.1.2): 1 atext, 2 a letter, digit or underscore of a domain, 4 a hyphen. */
static const uint8_t path_class[256] = {
    ['!'] = 1, ['#'] = 1, ['$'] = 1, ['%'] = 1, ['&'] = 1, ['\''] = 1, ['*'] = 1, ['+'] = 1, ['-'] = 1 | 4, ['/'] = 1,
    ['='] = 1, ['?'] = 1, ['^'] = 1, ['_'] = 1 | 2, ['`'] = 1, ['{'] = 1, ['|'] = 1, ['}'] = 1, ['~'] = 1,
    ['0'] = 3, ['1'] = 3, ['2'] = 3, ['3'] = 3, ['4'] = 3, ['5'] = 3, ['6'] = 3, ['7'] = 3, ['8'] = 3, ['9'] = 3,
    ['A'] = 3, ['B'] = 3, ['C'] = 3, ['D'] = 3, ['E'] = 3, ['F'] = 3, ['G'] = 3, ['H'] = 3, ['I'] = 3, ['J'] = 3,
    ['K'] = 3, ['L'] = 3, ['M'] = 3, ['N'] = 3, ['O'] = 3, ['P'] = 3, ['Q'] = 3, ['R'] = 3, ['S'] = 3, ['T'] = 3,
    ['U'] = 3, ['V'] = 3, ['W'] = 3, ['X'] = 3, ['Y'] = 3, ['Z'] = 3,
    ['a'] = 3, ['b'] = 3, ['c'] = 3, ['d'] = 3, ['e'] = 3, ['f'] = 3, ['g'] = 3, ['h'] = 3, ['i'] = 3, ['j'] = 3,
    ['k'] = 3, ['l'] = 3, ['m'] = 3, ['n'] = 3, ['o'] = 3, ['p'] = 3, ['q'] = 3, ['r'] = 3, ['s'] = 3, ['t'] = 3,
    ['u'] = 3, ['v'] = 3, ['w'] = 3, ['x'] = 3, ['y'] = 3, ['z'] = 3,
};

enum { PATH_PART_MAX = 255, PATH_LABEL_MAX = 63 };

/* Return the length of the `<local@domain>` that `at` begins with, and where its @ stands; 0 if it is not so plain. */
static size_t plain_path_bytes(const uint8_t *at, size_t count, size_t *at_sign) {
    size_t place = 1, start;
    if (count < 2 || at[0] != '<') return 0;
    for (;;) {
        start = place;
        while (place < count && path_class[at[place]] & 1) place++;
        if (place == start || place == count) return 0;
        if (at[place] == '@') break;
        if (at[place] != '.') return 0;
        place++;
    }
    if (place - 1 > PATH_PART_MAX) return 0;
    *at_sign = place++;
    for (;;) {
        start = place;
        while (place < count && path_class[at[place]] & (2 | 4)) place++;
        if (place == start || place == count || place - start > PATH_LABEL_MAX) return 0;
        if (at[start] == '-' || at[place - 1] == '-') return 0;
        if (at[place] == '>') break;
        if (at[place] != '.') return 0;
        place++;
    }
    if (place - *at_sign - 1 > PATH_PART_MAX) return 0;
    return place + 1;
}

#endif
