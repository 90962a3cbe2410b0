/* The arithmetic of the update, in the order of operations of the ONNX functions, without
 * contraction: the results are those of the functions, bit for bit.
 */
#ifndef GRAPHOPT_UPDATE_H
#define GRAPHOPT_UPDATE_H

#include <stddef.h>

#include "variant.h"

/* What one call updates. An output may be the memory of its own input. */
typedef struct {
  const float *w, *g, *s, *a, *m;
  float *w1, *s1, *a1, *m1;
} Tensors;

typedef struct {
  float decay, epsilon, momentum, loss_scale; /* attributes */
  float rate, weight_decay;                   /* inputs */
} Scalars;

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Element i of an output depends on the elements i of the inputs alone, also where it is their
 * memory; the compiler cannot know. */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* The update itself. The flags are constants where it is called, so that each variant becomes a
 * loop without branches. */
ALWAYS_INLINE void update(const Tensors *t, const Scalars *scalars, size_t n, bool centered,
                          enum Momentum momentum, bool epsilon_outside, bool rate_outside) {
  const Tensors p = *t;
  const float decay = scalars->decay, rest = 1.0f - decay, epsilon = scalars->epsilon;
  const float mu = scalars->momentum, rate = scalars->rate;
  INDEPENDENT
  for (size_t i = 0; i < n; i++) {
    const float g = p.g[i], w = p.w[i];
    const float s = p.s[i] * decay + (g * g) * rest;
    const float a = centered ? p.a[i] * decay + g * rest : 0.0f;
    const float variance = centered ? s - a * a : s;
    const float d = epsilon_outside ? __builtin_sqrtf(variance) + epsilon
                                    : __builtin_sqrtf(variance + epsilon);
    float u = (rate_outside ? g : g * rate) / d;
    /* Nothing moves where the variance with an inner epsilon is not positive, nor by NaN. */
    const float radicand = epsilon_outside ? variance : d;
    const float moves = radicand > 0.0f ? 1.0f : 0.0f;
    if (centered) u = ((radicand > 0.0f) & (u == u)) ? u + 0.0f : 0.0f; /* + 0: never -0 */
    float m = 0.0f, step = u;
    if (momentum) {
      const float kept = centered ? moves * mu + (1.0f - moves) : mu;
      m = p.m[i] * kept + u;
      step = momentum == NESTEROV ? m * mu + u : m;
    }
    if (rate_outside) step = step * rate;
    if (momentum && centered) step = step * moves;
    p.s1[i] = s;
    if (centered) p.a1[i] = a;
    if (momentum) p.m1[i] = m;
    p.w1[i] = w - step;
  }
}

/* The gradient with weight decay, without the loss scale. */
ALWAYS_INLINE void prepare_gradient(const float *w, const float *g, float *prepared,
                                    const Scalars *scalars, size_t n, bool decays, bool unscale) {
  const float factor = scalars->weight_decay, loss_scale = scalars->loss_scale;
  for (size_t i = 0; i < n; i++) {
    const float decayed = decays ? g[i] + w[i] * factor : g[i];
    prepared[i] = unscale ? decayed / loss_scale : decayed;
  }
}

/* The parameter, smaller by decoupled weight decay. */
ALWAYS_INLINE void decay_parameter(const float *w, float *decayed, const Scalars *scalars,
                                   size_t n) {
  const float factor = scalars->rate * scalars->weight_decay;
  for (size_t i = 0; i < n; i++) decayed[i] = w[i] - w[i] * factor;
}

#endif
