/* The arithmetic of the update, element by element, in the order of operations of the ONNX
 * functions, without contraction: the results are those of the functions, bit for bit.
 *
 * C for the CPU, in float, or in double where FLOAT64 is defined, and CUDA C++ for its GPUs.
 */
#ifndef GRAPHOPT_UPDATE_H
#define GRAPHOPT_UPDATE_H

#include "variant.h"

#if defined(__CUDACC__)
#define ALWAYS_INLINE static __device__ __forceinline__
#define SQUARE_ROOT(x) __fsqrt_rn(x)
#else
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define SQUARE_ROOT(x) _Generic((x), float: __builtin_sqrtf, double: __builtin_sqrt)(x)
#endif

#if defined(FLOAT64)
typedef double Real;
#else
typedef float Real;
#endif

typedef struct {
  Real decay, epsilon, momentum, loss_scale; /* attributes */
  Real rate, weight_decay;                   /* inputs */
} Scalars;

/* An element of a parameter, and of each of its states. */
typedef struct {
  Real w, s, a, m;
} Element;

ALWAYS_INLINE Real moved_average(Real average, Real value, Real decay) {
  return average * decay + value * ((Real)1 - decay);
}

/* The update itself. The flags are constants where it is called, so that each variant becomes code
 * without branches. */
ALWAYS_INLINE Element updated(Element old, Real g, const Scalars *scalars, bool centered,
                              enum Momentum momentum, bool epsilon_outside, bool rate_outside) {
  const Real decay = scalars->decay, epsilon = scalars->epsilon;
  const Real mu = scalars->momentum, rate = scalars->rate;
  const Real s = moved_average(old.s, g * g, decay);
  const Real a = centered ? moved_average(old.a, g, decay) : (Real)0;
  const Real variance = centered ? s - a * a : s;
  /* One root, also where the flag is no constant. */
  const Real root = SQUARE_ROOT(epsilon_outside ? variance : variance + epsilon);
  const Real d = epsilon_outside ? root + epsilon : root;
  Real u = (rate_outside ? g : g * rate) / d;
  /* Nothing moves where the variance with an inner epsilon is not positive, nor by NaN. */
  const Real positive = epsilon_outside ? variance : d;
  const Real moves = positive > (Real)0 ? (Real)1 : (Real)0;
#if defined(FLOAT64)
  if (centered) u = positive > (Real)0 ? u : (Real)0;
#else
  if (centered) u = ((positive > (Real)0) & (u == u)) ? u + (Real)0 : (Real)0; /* + 0: never -0 */
#endif
  Real m = (Real)0, step = u;
  if (momentum) {
    const Real kept = centered ? moves * mu + ((Real)1 - moves) : mu;
    m = old.m * kept + u;
    step = momentum == NESTEROV ? m * mu + u : m;
  }
  if (rate_outside) step = step * rate;
  if (momentum && centered) step = step * moves;
  Element new_ = {old.w - step, s, a, m};
  return new_;
}

/* The gradient with weight decay, without the loss scale. */
ALWAYS_INLINE Real prepared_gradient(Real w, Real g, const Scalars *scalars, bool decays,
                                      bool unscale) {
  const Real decayed = decays ? g + w * scalars->weight_decay : g;
  return unscale ? decayed / scalars->loss_scale : decayed;
}

/* The gradient times the factor of the step, and limited; NaN stays NaN. */
ALWAYS_INLINE Real limited_gradient(Real g, Real factor, Real limit, bool scale,
                                     bool clip_value) {
  const Real x = scale ? g * factor : g;
  const Real low = x < -limit ? -limit : x;
  return clip_value ? (low > limit ? limit : low) : x;
}

/* x a + y b; where a is 0, x does not count, whatever it is. */
ALWAYS_INLINE Real weighted_sum(Real x, Real y, Real a, Real b) {
  return (a == (Real)0 ? (Real)0 : x * a) + y * b;
}

/* The parameter, smaller by decoupled weight decay. */
ALWAYS_INLINE Real decayed_parameter(Real w, const Scalars *scalars) {
  return w - w * (scalars->rate * scalars->weight_decay);
}

#endif
