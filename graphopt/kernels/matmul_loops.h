/* Products of packed tiles for AVX-512: included by matmul.c.
 *
 * A tile of a result has up to ROWS rows and COLUMNS columns, which are sums in registers.
 */

#define TARGET __attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma")))

/* The left operand has its rows PITCH apart, or element by element ROWS apart. */
#define PRODUCT(name, row_step, step)                                                           \
  TARGET ALWAYS_INLINE void name(const Tile *t, size_t rows) {                                  \
    __m512 sums[ROWS][2];                                                                       \
    const float *a = t->a, *b = t->b;                                                           \
    UNROLL                                                                                      \
    for (size_t r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();            \
    for (size_t k = 0; k < t->depth; k++, a += (step), b += COLUMNS) {                          \
      const __m512 first = _mm512_load_ps(b), second = _mm512_load_ps(b + COLUMNS / 2);         \
      UNROLL                                                                                    \
      for (size_t r = 0; r < rows; r++) {                                                       \
        const __m512 x = _mm512_set1_ps(a[r * (row_step)]);                                     \
        sums[r][0] = _mm512_fmadd_ps(x, first, sums[r][0]);                                     \
        sums[r][1] = _mm512_fmadd_ps(x, second, sums[r][1]);                                    \
      }                                                                                         \
    }                                                                                           \
    const __m512 alpha = _mm512_set1_ps(t->alpha);                                              \
    UNROLL                                                                                      \
    for (size_t r = 0; r < rows; r++) {                                                         \
      float *y = t->y + r * t->y_step;                                                          \
      sums[r][0] = _mm512_mul_ps(sums[r][0], alpha);                                            \
      sums[r][1] = _mm512_mul_ps(sums[r][1], alpha);                                            \
      if (t->plus) {                                                                            \
        const float *plus = t->plus + r * t->plus_step;                                         \
        sums[r][0] = _mm512_add_ps(_mm512_loadu_ps(plus), sums[r][0]);                          \
        sums[r][1] = _mm512_add_ps(_mm512_loadu_ps(plus + COLUMNS / 2), sums[r][1]);            \
      }                                                                                         \
      _mm512_storeu_ps(y, sums[r][0]);                                                          \
      _mm512_storeu_ps(y + COLUMNS / 2, sums[r][1]);                                            \
    }                                                                                           \
  }

PRODUCT(product_of_rows, PITCH, 1)
PRODUCT(product_of_columns, 1, ROWS)

/* For each number of rows the loop over them is unrolled. */
#define CASES(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

TARGET static void multiply_rows(const Tile *t, size_t rows) {
#define CASE(n) case n: product_of_rows(t, n); break;
  switch (rows) { CASES(CASE) }
#undef CASE
}

TARGET static void multiply_columns(const Tile *t, size_t rows) {
#define CASE(n) case n: product_of_columns(t, n); break;
  switch (rows) { CASES(CASE) }
#undef CASE
}

/* The first of 16 floats, as many as there are. */
TARGET ALWAYS_INLINE __mmask16 some(size_t count) {
  return count < 16 ? (__mmask16)((1u << count) - 1) : (__mmask16)0xffff;
}

/* Panels of COLUMNS columns, one behind the other; columns that there are not are 0. */
TARGET static void pack_right(const Operand *o, size_t k, size_t depth, size_t column,
                              size_t columns, float *packed) {
  for (size_t j = 0; j < columns; j += COLUMNS, packed += depth * COLUMNS) {
    const float *from = o->data + k * o->step + (column + j);
    const size_t left = columns - j;
    const __mmask16 first = some(left), second = left > 16 ? some(left - 16) : 0;
    for (size_t p = 0; p < depth; p++, from += o->step) {
      _mm512_store_ps(packed + p * COLUMNS, _mm512_maskz_loadu_ps(first, from));
      _mm512_store_ps(packed + p * COLUMNS + 16, _mm512_maskz_loadu_ps(second, from + 16));
    }
  }
}

/* 16 rows of 16 become columns. */
TARGET ALWAYS_INLINE void transpose(__m512 *x) {
  __m512 y[16];
  UNROLL
  for (size_t i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  UNROLL
  for (size_t i = 0; i < 16; i += 4) {
    x[i] = _mm512_shuffle_ps(y[i], y[i + 2], 0x44);
    x[i + 1] = _mm512_shuffle_ps(y[i], y[i + 2], 0xee);
    x[i + 2] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0x44);
    x[i + 3] = _mm512_shuffle_ps(y[i + 1], y[i + 3], 0xee);
  }
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    y[i] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
    y[i + 4] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
    y[i + 8] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
  }
  UNROLL
  for (size_t i = 0; i < 4; i++) {
    x[i] = _mm512_shuffle_f32x4(y[i], y[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_f32x4(y[i], y[i + 8], 0xdd);
    x[i + 4] = _mm512_shuffle_f32x4(y[i + 4], y[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_f32x4(y[i + 4], y[i + 12], 0xdd);
  }
}

/* The same panels of an operand that lies transposed. */
TARGET static void pack_transposed_right(const Operand *o, size_t k, size_t depth, size_t column,
                                         size_t columns, float *packed) {
  for (size_t j = 0; j < columns; j += COLUMNS, packed += depth * COLUMNS)
    for (size_t half = 0; half < COLUMNS; half += 16)
      for (size_t p = 0; p < depth; p += 16) {
        const size_t deep = depth - p < 16 ? depth - p : 16;
        const __mmask16 mask = some(deep);
        __m512 block[16];
        UNROLL
        for (size_t i = 0; i < 16; i++) {
          const size_t at = j + half + i;
          const float *from = o->data + (column + at) * o->step + k + p;
          block[i] = at < columns ? _mm512_maskz_loadu_ps(mask, from) : _mm512_setzero_ps();
        }
        transpose(block);
        UNROLL
        for (size_t i = 0; i < 16; i++)
          if (i < deep) _mm512_store_ps(packed + (p + i) * COLUMNS + half, block[i]);
      }
}

/* Rows, PITCH apart. */
TARGET static void pack_left(const Operand *o, size_t row, size_t rows, size_t k, size_t depth,
                             float *packed) {
  for (size_t i = 0; i < rows; i++)
    memcpy(packed + i * PITCH, o->data + (row + i) * o->step + k, depth * sizeof *packed);
}

/* Panels of ROWS rows of an operand that lies transposed. */
TARGET static void pack_transposed_left(const Operand *o, size_t row, size_t rows, size_t k,
                                        size_t depth, float *packed) {
  for (size_t i = 0; i < rows; i += ROWS, packed += ROWS * DEPTH) {
    const __mmask16 mask = some(rows - i < ROWS ? rows - i : ROWS);
    const float *from = o->data + k * o->step + row + i;
    for (size_t p = 0; p < depth; p++, from += o->step)
      _mm512_storeu_ps(packed + p * ROWS, _mm512_maskz_loadu_ps(mask, from));
  }
}

#undef TARGET
