/* armlet's IMU service for firmware: packs what the two characteristics say. Apache-2.0.
 *
 * C99, freestanding: no library, no heap, no alignment or byte order assumed. The layout is defined in
 * runtime/armlet_runtime/wearables/imu.py, and a test compares this file with it byte by byte.
 *
 *     static const uint8_t codes[] = {ARMLET_IMU_ACC, ARMLET_IMU_GYRO};
 *     static const float scales[] = {4.0f / 32768, 17.4533f / 32768};           // unit per LSB
 *     uint8_t info[ARMLET_IMU_INFO_BYTES(2)];
 *     armlet_imu_info(info, sizeof info, 50.0f, 2, codes, scales);              // value of the info characteristic
 *
 *     uint8_t data[ARMLET_IMU_DATA_BYTES(2, 4)];                                // 2 modalities, 4 samples
 *     armlet_imu_packet packet;
 *     armlet_imu_begin(&packet, data, sizeof data, 2, sequence++, clock_us);    // clock of the first sample
 *     while (armlet_imu_add(&packet, next_sample()))                            // x, y, z of acc, then of gyro
 *         ;                                                                     // notify packet.bytes, packet.used
 *
 * Advertise ARMLET_IMU_SERVICE_UUID and a name. Let sequence and clock run on while there is no link: the gap then shows
 * for what it is. A notification carries at most the ATT MTU less 3 bytes: 20 bytes (1 modality, 2 samples) without a
 * larger MTU.
 */
#ifndef ARMLET_IMU_H
#define ARMLET_IMU_H

#include <stddef.h>
#include <stdint.h>

/* UUIDs in the order of the air, least significant byte first: a7c1000N-5f3b-4e0e-9d57-61726d6c6574. */
#define ARMLET_IMU_UUID(n) \
    {0x74, 0x65, 0x6c, 0x6d, 0x72, 0x61, 0x57, 0x9d, 0x0e, 0x4e, 0x3b, 0x5f, (n), 0x00, 0xc1, 0xa7}
#define ARMLET_IMU_SERVICE_UUID ARMLET_IMU_UUID(0x00)
#define ARMLET_IMU_INFO_UUID ARMLET_IMU_UUID(0x01) /* read */
#define ARMLET_IMU_DATA_UUID ARMLET_IMU_UUID(0x02) /* notify */

#define ARMLET_IMU_LAYOUT 1
#define ARMLET_IMU_MAX_COUNT 120 /* samples in a packet */

/* Modality codes. */
#define ARMLET_IMU_ACC 1  /* g */
#define ARMLET_IMU_GYRO 2 /* rad/s */
#define ARMLET_IMU_MAG 3  /* uT */

#define ARMLET_IMU_INFO_BYTES(modalities) (6 + 5 * (modalities))
#define ARMLET_IMU_SAMPLE_BYTES(modalities) (6 * (modalities))
#define ARMLET_IMU_DATA_BYTES(modalities, samples) (8 + ARMLET_IMU_SAMPLE_BYTES(modalities) * (samples))

/* A packet under way: bytes[0 .. used) are what to notify once it has a sample. */
typedef struct {
    uint8_t *bytes;
    size_t room;
    size_t used;
    uint8_t modalities;
} armlet_imu_packet;

static inline uint8_t *armlet_imu_put16(uint8_t *to, uint16_t value) {
    to[0] = (uint8_t)(value & 0xff);
    to[1] = (uint8_t)(value >> 8);
    return to + 2;
}

static inline uint8_t *armlet_imu_put32(uint8_t *to, uint32_t value) {
    return armlet_imu_put16(armlet_imu_put16(to, (uint16_t)(value & 0xffff)), (uint16_t)(value >> 16));
}

static inline uint8_t *armlet_imu_put_float(uint8_t *to, float value) {
    union {
        float number;
        uint32_t bits;
    } as;
    as.number = value;
    return armlet_imu_put32(to, as.bits);
}

/* Write the info characteristic. Returns its length, or 0 if it does not fit into room. */
static inline size_t armlet_imu_info(uint8_t *to, size_t room, float rate_hz, uint8_t modalities, const uint8_t *codes,
                                     const float *scales) {
    const size_t length = ARMLET_IMU_INFO_BYTES((size_t)modalities);
    uint8_t i;
    if (modalities == 0 || room < length) {
        return 0;
    }
    *to++ = ARMLET_IMU_LAYOUT;
    *to++ = modalities;
    to = armlet_imu_put_float(to, rate_hz);
    for (i = 0; i < modalities; i++) {
        *to++ = codes[i];
        to = armlet_imu_put_float(to, scales[i]);
    }
    return length;
}

/* Begin a packet. room must hold at least one sample: ARMLET_IMU_DATA_BYTES(modalities, 1). */
static inline void armlet_imu_begin(armlet_imu_packet *packet, uint8_t *bytes, size_t room, uint8_t modalities,
                                    uint16_t sequence, uint32_t clock_us) {
    packet->bytes = bytes;
    packet->room = room;
    packet->modalities = modalities;
    packet->used = ARMLET_IMU_DATA_BYTES((size_t)modalities, 0);
    bytes[0] = ARMLET_IMU_LAYOUT;
    bytes[1] = 0;
    armlet_imu_put32(armlet_imu_put16(bytes + 2, sequence), clock_us);
}

/* Add one sample: axes holds x, y, z of each modality in the order of info. Returns whether another one fits; a sample
 * that does not fit itself is not taken. */
static inline int armlet_imu_add(armlet_imu_packet *packet, const int16_t *axes) {
    const size_t length = ARMLET_IMU_SAMPLE_BYTES((size_t)packet->modalities);
    uint8_t *to = packet->bytes + packet->used;
    size_t i;
    if (packet->room - packet->used < length || packet->bytes[1] >= ARMLET_IMU_MAX_COUNT) {
        return 0;
    }
    for (i = 0; i < length / 2; i++) {
        to = armlet_imu_put16(to, (uint16_t)axes[i]);
    }
    packet->used += length;
    packet->bytes[1]++;
    return packet->room - packet->used >= length && packet->bytes[1] < ARMLET_IMU_MAX_COUNT;
}

#endif
