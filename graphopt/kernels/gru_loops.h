/* The loops of a GRU for one instruction set, behind recurrent_loops.h. */

/* Of the gates of a row, of some units: the sums of products with the hidden state. */
TARGET ALWAYS_INLINE void LOOPS(row)(const Step *s, size_t row, size_t unit, size_t some,
                                     const float *sums, const float *sums_of_new) {
  const size_t n = s->hidden, at = row * n + unit;
  const float *x = s->x + row * 3 * n + unit;
  WIDE update, reset, value, before, inner, z, r, v;
  LOOPS(load)(x, some, &update);
  LOOPS(load)(x + n, some, &reset);
  LOOPS(load)(x + 2 * n, some, &value);
  LOOPS(load)(s->h + at, some, &before);
  LOOPS(load)(s->bias + unit, some, &inner);
  update += READ(sums);
  reset += READ(sums + WIDTH);
  inner += READ(sums_of_new);
  LOOPS(sigmoid)(&update, &z);
  LOOPS(sigmoid)(&reset, &r);
  value += r * inner;
  LOOPS(tanh)(&value, &v);
  const WIDE h = v + z * (before - v);
  float *gates = s->gates + row * 2 * n + unit;
  LOOPS(store)(&z, some, gates);
  LOOPS(store)(&r, some, gates + n);
  LOOPS(store)(&v, some, s->new + at);
  LOOPS(store)(&inner, some, s->inner + at);
  LOOPS(store)(&before, some, s->h_before + at);
  LOOPS(store)(&h, some, s->y + at);
}

/* One step, for a block of units; the panels of its gates z and r, then that of n. */
TARGET static void LOOPS(step)(const void *data, const float *panels, size_t block) {
  const Step *s = data;
  float sums[HIGH * 2 * WIDTH], sums_of_new[HIGH * WIDTH];
  const size_t n = s->hidden, unit = block * WIDTH, some = n - unit < WIDTH ? n - unit : WIDTH;
  const float *panel = panels + block * 3 * WIDTH * n;
  for (size_t row = 0, rows; row < s->batch; row += rows) {
    const float *h = s->h + row * n;
    rows = LOOPS(multiply)(h, n, panel, n, sums, s->batch - row, 2);
    LOOPS(multiply)(h, n, panel + 2 * WIDTH * n, n, sums_of_new, rows, 1);
    for (size_t r = 0; r < rows; r++)
      LOOPS(row)(s, row + r, unit, some, sums + r * 2 * WIDTH, sums_of_new + r * WIDTH);
  }
}

/* What the gates of a row get, of some units, with the gradient that came to h from the steps
 * behind. */
TARGET ALWAYS_INLINE void LOOPS(row_gradient)(const GradientStep *s, size_t row, size_t unit,
                                              size_t some, const WIDE *products) {
  const size_t n = s->hidden, at = row * n + unit;
  const float *gates = s->gates + row * 2 * n + unit;
  const WIDE one = ALL(1.0f);
  WIDE z, r, value, inner, before, dh, direct;
  LOOPS(load)(gates, some, &z);
  LOOPS(load)(gates + n, some, &r);
  LOOPS(load)(s->new + at, some, &value);
  LOOPS(load)(s->inner + at, some, &inner);
  LOOPS(load)(s->h_before + at, some, &before);
  LOOPS(load)(s->dy + at, some, &dh);
  LOOPS(load)(s->dh + at, some, &direct);
  dh += direct + *products;
  const WIDE dv = dh * (one - z) * (one - value * value), d_inner = dv * r;
  const WIDE dz = dh * (before - value) * z * (one - z), dr = dv * inner * r * (one - r);
  const size_t wide = row * 3 * n + unit;
  LOOPS(store)(&dz, some, s->dx + wide);
  LOOPS(store)(&dr, some, s->dx + wide + n);
  LOOPS(store)(&dv, some, s->dx + wide + 2 * n);
  LOOPS(store)(&dz, some, s->d_sums + wide);
  LOOPS(store)(&dr, some, s->d_sums + wide + n);
  LOOPS(store)(&d_inner, some, s->d_sums + wide + 2 * n);
  dh *= z;
  LOOPS(store)(&dh, some, s->dh + at);
}

/* One step of the gradient, for a block of twice as many units; then dh, of the state before the
 * first step. */
TARGET static void LOOPS(gradient)(const void *data, const float *panels, size_t block) {
  const GradientStep *s = data;
  float sums[HIGH * 2 * WIDTH] = {0};
  const size_t n = s->hidden;
  const float *panel = panels + block * 2 * WIDTH * 3 * n;
  for (size_t row = 0, rows; row < s->batch; row += rows) {
    rows = s->batch - row < HIGH ? s->batch - row : HIGH;
    if (s->after)
      rows = LOOPS(multiply)(s->after + row * 3 * n, 3 * n, panel, 3 * n, sums, rows, 2);
    for (size_t r = 0; r < rows; r++)
      for (size_t v = 0; v < 2; v++) {
        const size_t unit = (2 * block + v) * WIDTH, at = (row + r) * n + unit;
        if (unit >= n) break;
        const size_t some = n - unit < WIDTH ? n - unit : WIDTH;
        const WIDE products = READ(sums + (2 * r + v) * WIDTH);
        if (s->dx) {
          LOOPS(row_gradient)(s, row + r, unit, some, &products);
          continue;
        }
        WIDE dh;
        LOOPS(load)(s->dh + at, some, &dh);
        dh += products;
        LOOPS(store)(&dh, some, s->dh + at);
      }
  }
}

static const CellLoops LOOPS(cell_loops) = {WIDTH, LOOPS(step), LOOPS(gradient)};
