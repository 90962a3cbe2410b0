/* The update on CUDA: each block updates a piece of one of many tensors, in one pass over the
 * memory.
 */
#include "launch.h"

/* Four elements at a place that is a multiple of 16 bytes. */
static __device__ __forceinline__ void load(const float *from, float *to) {
  *reinterpret_cast<float4 *>(to) = *reinterpret_cast<const float4 *>(from);
}

static __device__ __forceinline__ void store(const float *from, float *to) {
  *reinterpret_cast<float4 *>(to) = *reinterpret_cast<const float4 *>(from);
}

struct Tensors {
  const float *w, *g, *s, *a, *m;
  float *w1, *s1, *a1, *m1;
};

template <bool CENTERED, bool WITH_MOMENTUM>
static __device__ __forceinline__ Tensors tensors_at(const Launch &launch, unsigned index) {
  const unsigned n = launch.tensors;
  float *const *next = launch.pointers + index;
  Tensors t = {next[0], next[n], next[2 * n], nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  next += 3 * n;
  if (CENTERED) t.a = *next, next += n;
  if (WITH_MOMENTUM) t.m = *next, next += n;
  if (launch.in_place) {
    t.w1 = const_cast<float *>(t.w);
    t.s1 = const_cast<float *>(t.s);
    t.a1 = const_cast<float *>(t.a);
    t.m1 = const_cast<float *>(t.m);
  } else {
    t.w1 = *next, next += n;
    t.s1 = *next, next += n;
    if (CENTERED) t.a1 = *next, next += n;
    if (WITH_MOMENTUM) t.m1 = *next;
  }
  return t;
}

template <bool CENTERED, enum Momentum MOMENTUM_KIND, bool LIMITED>
static __device__ __forceinline__ Element element(const Launch &launch, const Scalars &scalars,
                                                  Element old, float g) {
  const Variant &v = launch.variant;
  if (LIMITED)
    g = limited_gradient(g, launch.scale ? *launch.factor : 1.0f, launch.limit, launch.scale,
                         launch.clip_value);
  g = prepared_gradient(old.w, g, &scalars, v.weight_decay == WEIGHT_DECAY, v.unscale);
  if (v.weight_decay == DECOUPLED_WEIGHT_DECAY) old.w = decayed_parameter(old.w, &scalars);
  return updated(old, g, &scalars, CENTERED, MOMENTUM_KIND, v.epsilon_outside, v.rate_outside);
}

/* The last tensor whose first block is not after this one. */
static __device__ __forceinline__ unsigned tensor_of(const Launch &launch, unsigned block) {
  unsigned low = 0, high = launch.tensors;
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    if (launch.first_blocks[middle] <= block)
      low = middle;
    else
      high = middle;
  }
  return low;
}

static __device__ __forceinline__ bool is_aligned(const void *p) {
  return (reinterpret_cast<size_t>(p) & 15) == 0;
}

template <bool CENTERED, enum Momentum MOMENTUM_KIND, bool LIMITED>
static __device__ __forceinline__ void update_block(const Launch &launch) {
  constexpr bool WITH_MOMENTUM = MOMENTUM_KIND != NO_MOMENTUM;
  const unsigned index = tensor_of(launch, blockIdx.x);
  const Tensors t = tensors_at<CENTERED, WITH_MOMENTUM>(launch, index);
  const unsigned size = launch.sizes[index];
  const unsigned begin = (blockIdx.x - launch.first_blocks[index]) * BLOCK_SIZE;
  const unsigned end = size - begin < BLOCK_SIZE ? size : begin + BLOCK_SIZE;
  const bool on = !launch.on || *launch.on;
  if (!on && launch.in_place) return;
  Scalars scalars = launch.attributes;
  scalars.rate = *launch.rate;
  scalars.weight_decay = launch.weight_decay ? *launch.weight_decay : 0.0f;

  const bool vectors = is_aligned(t.w) && is_aligned(t.g) && is_aligned(t.s) && is_aligned(t.a) &&
                       is_aligned(t.m) && is_aligned(t.w1) && is_aligned(t.s1) &&
                       is_aligned(t.a1) && is_aligned(t.m1);
  unsigned left = begin; /* from here on, element by element */
  if (vectors) {
    left = end & ~3u;
    const unsigned i = begin + 4 * threadIdx.x;
    if (i + 4 <= end) {
      alignas(16) float w[4], g[4], s[4], a[4], m[4];
      load(t.w + i, w), load(t.g + i, g), load(t.s + i, s);
      if (CENTERED) load(t.a + i, a);
      if (WITH_MOMENTUM) load(t.m + i, m);
      if (on) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const Element old = {w[k], s[k], CENTERED ? a[k] : 0.0f, WITH_MOMENTUM ? m[k] : 0.0f};
          const Element now = element<CENTERED, MOMENTUM_KIND, LIMITED>(launch, scalars, old, g[k]);
          w[k] = now.w, s[k] = now.s, a[k] = now.a, m[k] = now.m;
        }
      }
      store(w, t.w1 + i), store(s, t.s1 + i);
      if (CENTERED) store(a, t.a1 + i);
      if (WITH_MOMENTUM) store(m, t.m1 + i);
    }
  }
  for (unsigned i = left + threadIdx.x; i < end; i += THREADS) {
    const Element old = {t.w[i], t.s[i], CENTERED ? t.a[i] : 0.0f, WITH_MOMENTUM ? t.m[i] : 0.0f};
    const Element now =
        on ? element<CENTERED, MOMENTUM_KIND, LIMITED>(launch, scalars, old, t.g[i]) : old;
    t.w1[i] = now.w, t.s1[i] = now.s;
    if (CENTERED) t.a1[i] = now.a;
    if (WITH_MOMENTUM) t.m1[i] = now.m;
  }
}

/* Pointers are all averages, then all values, then all new averages. */
extern "C" __global__ void __launch_bounds__(THREADS)
    graphopt_average(const __grid_constant__ Launch launch) {
  const unsigned index = tensor_of(launch, blockIdx.x), n = launch.tensors;
  const float *old = launch.pointers[index], *value = launch.pointers[n + index];
  float *moved = launch.pointers[launch.in_place ? index : 2 * n + index];
  const unsigned size = launch.sizes[index];
  const unsigned begin = (blockIdx.x - launch.first_blocks[index]) * BLOCK_SIZE;
  const unsigned end = size - begin < BLOCK_SIZE ? size : begin + BLOCK_SIZE;
  for (unsigned i = begin + threadIdx.x; i < end; i += THREADS)
    moved[i] = moved_average(old[i], value[i], launch.attributes.decay);
}

/* Pointers are x, y, and the sum. */
extern "C" __global__ void __launch_bounds__(THREADS)
    graphopt_sum(const __grid_constant__ Launch launch) {
  const float *x = launch.pointers[0], *y = launch.pointers[1];
  float *sum = launch.pointers[launch.in_place ? 0 : 2];
  const float a = *launch.a, b = *launch.b;
  const bool on = !launch.on || *launch.on;
  const unsigned size = launch.sizes[0], begin = blockIdx.x * BLOCK_SIZE;
  const unsigned end = size - begin < BLOCK_SIZE ? size : begin + BLOCK_SIZE;
  for (unsigned i = begin + threadIdx.x; i < end; i += THREADS)
    sum[i] = on ? weighted_sum(x[i], y[i], a, b) : x[i];
}

/* Takes the flag back, which says that all values are finite, where one is not. */
extern "C" __global__ void __launch_bounds__(THREADS)
    graphopt_all_finite(const __grid_constant__ Launch launch) {
  const unsigned index = tensor_of(launch, blockIdx.x);
  const float *values = launch.pointers[index];
  const unsigned size = launch.sizes[index];
  const unsigned begin = (blockIdx.x - launch.first_blocks[index]) * BLOCK_SIZE;
  const unsigned end = size - begin < BLOCK_SIZE ? size : begin + BLOCK_SIZE;
  bool other = false;
  for (unsigned i = begin + threadIdx.x; i < end; i += THREADS)
    other |= (__float_as_uint(values[i]) & 0x7f800000u) == 0x7f800000u;
  if (__syncthreads_or(other) && threadIdx.x == 0) *launch.flag = false;
}

/* Named graphopt_update_<centered><momentum>, and the same of gradients that are scaled or clipped
 * first. */
#define KERNEL(centered, momentum, number)                                                  \
  extern "C" __global__ void __launch_bounds__(THREADS)                                     \
      graphopt_update_##centered##number(const __grid_constant__ Launch launch) {           \
    update_block<centered, momentum, false>(launch);                                        \
  }                                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS)                                     \
      graphopt_limited_update_##centered##number(const __grid_constant__ Launch launch) {   \
    update_block<centered, momentum, true>(launch);                                         \
  }
KERNEL(0, NO_MOMENTUM, 0)
KERNEL(0, MOMENTUM, 1)
KERNEL(0, NESTEROV, 2)
KERNEL(1, NO_MOMENTUM, 0)
KERNEL(1, MOMENTUM, 1)
KERNEL(1, NESTEROV, 2)
