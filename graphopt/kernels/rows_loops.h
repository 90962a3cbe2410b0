/* The loops for one instruction set: included once for each, with LOOPS(name), TARGET and
 * MULTIPLY_ADD. */

TARGET ALWAYS_INLINE float LOOPS(total)(const Lanes *a, const Lanes *b) {
  const Lanes both = *a + *b;
  float sum = 0;
  for (size_t i = 0; i < LANES; i++) sum += both[i];
  return sum;
}

/* Σ a b. */
TARGET static float LOOPS(dot)(const float *a, const float *b, size_t n) {
  Lanes first = {0}, second = {0};
  float rest = 0;
  size_t i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) {
    first += *(const Unaligned *)(a + i) * *(const Unaligned *)(b + i);
    second += *(const Unaligned *)(a + i + LANES) * *(const Unaligned *)(b + i + LANES);
  }
  for (; i < n; i++) rest += a[i] * b[i];
  return rest + LOOPS(total)(&first, &second);
}

TARGET static void LOOPS(softmax)(const float *dy, const float *y, float *dx, size_t n) {
  const float along = LOOPS(dot)(dy, y, n);
  INDEPENDENT
  for (size_t i = 0; i < n; i++) dx[i] = dy[i] * y[i] - y[i] * along;
}

/* dx = r (dy - x r² mean(dy x)). */
TARGET static void LOOPS(rms_norm)(const float *dy, const float *x, float *dx, size_t n,
                                   float inverse) {
  const float along = LOOPS(dot)(dy, x, n) / (float)n * (inverse * inverse);
  INDEPENDENT
  for (size_t i = 0; i < n; i++) dx[i] = inverse * (dy[i] - x[i] * along);
}

/* g = dy scale; dx = (g - mean(g) - n mean(g n)) inverse. */
TARGET static void LOOPS(layer_norm)(const float *dy, const float *x, const float *scale,
                                     float *dx, size_t n, float mean, float inverse) {
  Lanes a = {0}, b = {0};
  float sum = 0, along = 0;
  size_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    const Lanes g = *(const Unaligned *)(dy + i) * *(const Unaligned *)(scale + i);
    a += g;
    b += g * ((*(const Unaligned *)(x + i) - mean) * inverse);
  }
  for (; i < n; i++) {
    const float g = dy[i] * scale[i];
    sum += g;
    along += g * ((x[i] - mean) * inverse);
  }
  const Lanes none = {0};
  sum = (sum + LOOPS(total)(&a, &none)) / (float)n;
  along = (along + LOOPS(total)(&b, &none)) / (float)n;
  INDEPENDENT
  for (i = 0; i < n; i++)
    dx[i] = (dy[i] * scale[i] - sum - (x[i] - mean) * inverse * along) * inverse;
}

/* Σ dy n and Σ dy over rows, for some columns, are added. */
TARGET static void LOOPS(add_columns)(const float *dy, const float *x, const float *mean,
                                      const float *inverse, size_t rows, size_t width,
                                      size_t columns, double *product, double *sum) {
  for (size_t first = 0; first < columns; first += LANES) {
    const size_t some = columns - first < LANES ? columns - first : LANES;
    Lanes a = {0}, b = {0};
    for (size_t row = 0; row < rows; row++) {
      const size_t at = row * width + first;
      if (some == LANES) {
        const Lanes g = *(const Unaligned *)(dy + at);
        a += g * ((*(const Unaligned *)(x + at) - mean[row]) * inverse[row]);
        b += g;
      } else {
        for (size_t i = 0; i < some; i++) {
          a[i] += dy[at + i] * ((x[at + i] - mean[row]) * inverse[row]);
          b[i] += dy[at + i];
        }
      }
    }
    for (size_t i = 0; i < some; i++) {
      product[first + i] += (double)a[i];
      sum[first + i] += (double)b[i];
    }
  }
}

/* Where a mask is set, a; elsewhere b. */
#define WHERE(mask, a, b) ((Lanes)(((mask) & (IntLanes)(a)) | (~(mask) & (IntLanes)(b))))

#define VECTOR Lanes
#define BITS IntLanes
#include "exponential_loops.h"

/* dy (F(x) + x f(x)), with the normal distribution F and its density f. With t = |x| / √2,
 * erfc(t) = exp(-t²) P(1 / (1 + 0.35 t)), a polynomial that was fitted to within 2e-8. */
TARGET ALWAYS_INLINE void LOOPS(gelu_lanes)(const Lanes *dy, const Lanes *x, Lanes *dx) {
  static const float series[] = {4.425666973e-02f,  -1.905149779e-01f, 2.551772559e-01f,
                                 -1.251905827e-01f, 1.673550069e-01f,  1.033448154e-01f,
                                 1.657962767e-01f,  1.848020897e-01f,  1.975087981e-01f,
                                 1.974646345e-01f,  2.879753286e-08f};
  const Lanes zero = {0}, one = zero + 1.0f, squared = *x * *x * -0.5f;
  const Lanes t = WHERE(*x < zero, zero - *x, *x) * 0.7071067812f, s = one / (t * 0.35f + one);
  Lanes density, tail = zero + series[0];
  LOOPS(exponential)(&squared, &density);
  UNROLL
  for (size_t i = 1; i < sizeof series / sizeof *series; i++)
    tail = MULTIPLY_ADD(tail, s, zero + series[i]);
  tail = tail * density * 0.5f;
  const Lanes distribution = WHERE(*x < zero, tail, one - tail);
  /* Where the density is 0, so is this, also of what is infinite. */
  const Lanes slope = WHERE(squared < zero - 87.0f, zero, *x * density * 0.3989422804f);
  *dx = *dy * (distribution + slope);
}

/* dy (s + x s (1 - s)), with s = 1 / (1 + exp(-x)). */
TARGET ALWAYS_INLINE void LOOPS(swish_lanes)(const Lanes *dy, const Lanes *x, Lanes *dx) {
  const Lanes zero = {0}, one = zero + 1.0f, minus = WHERE(*x < zero, *x, zero - *x);
  Lanes tail;
  LOOPS(exponential)(&minus, &tail);
  const Lanes large = one / (one + tail), small = tail * large;
  /* Where one of them is 0, so is the product with x, also of what is infinite. */
  const Lanes slope = WHERE(minus < zero - 87.0f, zero, *x * (large * small));
  *dx = *dy * (WHERE(*x < zero, small, large) + slope);
}

/* dx = (exp(y) - 1 at the label) share, for logarithms y of probabilities. */
TARGET static void LOOPS(cross_entropy)(const float *y, size_t label, float share, float *dx,
                                        size_t n) {
  for (size_t i = 0; i < n; i += LANES) {
    const size_t some = n - i < LANES ? n - i : LANES;
    Lanes a = {0}, e;
    if (some == LANES)
      a = *(const Unaligned *)(y + i);
    else
      for (size_t k = 0; k < some; k++) a[k] = y[i + k];
    LOOPS(exponential)(&a, &e);
    e = WHERE(a == a, e, a); /* of what is not a number, neither */
    if (label - i < some) e[label - i] -= 1.0f;
    e *= share;
    if (some == LANES)
      *(Unaligned *)(dx + i) = e;
    else
      for (size_t k = 0; k < some; k++) dx[i + k] = e[k];
  }
}

#define BY_LANES(name)                                                                          \
  TARGET static void LOOPS(name)(const float *dy, const float *x, float *dx, size_t n) {        \
    size_t i = 0;                                                                               \
    for (; i + LANES <= n; i += LANES) {                                                        \
      const Lanes a = *(const Unaligned *)(dy + i), b = *(const Unaligned *)(x + i);            \
      Lanes c;                                                                                  \
      LOOPS(name##_lanes)(&a, &b, &c);                                                          \
      *(Unaligned *)(dx + i) = c;                                                               \
    }                                                                                           \
    if (i == n) return;                                                                         \
    Lanes a = {0}, b = {0}, c;                                                                  \
    for (size_t k = 0; i + k < n; k++) a[k] = dy[i + k], b[k] = x[i + k];                       \
    LOOPS(name##_lanes)(&a, &b, &c);                                                            \
    for (size_t k = 0; i + k < n; k++) dx[i + k] = c[k];                                        \
  }

BY_LANES(gelu)
BY_LANES(swish)

static const RowLoops LOOPS(row_loops) = {LOOPS(softmax), LOOPS(layer_norm), LOOPS(add_columns),
                                          LOOPS(gelu), LOOPS(swish), LOOPS(cross_entropy),
                                          LOOPS(rms_norm)};

#undef BY_LANES
#undef MULTIPLY_ADD
#undef WHERE
#undef LOOPS
#undef TARGET
