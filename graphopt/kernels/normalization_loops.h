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

static const ChannelLoops LOOPS(channel_loops) = {LOOPS(sum), LOOPS(sum_squares),
                                                  LOOPS(add_sums), LOOPS(write_gradient)};

#undef LOOPS
#undef TARGET
