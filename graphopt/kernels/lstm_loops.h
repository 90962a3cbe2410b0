/* The loops of an LSTM for one instruction set, behind recurrent_loops.h. */

/* Of the gates of a row, of some units: the sums of products with the hidden state. */
TARGET ALWAYS_INLINE void LOOPS(row)(const Step *s, size_t row, size_t unit, size_t some,
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
TARGET static void LOOPS(step)(const void *data, const float *panels, size_t block) {
  const Step *s = data;
  float sums[2][HIGH * 2 * WIDTH];
  const size_t n = s->hidden, unit = block * WIDTH, some = n - unit < WIDTH ? n - unit : WIDTH;
  const float *panel = panels + block * 4 * WIDTH * n;
  for (size_t row = 0, rows; row < s->batch; row += rows) {
    rows = LOOPS(multiply)(s->h + row * n, n, panel, n, sums[0], s->batch - row, 2);
    LOOPS(multiply)(s->h + row * n, n, panel + 2 * WIDTH * n, n, sums[1], rows, 2);
    for (size_t r = 0; r < rows; r++)
      LOOPS(row)(s, row + r, unit, some, sums[0] + r * 2 * WIDTH,
                 (size_t)(sums[1] - sums[0]));
  }
}

/* What the gates of a row get, of some units, with the gradient that came to h from the steps
 * behind. */
TARGET ALWAYS_INLINE void LOOPS(row_gradient)(const GradientStep *s, size_t row, size_t unit,
                                              size_t some, const WIDE *dh) {
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
TARGET static void LOOPS(gradient)(const void *data, const float *panels, size_t block) {
  const GradientStep *s = data;
  float sums[HIGH * 2 * WIDTH];
  const size_t n = s->hidden;
  const float *panel = panels + block * 2 * WIDTH * 4 * n;
  for (size_t row = 0, rows; row < s->batch; row += rows) {
    rows = s->batch - row < HIGH ? s->batch - row : HIGH;
    if (s->after) rows = LOOPS(multiply)(s->after + row * 4 * n, 4 * n, panel, 4 * n, sums, rows, 2);
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
          LOOPS(row_gradient)(s, row + r, unit, some, &dh);
        else
          LOOPS(store)(&dh, some, s->dh0 + at);
      }
  }
}

static const CellLoops LOOPS(cell_loops) = {WIDTH, LOOPS(step), LOOPS(gradient)};
