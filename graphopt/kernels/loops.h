/* The loops for one instruction set: included once for each, with LOOPS(name) and TARGET. */

/* Every combination of centered, momentum, epsilon_outside and rate_outside. */
#define CORES(X)                                                                 \
  X(0, NO_MOMENTUM, 0, 0) X(0, NO_MOMENTUM, 1, 0)                                \
  X(0, MOMENTUM, 0, 0) X(0, MOMENTUM, 0, 1) X(0, MOMENTUM, 1, 0) X(0, MOMENTUM, 1, 1) \
  X(0, NESTEROV, 0, 0) X(0, NESTEROV, 0, 1) X(0, NESTEROV, 1, 0) X(0, NESTEROV, 1, 1) \
  X(1, NO_MOMENTUM, 0, 0) X(1, NO_MOMENTUM, 1, 0)                                \
  X(1, MOMENTUM, 0, 0) X(1, MOMENTUM, 0, 1) X(1, MOMENTUM, 1, 0) X(1, MOMENTUM, 1, 1) \
  X(1, NESTEROV, 0, 0) X(1, NESTEROV, 0, 1) X(1, NESTEROV, 1, 0) X(1, NESTEROV, 1, 1)
#define CORE(centered, momentum, outside, late) \
  ((centered) * 12 + (int)(momentum) * 4 + (outside) * 2 + (late))

TARGET static void LOOPS(update)(const Variant *v, const Tensors *t, const Scalars *s, size_t n) {
#define CASE(centered, momentum, outside, late)            \
  case CORE(centered, momentum, outside, late):            \
    update_range(t, s, n, centered, momentum, outside, late); \
    break;
  switch (CORE(v->centered, v->momentum, v->epsilon_outside, v->rate_outside)) { CORES(CASE) }
#undef CASE
}

TARGET static void LOOPS(prepare_gradient)(const Variant *v, const Tensors *t, const Scalars *s,
                                           Real *prepared, size_t n) {
  if (v->weight_decay != WEIGHT_DECAY)
    prepare_gradients(t, prepared, s, n, false, true);
  else if (v->unscale)
    prepare_gradients(t, prepared, s, n, true, true);
  else
    prepare_gradients(t, prepared, s, n, true, false);
}

TARGET static void LOOPS(limit_gradient)(const Real *g, Real *limited, Real factor, Real limit,
                                         size_t n, bool scale, bool clip_value) {
  if (!clip_value)
    limit_gradients(g, limited, factor, limit, n, true, false);
  else if (scale)
    limit_gradients(g, limited, factor, limit, n, true, true);
  else
    limit_gradients(g, limited, factor, limit, n, false, true);
}

TARGET static void LOOPS(add_weighted)(const Real *x, const Real *y, Real *sum, Real a, Real b,
                                       size_t n) {
  add_weighted(x, y, sum, a, b, n);
}

TARGET static bool LOOPS(all_finite)(const Real *values, size_t n) {
  return are_finite(values, n);
}

TARGET static void LOOPS(decay_parameter)(const Tensors *t, const Scalars *s, Real *decayed,
                                          size_t n) {
  for (size_t i = 0; i < n; i++) decayed[i] = decayed_parameter(t->w[i], s);
}

static const Loops LOOPS(loops) = {LOOPS(update), LOOPS(limit_gradient), LOOPS(add_weighted),
                                   LOOPS(all_finite), LOOPS(prepare_gradient), LOOPS(decay_parameter)};

#undef CORE
#undef CORES
#undef LOOPS
#undef TARGET
