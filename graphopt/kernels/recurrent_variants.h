/* Includes the loops of a kind of cell, CELL_LOOPS, for each instruction set, and lets `loops` be
 * those that the processor has. */
#define LOOPS(name) name##_baseline
#define TARGET
#if defined(__aarch64__)
#include <arm_neon.h>
#define WIDTH 4
#define HIGH 8
#define MULTIPLY_ADD(a, b, c) \
  ((WIDE)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#else
#define WIDTH 8
#define HIGH 6
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif
#include "recurrent_loops.h"
#include CELL_LOOPS
#include "recurrent_loops_end.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define LOOPS(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define WIDTH 8
#define HIGH 6
#define MULTIPLY_ADD(a, b, c) ((WIDE)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#include "recurrent_loops.h"
#include CELL_LOOPS
#include "recurrent_loops_end.h"

#define LOOPS(name) name##_avx512
#define TARGET __attribute__((target("avx512f")))
#define WIDTH 16
#define HIGH 12
#define MULTIPLY_ADD(a, b, c) ((WIDE)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#include "recurrent_loops.h"
#include CELL_LOOPS
#include "recurrent_loops_end.h"
#endif

static const CellLoops *loops = &cell_loops_baseline;

#if defined(__x86_64__)
__attribute__((constructor)) static void choose_loops(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f"))
    loops = &cell_loops_avx512;
  else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    loops = &cell_loops_avx2;
}
#endif
