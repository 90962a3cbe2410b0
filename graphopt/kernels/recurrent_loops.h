/* The loops for one instruction set: included once for each, with LOOPS(name), TARGET, WIDTH, the
 * floats that are computed together, HIGH, the rows of a tile, and MULTIPLY_ADD(a, b, c). */

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

/* exp(x) for x <= 0, and 0 within 2e-38 for x below -87; something else for NaN. */
TARGET ALWAYS_INLINE void LOOPS(exponential)(const WIDE *x, WIDE *result) {
  static const float series[] = {1.382942059e-03f, 8.374771520e-03f, 4.166835803e-02f,
                                 1.666642083e-01f, 4.999999149e-01f, 1.000000036e+00f,
                                 1.000000001e+00f};
  const WIDE low = ALL(-87.0f), magic = ALL(12582912.0f); /* 1.5 2^23 */
  const WIDE y = WHERE(*x < low, low, *x);
  const WIDE shifted = MULTIPLY_ADD(y, ALL(1.442695041f), magic), power = shifted - magic;
  const WIDE most = MULTIPLY_ADD(power, ALL(-0.693359375f), y);
  const WIDE rest = MULTIPLY_ADD(power, ALL(2.12194440e-4f), most);
  WIDE sum = ALL(series[0]);
  UNROLL
  for (size_t i = 1; i < sizeof series / sizeof *series; i++)
    sum = MULTIPLY_ADD(sum, rest, ALL(series[i]));
  *result = (WIDE)((LOOPS(Bits))sum + ((LOOPS(Bits))shifted << 23));
}

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

/* Some rows of a times a panel: `depth` rows of two vectors. */
TARGET ALWAYS_INLINE void LOOPS(multiply_rows)(const float *a, size_t a_row, const float *panel,
                                               size_t depth, float *sums, const size_t high) {
  WIDE left[HIGH], right[HIGH];
  UNROLL
  for (size_t r = 0; r < high; r++) left[r] = right[r] = (WIDE){0};
  for (size_t k = 0; k < depth; k++, panel += 2 * WIDTH) {
    const WIDE p = READ(panel), q = READ(panel + WIDTH);
    UNROLL
    for (size_t r = 0; r < high; r++) {
      const WIDE factor = ALL(a[r * a_row + k]);
      left[r] = MULTIPLY_ADD(factor, p, left[r]);
      right[r] = MULTIPLY_ADD(factor, q, right[r]);
    }
  }
  UNROLL
  for (size_t r = 0; r < high; r++) {
    AT(sums + r * 2 * WIDTH) = left[r];
    AT(sums + r * 2 * WIDTH + WIDTH) = right[r];
  }
}

/* The same for as many of the rows that are left as a tile has, or as are; returns how many. */
TARGET static size_t LOOPS(multiply)(const float *a, size_t a_row, const float *panel,
                                     size_t depth, float *sums, size_t left) {
#define ROWS(n)                                                        \
  if (n <= HIGH && left >= n) {                                        \
    LOOPS(multiply_rows)(a, a_row, panel, depth, sums, n <= HIGH ? n : 1); \
    return n;                                                          \
  }
  ROWS(12) ROWS(8) ROWS(6) ROWS(4) ROWS(3) ROWS(2) ROWS(1)
#undef ROWS
  return 0;
}

/* ---- LSTM ----------------------------------------------------------------------------------- */

/* Of the gates of a row, of some units: the sums of products with the hidden state. */
TARGET ALWAYS_INLINE void LOOPS(lstm_row)(const LstmStep *s, size_t row, size_t unit, size_t some,
                                          const float *sums, size_t pair) {
  const size_t n = s->hidden, at = row * n + unit;
  const float *x = s->x + row * 4 * n + unit;
  WIDE gate[4], before, i, o, f, g, c, t;
  UNROLL
  for (size_t k = 0; k < 4; k++) {
    LOOPS(load)(x + k * n, some, &gate[k]);
    gate[k] += READ(sums + k / 2 * pair + k % 2 * WIDTH);
  }
  LOOPS(load)(s->c + at, some, &before);
  LOOPS(sigmoid)(&gate[0], &i);
  LOOPS(sigmoid)(&gate[1], &o);
  LOOPS(sigmoid)(&gate[2], &f);
  LOOPS(tanh)(&gate[3], &g);
  c = f * before + i * g;
  LOOPS(tanh)(&c, &t);
  t *= o;
  float *gates = s->gates + row * 3 * n + unit;
  LOOPS(store)(&i, some, gates);
  LOOPS(store)(&o, some, gates + n);
  LOOPS(store)(&f, some, gates + 2 * n);
  LOOPS(store)(&g, some, s->block + at);
  LOOPS(store)(&before, some, s->c_before + at);
  LOOPS(store)(&c, some, s->c + at);
  LOOPS(store)(&t, some, s->y + at);
  LOOPS(load)(s->h + at, some, &before);
  LOOPS(store)(&before, some, s->h_before + at);
}

/* One step, for a block of units; the panels of its gates i and o, then f and g. */
TARGET static void LOOPS(lstm)(const LstmStep *s, const float *panels, size_t block) {
  float sums[2][HIGH * 2 * WIDTH];
  const size_t n = s->hidden, unit = block * WIDTH, some = n - unit < WIDTH ? n - unit : WIDTH;
  const float *panel = panels + block * 4 * WIDTH * n;
  for (size_t row = 0, rows; row < s->batch; row += rows) {
    rows = LOOPS(multiply)(s->h + row * n, n, panel, n, sums[0], s->batch - row);
    LOOPS(multiply)(s->h + row * n, n, panel + 2 * WIDTH * n, n, sums[1], rows);
    for (size_t r = 0; r < rows; r++)
      LOOPS(lstm_row)(s, row + r, unit, some, sums[0] + r * 2 * WIDTH,
                      (size_t)(sums[1] - sums[0]));
  }
}

/* What the gates of a row get, of some units, with the gradient that came to h from the steps
 * behind. */
TARGET ALWAYS_INLINE void LOOPS(lstm_row_gradient)(const LstmGradientStep *s, size_t row,
                                                   size_t unit, size_t some, const WIDE *dh) {
  const size_t n = s->hidden, at = row * n + unit;
  const float *gates = s->gates + row * 3 * n + unit;
  const WIDE one = ALL(1.0f);
  WIDE i, o, f, g, before, dy, dc, t;
  LOOPS(load)(gates, some, &i);
  LOOPS(load)(gates + n, some, &o);
  LOOPS(load)(gates + 2 * n, some, &f);
  LOOPS(load)(s->block + at, some, &g);
  LOOPS(load)(s->c_before + at, some, &before);
  LOOPS(load)(s->dy + at, some, &dy);
  LOOPS(load)(s->dc + at, some, &dc);
  const WIDE c = f * before + i * g;
  LOOPS(tanh)(&c, &t);
  dy += *dh;
  dc += dy * o * (one - t * t);
  const WIDE di = dc * g * i * (one - i), d_o = dy * t * o * (one - o);
  const WIDE df = dc * before * f * (one - f), dg = dc * i * (one - g * g);
  float *dx = s->dx + row * 4 * n + unit;
  LOOPS(store)(&di, some, dx);
  LOOPS(store)(&d_o, some, dx + n);
  LOOPS(store)(&df, some, dx + 2 * n);
  LOOPS(store)(&dg, some, dx + 3 * n);
  dc *= f;
  LOOPS(store)(&dc, some, s->dc + at);
}

/* One step of the gradient, for a block of twice as many units; then dh, of the state before the
 * first step. */
TARGET static void LOOPS(lstm_gradient)(const LstmGradientStep *s, const float *panels,
                                        size_t block) {
  float sums[HIGH * 2 * WIDTH];
  const size_t n = s->hidden;
  const float *panel = panels + block * 2 * WIDTH * 4 * n;
  for (size_t row = 0, rows; row < s->batch; row += rows) {
    rows = s->batch - row < HIGH ? s->batch - row : HIGH;
    if (s->after) rows = LOOPS(multiply)(s->after + row * 4 * n, 4 * n, panel, 4 * n, sums, rows);
    for (size_t r = 0; r < rows; r++)
      for (size_t v = 0; v < 2; v++) {
        const size_t unit = (2 * block + v) * WIDTH, at = (row + r) * n + unit;
        if (unit >= n) break;
        const size_t some = n - unit < WIDTH ? n - unit : WIDTH;
        WIDE dh;
        if (s->after)
          dh = READ(sums + (2 * r + v) * WIDTH);
        else
          LOOPS(load)(s->dh + at, some, &dh);
        if (s->dx)
          LOOPS(lstm_row_gradient)(s, row + r, unit, some, &dh);
        else
          LOOPS(store)(&dh, some, s->dh0 + at);
      }
  }
}

static const CellLoops LOOPS(cell_loops) = {WIDTH, LOOPS(lstm), LOOPS(lstm_gradient)};

#undef WIDE
#undef AT
#undef READ
#undef ALL
#undef WHERE
#undef LOOPS
#undef TARGET
#undef WIDTH
#undef HIGH
#undef MULTIPLY_ADD
