/* The loops for one instruction set: included once for each, with LOOPS(name), TARGET and
 * MULTIPLY_ADD(a, b, c). */

/* Blocks of `high` rows and `vectors` times LANES columns; what lies behind the last row and the
 * last column is computed and left. */
TARGET ALWAYS_INLINE void LOOPS(correlate_blocks)(const Grid *g, const float *padded,
                                                  const float *kernel, float start, float *out,
                                                  size_t column, const size_t high,
                                                  const size_t vectors) {
  const size_t left = g->columns - column;
  for (size_t row = 0; row < g->rows; row += high) {
    Lanes sum[8];
    const float *from = padded + row * g->operand_row + column;
    UNROLL
    for (size_t i = 0; i < high * vectors; i++) sum[i] = (Lanes){0} + start;
    for (size_t t = 0; t < g->count; t++) {
      const Lanes factor = (Lanes){0} + kernel[g->taps[t].element];
      const float *operand = from + g->taps[t].at;
      UNROLL
      for (size_t r = 0; r < high; r++) {
        UNROLL
        for (size_t v = 0; v < vectors; v++) {
          const Lanes x = *(const Unaligned *)(operand + r * g->operand_row + v * LANES);
          sum[r * vectors + v] = MULTIPLY_ADD(factor, x, sum[r * vectors + v]);
        }
      }
    }
    UNROLL
    for (size_t r = 0; r < high; r++) {
      if (row + r >= g->rows) break;
      float *to = out + (row + r) * g->to_row + column * g->to_column;
      UNROLL
      for (size_t v = 0; v < vectors; v++) {
        const size_t first = v * LANES;
        if (g->to_column == 1 && first + LANES <= left)
          *(Unaligned *)(to + first) = sum[r * vectors + v];
        else
          for (size_t i = 0; i < LANES && first + i < left; i++)
            to[(first + i) * g->to_column] = sum[r * vectors + v][i];
      }
    }
  }
}

TARGET static void LOOPS(correlate)(const Grid *g, const float *padded, const float *kernel,
                                    float start, float *out) {
  size_t column = 0;
  while (column < g->columns) {
    const size_t vectors = (g->columns - column + LANES - 1) / LANES;
    if (vectors >= 4) {
      LOOPS(correlate_blocks)(g, padded, kernel, start, out, column, 2, 4);
      column += 4 * LANES;
    } else if (vectors >= 2) {
      LOOPS(correlate_blocks)(g, padded, kernel, start, out, column, 4, 2);
      column += 2 * LANES;
    } else {
      LOOPS(correlate_blocks)(g, padded, kernel, start, out, column, 8, 1);
      column += LANES;
    }
  }
}

/* The sums of products with `count` taps, for a plane. */
TARGET ALWAYS_INLINE void LOOPS(add_some)(const Grid *g, const Tap *taps, const float *padded,
                                          const float *dy, double *sums, const size_t count) {
  Lanes sum[MOST_SUMS];
  UNROLL
  for (size_t t = 0; t < count; t++) sum[t] = (Lanes){0};
  for (size_t row = 0; row < g->rows; row++)
    for (size_t column = 0; column < g->columns; column += LANES) {
      const Lanes factor = *(const Unaligned *)(dy + row * g->to_row + column);
      const float *from = padded + row * g->operand_row + column;
      UNROLL
      for (size_t t = 0; t < count; t++)
        sum[t] = MULTIPLY_ADD(factor, *(const Unaligned *)(from + taps[t].at), sum[t]);
    }
  for (size_t t = 0; t < count; t++)
    for (size_t i = 0; i < LANES; i++) sums[taps[t].element] += (double)sum[t][i];
}

TARGET static void LOOPS(add_products)(const Grid *g, const float *padded, const float *dy,
                                       double *sums) {
  size_t parts = (g->count + MOST_SUMS - 1) / MOST_SUMS;
  for (size_t first = 0; first < g->count; parts--) {
    const size_t count = (g->count - first + parts - 1) / parts;
    const Tap *taps = g->taps + first;
#define CASE(n)                                                       \
  case n:                                                \
    LOOPS(add_some)(g, taps, padded, dy, sums, n);       \
    break;
    switch (count) {
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11)
      CASE(12)
    }
#undef CASE
    first += count;
  }
}

static const PlaneLoops LOOPS(plane_loops) = {LOOPS(correlate), LOOPS(add_products)};

#undef LOOPS
#undef TARGET
#undef MULTIPLY_ADD
