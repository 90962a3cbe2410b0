/* The arithmetic of the update, element by element, in the order of operations of the ONNX
 * functions, without contraction: the results are those of the functions, bit for bit.
 *
 * C for the CPU, and CUDA C++ for its GPUs.
 */
#ifndef GRAPHOPT_UPDATE_H
#define GRAPHOPT_UPDATE_H

#include "variant.h"

#if defined(__CUDACC__)
#define ALWAYS_INLINE static __device__ __forceinline__
#define SQUARE_ROOT(x) __fsqrt_rn(x)
#else
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define SQUARE_ROOT(x) __builtin_sqrtf(x)
#endif

typedef struct {
  float decay, epsilon, momentum, loss_scale; /* attributes */
  float rate, weight_decay;                   /* inputs */
} Scalars;

/* An element of a parameter, and of each of its states. */
typedef struct {
  float w, s, a, m;
} Element;

ALWAYS_INLINE float moved_average(float average, float value, float decay) {
  return average * decay + value * (1.0f - decay);
}

/* The update itself. The flags are constants where it is called, so that each variant becomes code
 * without branches. */
ALWAYS_INLINE Element updated(Element old, float g, const Scalars *scalars, bool centered,
                              enum Momentum momentum, bool epsilon_outside, bool rate_outside) {
  const float decay = scalars->decay, epsilon = scalars->epsilon;
  const float mu = scalars->momentum, rate = scalars->rate;
  const float s = moved_average(old.s, g * g, decay);
  const float a = centered ? moved_average(old.a, g, decay) : 0.0f;
  const float variance = centered ? s - a * a : s;
  /* One root, also where the flag is no constant. */
  const float root = SQUARE_ROOT(epsilon_outside ? variance : variance + epsilon);
  const float d = epsilon_outside ? root + epsilon : root;
  float u = (rate_outside ? g : g * rate) / d;
  /* Nothing moves where the variance with an inner epsilon is not positive, nor by NaN. */
  const float positive = epsilon_outside ? variance : d;
  const float moves = positive > 0.0f ? 1.0f : 0.0f;
  if (centered) u = ((positive > 0.0f) & (u == u)) ? u + 0.0f : 0.0f; /* + 0: never -0 */
  float m = 0.0f, step = u;
  if (momentum) {
    const float kept = centered ? moves * mu + (1.0f - moves) : mu;
    m = old.m * kept + u;
    step = momentum == NESTEROV ? m * mu + u : m;
  }
  if (rate_outside) step = step * rate;
  if (momentum && centered) step = step * moves;
  Element new_ = {old.w - step, s, a, m};
  return new_;
}

/* The gradient with weight decay, without the loss scale. */
ALWAYS_INLINE float prepared_gradient(float w, float g, const Scalars *scalars, bool decays,
                                      bool unscale) {
  const float decayed = decays ? g + w * scalars->weight_decay : g;
  return unscale ? decayed / scalars->loss_scale : decayed;
}

/* The gradient times the factor of the step, and limited; NaN stays NaN. */
ALWAYS_INLINE float limited_gradient(float g, float factor, float limit, bool scale,
                                     bool clip_value) {
  const float x = scale ? g * factor : g;
  const float low = x < -limit ? -limit : x;
  return clip_value ? (low > limit ? limit : low) : x;
}

/* x a + y b; where a is 0, x does not count, whatever it is. */
ALWAYS_INLINE float weighted_sum(float x, float y, float a, float b) {
  return (a == 0.0f ? 0.0f : x * a) + y * b;
}

/* The parameter, smaller by decoupled weight decay. */
ALWAYS_INLINE float decayed_parameter(float w, const Scalars *scalars) {
  return w - w * (scalars->rate * scalars->weight_decay);
}

#endif
