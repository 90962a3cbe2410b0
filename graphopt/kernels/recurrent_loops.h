/* What the loops of recurrent layers have in common, for one instruction set: included once for
 * each by recurrent_variants.h, which defines LOOPS(name), TARGET, WIDTH, the floats that are
 * computed together, HIGH, the rows of a tile, and MULTIPLY_ADD(a, b, c). */

typedef float LOOPS(Wide) __attribute__((vector_size(4 * WIDTH)));
typedef float LOOPS(Anywhere) __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t LOOPS(Bits) __attribute__((vector_size(4 * WIDTH)));
#define WIDE LOOPS(Wide)
#define AT(pointer) (*(LOOPS(Anywhere) *)(pointer))
#define READ(pointer) (*(const LOOPS(Anywhere) *)(pointer))
#define ALL(number) ((number) - (WIDE){0}) /* which leaves -0 what it is: no addition */
/* Where a mask is set, a; elsewhere b. */
#define WHERE(mask, a, b) \
  ((WIDE)(((mask) & (LOOPS(Bits))(a)) | (~(mask) & (LOOPS(Bits))(b))))

/* ---- Functions ------------------------------------------------------------------------------ */

#define VECTOR WIDE
#define BITS LOOPS(Bits)
#include "exponential_loops.h"

TARGET ALWAYS_INLINE void LOOPS(sigmoid)(const WIDE *x, WIDE *result) {
  const WIDE zero = {0}, below = WHERE(*x < zero, *x, zero - *x);
  WIDE e;
  LOOPS(exponential)(&below, &e);
  const WIDE one = ALL(1.0f), inverse = one / (one + e);
  *result = WHERE(*x == *x, WHERE(*x < zero, e * inverse, inverse), *x);
}

/* Near 0, x + x³ P(x²), which was fitted to within 1e-9 of the result. */
TARGET ALWAYS_INLINE void LOOPS(tanh)(const WIDE *x, WIDE *result) {
  static const float series[] = {-6.274239094e-03f, 2.107167869e-02f, -5.385230980e-02f,
                                 1.333258614e-01f, -3.333331756e-01f};
  const WIDE zero = {0}, one = ALL(1.0f), size = WHERE(*x < zero, zero - *x, *x);
  const WIDE twice = size * -2.0f, squared = size * size;
  WIDE e, sum = ALL(series[0]);
  LOOPS(exponential)(&twice, &e);
  UNROLL
  for (size_t i = 1; i < sizeof series / sizeof *series; i++)
    sum = MULTIPLY_ADD(sum, squared, ALL(series[i]));
  const WIDE near = MULTIPLY_ADD(*x * squared, sum, *x), far = (one - e) / (one + e);
  const WIDE found = WHERE(size < ALL(0.55f), near, WHERE(*x < zero, zero - far, far));
  *result = WHERE(*x == *x, found, *x);
}

/* Of a row of units, some; 0 behind them. */
TARGET ALWAYS_INLINE void LOOPS(load)(const float *from, size_t some, WIDE *units) {
  if (some == WIDTH) {
    *units = READ(from);
    return;
  }
  *units = (WIDE){0};
  for (size_t i = 0; i < some; i++) (*units)[i] = from[i];
}

TARGET ALWAYS_INLINE void LOOPS(store)(const WIDE *units, size_t some, float *to) {
  if (some == WIDTH)
    AT(to) = *units;
  else
    for (size_t i = 0; i < some; i++) to[i] = (*units)[i];
}

/* ---- Products ------------------------------------------------------------------------------- */

/* Some rows of a times a panel: `depth` rows of one vector or two. */
TARGET ALWAYS_INLINE void LOOPS(multiply_rows)(const float *a, size_t a_row, const float *panel,
                                               size_t depth, float *sums, const size_t high,
                                               const size_t vectors) {
  WIDE left[HIGH], right[HIGH];
  UNROLL
  for (size_t r = 0; r < high; r++) left[r] = right[r] = (WIDE){0};
  for (size_t k = 0; k < depth; k++, panel += vectors * WIDTH) {
    const WIDE p = READ(panel), q = READ(panel + (vectors - 1) * WIDTH);
    UNROLL
    for (size_t r = 0; r < high; r++) {
      const WIDE factor = ALL(a[r * a_row + k]);
      left[r] = MULTIPLY_ADD(factor, p, left[r]);
      if (vectors == 2) right[r] = MULTIPLY_ADD(factor, q, right[r]);
    }
  }
  UNROLL
  for (size_t r = 0; r < high; r++) {
    AT(sums + r * vectors * WIDTH) = left[r];
    if (vectors == 2) AT(sums + r * vectors * WIDTH + WIDTH) = right[r];
  }
}

/* The same for as many of the rows that are left as a tile has, or as are; returns how many. */
TARGET static size_t LOOPS(multiply)(const float *a, size_t a_row, const float *panel,
                                     size_t depth, float *sums, size_t left, size_t vectors) {
#define ROWS(n)                                                                        \
  if (n <= HIGH && left >= n) {                                                        \
    const size_t high = n <= HIGH ? n : 1;                                             \
    if (vectors == 2)                                                                  \
      LOOPS(multiply_rows)(a, a_row, panel, depth, sums, high, 2);                     \
    else                                                                               \
      LOOPS(multiply_rows)(a, a_row, panel, depth, sums, high, 1);                     \
    return n;                                                                          \
  }
  ROWS(12) ROWS(8) ROWS(6) ROWS(4) ROWS(3) ROWS(2) ROWS(1)
#undef ROWS
  return 0;
}
