/* Float16 and float32: widened exactly, narrowed to the nearest number, of two the even one, as the
 * Cast of ONNX Runtime does.
 */
#ifndef GRAPHOPT_HALVES_H
#define GRAPHOPT_HALVES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

static float widened(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7fffu;
  uint32_t bits;
  float value;
  if (rest >= 0x7c00u) { /* infinite or NaN */
    bits = 0x7f800000u | (rest & 0x3ffu) << 13;
  } else if (rest >= 0x400u) {
    bits = (rest << 13) + ((127u - 15u) << 23);
  } else { /* so many times the smallest number */
    value = (float)rest * 0x1p-24f;
    memcpy(&bits, &value, sizeof bits);
  }
  bits |= sign;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static uint16_t narrowed(float value) {
  uint32_t bits, rest;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
  rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return sign | 0x7e00u | (uint16_t)(rest >> 13 & 0x3ffu);
  if (rest >= 0x477ff000u) return sign | 0x7c00u; /* from halfway to 2^16 on */
  if (rest < 0x38800000u) { /* no normal number: 2^-1 has the place of the last bit */
    float size;
    memcpy(&size, &rest, sizeof size);
    size += 0.5f;
    memcpy(&rest, &size, sizeof rest);
    return sign | (uint16_t)(rest - 0x3f000000u);
  }
  rest += 0xfffu + (rest >> 13 & 1u);
  return sign | (uint16_t)((rest - ((127u - 15u) << 23)) >> 13);
}

static void widen_portably(const uint16_t *halves, float *wide, size_t n) {
  for (size_t i = 0; i < n; i++) wide[i] = widened(halves[i]);
}

static void narrow_portably(const float *wide, uint16_t *halves, size_t n) {
  for (size_t i = 0; i < n; i++) halves[i] = narrowed(wide[i]);
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c"))) static void widen_by_f16c(const uint16_t *halves, float *wide,
                                                              size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
  widen_portably(halves + i, wide + i, n - i);
}

__attribute__((target("avx,f16c"))) static void narrow_by_f16c(const float *wide, uint16_t *halves,
                                                               size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128((__m128i *)(halves + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT));
  narrow_portably(wide + i, halves + i, n - i);
}

static int has_f16c(void) {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

#endif
