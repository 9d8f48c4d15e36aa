/* The C beneath _fastlog.pyx: CRC-32C (RFC 3720 B.4), big-endian fields, and an entry as it is written (_logformat.py).
 *
 * On x86-64 with SSE4.2 and PCLMULQDQ, found out at run time: three interleaved streams, because one crc32 instruction
 * takes three cycles but one can start in every cycle. Elsewhere slicing-by-8, from tables made at start. No state but
 * the tables and the choice, both written once by crc32c_init().
 */
#ifndef SMTPRAFT_FASTLOG_H
#define SMTPRAFT_FASTLOG_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef Py_LIMITED_API /* there, what is a look into the object elsewhere is a call */
#define PyBytes_GET_SIZE PyBytes_Size
#define PyBytes_AS_STRING PyBytes_AsString
#endif

/* The compiler makes one load and one byte swap of each of these. */

static inline uint16_t load_u16(const uint8_t *p) { return (uint16_t)((uint16_t)p[0] << 8 | p[1]); }

static inline uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t load_u64(const uint8_t *p) { return (uint64_t)load_u32(p) << 32 | load_u32(p + 4); }

static inline void store_u16(uint8_t *p, uint16_t value) {
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
}

static inline void store_u32(uint8_t *p, uint32_t value) {
    p[0] = (uint8_t)(value >> 24);
    p[1] = (uint8_t)(value >> 16);
    p[2] = (uint8_t)(value >> 8);
    p[3] = (uint8_t)value;
}

static inline void store_u64(uint8_t *p, uint64_t value) {
    store_u32(p, (uint32_t)(value >> 32));
    store_u32(p + 4, (uint32_t)value);
}

/* ---------------------------------------------------------------------------------------------- CRC-32C, portable */

static uint32_t crc32c_slices[8][256];

static void crc32c_make_slices(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
        crc32c_slices[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++) {
        for (int slice = 1; slice < 8; slice++) {
            uint32_t crc = crc32c_slices[slice - 1][byte];
            crc32c_slices[slice][byte] = crc >> 8 ^ crc32c_slices[0][crc & 0xFF];
        }
    }
}

static inline uint32_t load_u32_little(const uint8_t *p) {
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static uint32_t crc32c_portable(uint32_t value, const uint8_t *p, size_t size) {
    uint32_t crc = ~value;
    for (; size >= 8; p += 8, size -= 8) {
        uint32_t low = crc ^ load_u32_little(p), high = load_u32_little(p + 4);
        crc = crc32c_slices[7][low & 0xFF] ^ crc32c_slices[6][low >> 8 & 0xFF] ^ crc32c_slices[5][low >> 16 & 0xFF] ^
              crc32c_slices[4][low >> 24] ^ crc32c_slices[3][high & 0xFF] ^ crc32c_slices[2][high >> 8 & 0xFF] ^
              crc32c_slices[1][high >> 16 & 0xFF] ^ crc32c_slices[0][high >> 24];
    }
    for (; size; p++, size--) crc = crc >> 8 ^ crc32c_slices[0][(crc ^ *p) & 0xFF];
    return ~crc;
}

#define RECORD_HEADER_BYTES 36

/* Write one entry at `p`: 36 + payload_bytes bytes. */
static void write_record_portable(uint8_t *p, uint64_t term, uint64_t index, uint64_t stamp, uint8_t kind,
                                  const uint8_t *payload, size_t payload_bytes) {
    size_t size = RECORD_HEADER_BYTES + payload_bytes;
    store_u32(p + 4, (uint32_t)size);
    store_u64(p + 8, term);
    store_u64(p + 16, index);
    store_u64(p + 24, stamp);
    store_u32(p + 32, (uint32_t)kind << 24);
    memcpy(p + RECORD_HEADER_BYTES, payload, payload_bytes);
    store_u32(p, crc32c_portable(0, p + 4, size - 4));
}

/* --------------------------------------------------------------------------------------- CRC-32C, SSE4.2 + PCLMUL */

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define CRC32C_HARDWARE 1
#include <immintrin.h>

static inline uint64_t load_u64_native(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

/* Run three streams of `stride` bytes each and join them. To pass over n more bytes is to multiply by x^8n modulo the
 * polynomial P. A carry-less product of two bit-reversed 32-bit values carries one extra factor x, and crc32_u64 of it
 * x^32, so the constants are x^(8n - 33) mod P, bit-reversed: for n = 2 * stride and for n = stride. */
#define CRC32C_STREAMS(stride, over_two, over_one)                                                                     \
    while (size >= 3 * (stride)) {                                                                                     \
        uint64_t second = 0, third = 0;                                                                                \
        for (size_t i = 0; i < (stride); i += 8) {                                                                     \
            crc = _mm_crc32_u64(crc, load_u64_native(p + i));                                                          \
            second = _mm_crc32_u64(second, load_u64_native(p + (stride) + i));                                         \
            third = _mm_crc32_u64(third, load_u64_native(p + 2 * (stride) + i));                                       \
        }                                                                                                              \
        __m128i moved = _mm_xor_si128(                                                                                 \
            _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi64_si128(over_two), 0),                   \
            _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)second), _mm_cvtsi64_si128(over_one), 0));               \
        crc = third ^ _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(moved));                                            \
        p += 3 * (stride);                                                                                             \
        size -= 3 * (stride);                                                                                          \
    }

__attribute__((target("sse4.2,pclmul")))
static uint32_t crc32c_hardware(uint32_t value, const uint8_t *p, size_t size) {
    uint64_t crc = (uint32_t)~value;
    CRC32C_STREAMS(4096, 0x54A86326, 0x82F89C77)
    CRC32C_STREAMS(512, 0x170076FA, 0xDD7E3B0C)
    CRC32C_STREAMS(64, 0x0D3B6092, 0x9E4ADDF8)
    for (; size >= 8; p += 8, size -= 8) crc = _mm_crc32_u64(crc, load_u64_native(p));
    for (; size; p++, size--) crc = _mm_crc32_u8((uint32_t)crc, *p);
    return ~(uint32_t)crc;
}

/* The header is summed up in registers and the payload where it comes from: to read back what was just written, in
 * pieces of another size, would wait for the writes. */
__attribute__((target("sse4.2,pclmul")))
static void write_record_hardware(uint8_t *p, uint64_t term, uint64_t index, uint64_t stamp, uint8_t kind,
                                  const uint8_t *payload, size_t payload_bytes) {
    size_t size = RECORD_HEADER_BYTES + payload_bytes;
    /* Four, and no array of four: that would be written and read back. */
    uint64_t first = __builtin_bswap64((uint64_t)size << 32 | term >> 32);
    uint64_t second = __builtin_bswap64(term << 32 | index >> 32);
    uint64_t third = __builtin_bswap64(index << 32 | stamp >> 32);
    uint64_t fourth = __builtin_bswap64(stamp << 32 | (uint64_t)kind << 24);
    uint64_t crc = _mm_crc32_u64(0xFFFFFFFFu, first);
    crc = _mm_crc32_u64(crc, second);
    crc = _mm_crc32_u64(crc, third);
    crc = _mm_crc32_u64(crc, fourth);
    memcpy(p + 4, &first, 8);
    memcpy(p + 12, &second, 8);
    memcpy(p + 20, &third, 8);
    memcpy(p + 28, &fourth, 8);
    uint8_t *to = p + RECORD_HEADER_BYTES;
    if (payload_bytes >= 3 * 64) {
        memcpy(to, payload, payload_bytes);
        crc = ~crc32c_hardware(~(uint32_t)crc, payload, payload_bytes);
    } else {
        for (; payload_bytes >= 8; payload += 8, to += 8, payload_bytes -= 8) {
            uint64_t word = load_u64_native(payload);
            memcpy(to, &word, sizeof word);
            crc = _mm_crc32_u64(crc, word);
        }
        for (; payload_bytes; payload++, to++, payload_bytes--) {
            *to = *payload;
            crc = _mm_crc32_u8((uint32_t)crc, *payload);
        }
    }
    store_u32(p, ~(uint32_t)crc);
}
#else
#define CRC32C_HARDWARE 0
#endif

/* ---------------------------------------------------------------------------------------------- CRC-32C, the choice */

static uint32_t (*crc32c_best)(uint32_t value, const uint8_t *p, size_t size) = crc32c_portable;
static void (*write_record)(uint8_t *p, uint64_t term, uint64_t index, uint64_t stamp, uint8_t kind,
                            const uint8_t *payload, size_t payload_bytes) = write_record_portable;

/* Choose; returns 1 if the instructions are used. Call it before anything else here. */
static int crc32c_init(void) {
    crc32c_make_slices();
#if CRC32C_HARDWARE
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul")) {
        crc32c_best = crc32c_hardware;
        write_record = write_record_hardware;
        return 1;
    }
#endif
    return 0;
}

#endif
