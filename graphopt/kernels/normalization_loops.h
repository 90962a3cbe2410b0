/* The loops for one instruction set: included once for each, with LOOPS(name) and TARGET. */

TARGET ALWAYS_INLINE double LOOPS(total)(const Lanes *a, const Lanes *b) {
  const Lanes both = *a + *b;
  double sum = 0;
  for (size_t i = 0; i < LANES; i++) sum += (double)both[i];
  return sum;
}

/* Σ x, or Σ (x - mean)². */
TARGET ALWAYS_INLINE double LOOPS(sum_moments)(const float *x, size_t n, float mean,
                                               const bool square) {
  Lanes a = {0}, b = {0};
  double rest = 0;
  size_t i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) {
    const Lanes p = *(const Unaligned *)(x + i) - mean, q = *(const Unaligned *)(x + i + LANES) - mean;
    a += square ? p * p : p;
    b += square ? q * q : q;
  }
  for (; i < n; i++) {
    const float p = x[i] - mean;
    rest += (double)(square ? p * p : p);
  }
  return rest + LOOPS(total)(&a, &b);
}

TARGET static double LOOPS(sum)(const float *x, size_t n) {
  return LOOPS(sum_moments)(x, n, 0.0f, false);
}

TARGET static double LOOPS(sum_squares)(const float *x, size_t n, float mean) {
  return LOOPS(sum_moments)(x, n, mean, true);
}

/* Σ dy and Σ dy (x - mean) are added. */
TARGET static void LOOPS(add_sums)(const float *dy, const float *x, size_t n, float mean,
                                   double *sum, double *product) {
  Lanes a = {0}, b = {0}, c = {0}, d = {0};
  size_t i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) {
    const Lanes p = *(const Unaligned *)(dy + i), q = *(const Unaligned *)(dy + i + LANES);
    a += p;
    b += q;
    c += p * (*(const Unaligned *)(x + i) - mean);
    d += q * (*(const Unaligned *)(x + i + LANES) - mean);
  }
  *sum += LOOPS(total)(&a, &b);
  *product += LOOPS(total)(&c, &d);
  for (; i < n; i++) {
    *sum += (double)dy[i];
    *product += (double)(dy[i] * (x[i] - mean));
  }
}

/* k dy - ((x - mean) k1 + k0). */
TARGET static void LOOPS(write_gradient)(const float *dy, const float *x, float *dx, size_t n,
                                         float mean, float k, float k1, float k0) {
  INDEPENDENT
  for (size_t i = 0; i < n; i++) dx[i] = dy[i] * k - ((x[i] - mean) * k1 + k0);
}

/* The same for planes of one element: rows of `width` channels, of which some are added up.
 * `way`: Σ x; Σ (x - mean)²; Σ dy and Σ dy (x - mean). */
TARGET ALWAYS_INLINE void LOOPS(add_rows)(const float *dy, const float *x, const float *mean,
                                          size_t rows, size_t width, size_t channels, double *sum,
                                          double *product, const enum Column way) {
  for (size_t first = 0; first < channels; first += LANES) {
    const size_t some = channels - first < LANES ? channels - first : LANES;
    Lanes a = {0}, b = {0}, p = {0}, q = {0}, m = {0};
    for (size_t i = 0; mean && i < some; i++) m[i] = mean[first + i];
    for (size_t row = 0; row < rows; row++) {
      const size_t at = row * width + first;
      if (some == LANES) {
        p = *(const Unaligned *)(x + at);
        if (way == OF_BOTH) q = *(const Unaligned *)(dy + at);
      } else {
        for (size_t i = 0; i < some; i++) {
          p[i] = x[at + i];
          if (way == OF_BOTH) q[i] = dy[at + i];
        }
      }
      const Lanes centered = p - m;
      a += way == OF_BOTH ? q : way == OF_SQUARES ? centered * centered : p;
      if (way == OF_BOTH) b += q * centered;
    }
    for (size_t i = 0; i < some; i++) {
      sum[first + i] += (double)a[i];
      if (way == OF_BOTH) product[first + i] += (double)b[i];
    }
  }
}

TARGET static void LOOPS(add_columns)(const float *dy, const float *x, const float *mean,
                                      size_t rows, size_t width, size_t channels, double *sum,
                                      double *product) {
  if (dy)
    LOOPS(add_rows)(dy, x, mean, rows, width, channels, sum, product, OF_BOTH);
  else if (mean)
    LOOPS(add_rows)(dy, x, mean, rows, width, channels, sum, product, OF_SQUARES);
  else
    LOOPS(add_rows)(dy, x, mean, rows, width, channels, sum, product, OF_X);
}

TARGET static void LOOPS(write_row)(const float *dy, const float *x, float *dx, size_t n,
                                    const float *mean, const float *k, const float *k1,
                                    const float *k0) {
  INDEPENDENT
  for (size_t i = 0; i < n; i++) dx[i] = dy[i] * k[i] - ((x[i] - mean[i]) * k1[i] + k0[i]);
}

static const ChannelLoops LOOPS(channel_loops) = {LOOPS(sum), LOOPS(sum_squares),
                                                  LOOPS(add_sums), LOOPS(write_gradient),
                                                  LOOPS(add_columns), LOOPS(write_row)};

#undef LOOPS
#undef TARGET
