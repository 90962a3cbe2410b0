/* The update on the CPU: one pass over the memory instead of one for each operator of the ONNX
 * function of the same name, which runs where this does not.
 *
 * In float, or in double where FLOAT64 is defined: cpu_float64.c is this file once more.
 */
#include <stdatomic.h>
#include <string.h>

#include "operator.h"

#if defined(FLOAT64)
typedef uint64_t Bits;
#define EXPONENT 0x7ff0000000000000u /* of what is infinite or NaN */
#define COMPUTES float64_on_cpu
#else
#include "halves.h"
typedef uint32_t Bits;
#define EXPONENT 0x7f800000u
#define COMPUTES float32_on_cpu
#endif

/* What one call updates. An output may be the memory of its own input. */
typedef struct {
  const Real *w, *g, *s, *a, *m;
  Real *w1, *s1, *a1, *m1;
} Tensors;

ALWAYS_INLINE void update_range(const Tensors *t, const Scalars *scalars, size_t n, bool centered,
                                enum Momentum momentum, bool epsilon_outside, bool rate_outside) {
  const Tensors p = *t;
  const Scalars c = *scalars;
  INDEPENDENT
  for (size_t i = 0; i < n; i++) {
    const Element old = {p.w[i], p.s[i], centered ? p.a[i] : (Real)0, momentum ? p.m[i] : (Real)0};
    const Element new =
        updated(old, p.g[i], &c, centered, momentum, epsilon_outside, rate_outside);
    p.s1[i] = new.s;
    if (centered) p.a1[i] = new.a;
    if (momentum) p.m1[i] = new.m;
    p.w1[i] = new.w;
  }
}

ALWAYS_INLINE void limit_gradients(const Real *g, Real *limited, Real factor, Real limit,
                                   size_t n, bool scale, bool clip_value) {
  for (size_t i = 0; i < n; i++)
    limited[i] = limited_gradient(g[i], factor, limit, scale, clip_value);
}

ALWAYS_INLINE void add_weighted(const Real *x, const Real *y, Real *sum, Real a, Real b,
                                size_t n) {
  INDEPENDENT
  for (size_t i = 0; i < n; i++) sum[i] = weighted_sum(x[i], y[i], a, b);
}

/* Whether all exponents are those of numbers. */
ALWAYS_INLINE bool are_finite(const Real *values, size_t n) {
  Bits others = 0;
  for (size_t i = 0; i < n; i++) {
    Bits bits;
    memcpy(&bits, values + i, sizeof bits);
    others |= (bits & EXPONENT) == EXPONENT;
  }
  return !others;
}

ALWAYS_INLINE void prepare_gradients(const Tensors *t, Real *prepared, const Scalars *scalars,
                                     size_t n, bool decays, bool unscale) {
  for (size_t i = 0; i < n; i++)
    prepared[i] = prepared_gradient(t->w[i], t->g[i], scalars, decays, unscale);
}

typedef struct {
  void (*update)(const Variant *, const Tensors *, const Scalars *, size_t n);
  void (*limit_gradient)(const Real *, Real *, Real factor, Real limit, size_t n, bool scale,
                         bool clip_value);
  void (*add_weighted)(const Real *, const Real *, Real *, Real a, Real b, size_t n);
  bool (*all_finite)(const Real *, size_t n);
  void (*prepare_gradient)(const Variant *, const Tensors *, const Scalars *, Real *, size_t n);
  void (*decay_parameter)(const Tensors *, const Scalars *, Real *, size_t n);
} Loops;

#define LOOPS(name) name##_baseline
#define TARGET
#include "loops.h"

#if defined(__x86_64__)
#define LOOPS(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#include "loops.h"
#endif

CHOOSE_LOOPS(Loops, loops, __builtin_cpu_supports("avx2"))

#if !defined(FLOAT64)
static void (*widen)(const uint16_t *, float *, size_t n) = widen_portably;
static void (*narrow)(const float *, uint16_t *, size_t n) = narrow_portably;

__attribute__((constructor)) static void choose_conversions(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (has_f16c()) widen = widen_by_f16c, narrow = narrow_by_f16c;
#endif
}
#endif

enum {
  BLOCK = 1024,     /* elements that are prepared and then updated, in the first-level cache */
  PART = 32 * 1024, /* elements that a thread takes at once; with fewer there is one thread */
};

typedef struct {
  const Operator *operator;
  Tensors tensors;
  Scalars scalars;
  Real factor, clip_value;
  size_t size;
#if !defined(FLOAT64)
  /* The parameters and the gradients, where they are float16; NULL where not. */
  const uint16_t *half_w, *half_g;
  uint16_t *half_w1;
#endif
} Work;

static Tensors at(const Tensors *t, size_t i) {
  Tensors moved = {.s = t->s + i, .s1 = t->s1 + i};
  if (t->w) moved.w = t->w + i, moved.w1 = t->w1 + i;
  if (t->g) moved.g = t->g + i;
  if (t->a) moved.a = t->a + i, moved.a1 = t->a1 + i;
  if (t->m) moved.m = t->m + i, moved.m1 = t->m1 + i;
  return moved;
}

static void update_blocks(const Work *work, size_t begin, size_t end) {
  const Operator *operator = work->operator;
  const Variant *v = &operator->variant;
  Real limited[BLOCK], gradient[BLOCK], parameter[BLOCK];
  for (size_t i = begin; i < end; i += BLOCK) {
    const size_t n = end - i < BLOCK ? end - i : BLOCK;
    Tensors t = at(&work->tensors, i);
#if !defined(FLOAT64)
    float wide_w[BLOCK], wide_g[BLOCK];
    if (work->half_w) widen(work->half_w + i, wide_w, n), t.w = t.w1 = wide_w;
    if (work->half_g) widen(work->half_g + i, wide_g, n), t.g = wide_g;
#endif
    if (operator->scale || operator->clip_value) {
      loops->limit_gradient(t.g, limited, work->factor, work->clip_value, n, operator->scale,
                            operator->clip_value);
      t.g = limited;
    }
    if (v->unscale || v->weight_decay == WEIGHT_DECAY) {
      loops->prepare_gradient(v, &t, &work->scalars, gradient, n);
      t.g = gradient;
    }
    if (v->weight_decay == DECOUPLED_WEIGHT_DECAY) {
      loops->decay_parameter(&t, &work->scalars, parameter, n);
      t.w = parameter;
    }
    loops->update(v, &t, &work->scalars, n);
#if !defined(FLOAT64)
    if (work->half_w) narrow(wide_w, work->half_w1 + i, n);
#endif
  }
}

static void update_part(void *data, size_t index) {
  const Work *work = data;
  const size_t begin = index * PART, left = work->size - begin;
  update_blocks(work, begin, begin + (left < PART ? left : PART));
}

static OrtStatus *update_all(const OrtApi *api, OrtKernelContext *context, Work *work) {
  return do_parts(api, context, update_part, (work->size + PART - 1) / PART, work);
}

static void keep(const Real *old, Real *new, size_t n) {
  if (n && new && new != old) memcpy(new, old, n * sizeof *old);
}

static void keep_all(const Work *work) {
  const Tensors *t = &work->tensors;
  const size_t n = work->size;
#if !defined(FLOAT64)
  if (n && work->half_w1 != work->half_w) memcpy(work->half_w1, work->half_w, n * sizeof(uint16_t));
#endif
  keep(t->w, t->w1, n);
  keep(t->s, t->s1, n);
  if (t->a) keep(t->a, t->a1, n);
  if (t->m) keep(t->m, t->m1, n);
}

static Tensors tensors_of(const Call *call, size_t index) {
  const Operator *operator = call->kernel->operator;
  const size_t n = operator->tensors;
  void **in = call->memory + index, **out = in + input_count(operator);
  Tensors t = {.w = in[0], .g = in[n], .s = in[2 * n], .w1 = out[0], .s1 = out[n]};
  size_t next = 3;
  if (operator->variant.centered) t.a = in[next * n], t.a1 = out[(next - 1) * n], next++;
  if (operator->variant.momentum) t.m = in[next * n], t.m1 = out[(next - 1) * n];
  return t;
}

#if !defined(FLOAT64)
/* Parameters, and gradients, that are float16. */
static void take_halves(const Call *call, Work *work) {
  Tensors *t = &work->tensors;
  if (call->kernel->operator->type != OF_FLOAT16) return;
  work->half_w = (const uint16_t *)(const void *)t->w;
  work->half_w1 = (uint16_t *)(void *)t->w1;
  t->w = NULL, t->w1 = NULL;
  if (call->types[GRADIENT] == ORT_FLOAT) return;
  work->half_g = (const uint16_t *)(const void *)t->g;
  t->g = NULL;
}
#endif

static OrtStatus *update(void *data, OrtKernelContext *context) {
  const Kernel *kernel = data;
  const Operator *operator = kernel->operator;
  void *memory[input_count(operator) + output_count(operator)];
  size_t sizes[operator->tensors];
  int types[MAX_KINDS] = {0};
  const Call call = {kernel, memory, sizes, types};
  OrtStatus *status = read_call(&call, context);
  if (status) return status;
  if (operator->type == OF_FLOAT16 && types[GRADIENT] != ORT_FLOAT && types[GRADIENT] != ORT_FLOAT16)
    return wrong_input(&call, GRADIENT, "is neither float32 nor float16");
  const ScalarInputs inputs = scalar_inputs(&call);
  Work work = {.operator = operator,
               .scalars = scalars_of(&kernel->attributes),
               .clip_value = (Real)kernel->attributes.clip_value};
  work.scalars.rate = *inputs.rate;
  if (inputs.factor) work.factor = *inputs.factor;
  if (inputs.weight_decay) work.scalars.weight_decay = *inputs.weight_decay;
  for (size_t i = 0; !status && i < operator->tensors; i++) {
    work.tensors = tensors_of(&call, i);
    work.size = sizes[i];
#if !defined(FLOAT64)
    take_halves(&call, &work);
#endif
    if (inputs.on && !*inputs.on)
      keep_all(&work);
    else
      status = update_all(kernel->api, context, &work);
  }
  return status;
}

static OrtStatus *average(void *data, OrtKernelContext *context) {
  const Kernel *kernel = data;
  const Operator *operator = kernel->operator;
  const size_t n = operator->tensors;
  void *memory[input_count(operator) + output_count(operator)];
  size_t sizes[n];
  const Call call = {kernel, memory, sizes, NULL};
  OrtStatus *status = read_call(&call, context);
  if (status) return status;
  const Real decay = (Real)kernel->attributes.decay;
  for (size_t i = 0; i < n; i++) {
    const Real *old = memory[i], *value = memory[n + i];
    Real *new = memory[input_count(operator) + i];
    for (size_t k = 0; k < sizes[i]; k++)
      new[k] = moved_average(old[k], value[k], decay);
  }
  return NULL;
}

static OrtStatus *ready(void *data, OrtKernelContext *context) {
  bool *is_ready;
  OrtStatus *status = flag_output(data, context, &is_ready);
  if (!status) *is_ready = true;
  return status;
}

/* What several threads look at. */
typedef struct {
  const Real *values;
  size_t size;
  atomic_bool finite;
} Values;

static void look_at_part(void *data, size_t index) {
  Values *values = data;
  const size_t begin = index * PART, left = values->size - begin;
  const size_t end = begin + (left < PART ? left : PART);
  for (size_t i = begin; i < end; i += BLOCK)
    if (!loops->all_finite(values->values + i, end - i < BLOCK ? end - i : BLOCK)) {
      atomic_store(&values->finite, false);
      return;
    }
}

static OrtStatus *all_finite(void *data, OrtKernelContext *context) {
  const Kernel *kernel = data;
  const size_t n = kernel->operator->tensors;
  void *memory[n];
  size_t sizes[n];
  bool *flag;
  const Call call = {kernel, memory, sizes, NULL};
  OrtStatus *status = read_values(&call, context);
  if (!status) status = flag_output(kernel, context, &flag);
  if (status) return status;
  *flag = true;
  for (size_t i = 0; !status && *flag && i < n; i++) {
    Values values = {memory[i], sizes[i], true};
    const size_t parts = (values.size + PART - 1) / PART;
    status = do_parts(kernel->api, context, look_at_part, parts, &values);
    *flag = atomic_load(&values.finite);
  }
  return status;
}

typedef struct {
  const Real *x, *y;
  Real *sum, a, b;
  size_t size;
} Sum;

static void add_part(void *data, size_t index) {
  const Sum *s = data;
  const size_t begin = index * PART, left = s->size - begin;
  loops->add_weighted(s->x + begin, s->y + begin, s->sum + begin, s->a, s->b,
                      left < PART ? left : PART);
}

static OrtStatus *sum(void *data, OrtKernelContext *context) {
  const Kernel *kernel = data;
  const Operator *operator = kernel->operator;
  void *memory[input_count(operator) + output_count(operator)];
  size_t size;
  const Call call = {kernel, memory, &size, NULL};
  OrtStatus *status = read_call(&call, context);
  if (status) return status;
  const Weights w = weights(&call);
  Sum all = {memory[0], memory[1], memory[input_count(operator)], *w.a, *w.b, size};
  const size_t parts = (size + PART - 1) / PART;
  if (!w.on || *w.on) return do_parts(kernel->api, context, add_part, parts, &all);
  keep(all.x, all.sum, size);
  return NULL;
}

const Computes COMPUTES = {
    [UPDATE] = update, [AVERAGE] = average, [SUM] = sum, [READY] = ready, [FINITE] = all_finite};
