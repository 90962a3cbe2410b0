/* The loops for one instruction set: included once for each, with LOOPS(name) and TARGET. */

TARGET static void LOOPS(relu)(const float *dy, const float *y, float *dx, size_t n) {
  INDEPENDENT
  for (size_t i = 0; i < n; i++) dx[i] = dy[i] * (y[i] > 0.0f ? 1.0f : 0.0f);
}

/* Windows that have nothing yet take what there is. */
TARGET ALWAYS_INLINE void LOOPS(compare_in_steps)(const float *x, ptrdiff_t step, int32_t first,
                                                  float *restrict largest,
                                                  int32_t *restrict place, size_t n) {
  INDEPENDENT
  for (size_t i = 0; i < n; i++) {
    const float value = x[(ptrdiff_t)i * step], old = largest[i];
    const int32_t at = first + (int32_t)i * (int32_t)step, was = place[i];
    const int32_t taken = -(value > old) | was >> 31;
    largest[i] = value > old ? value : old;
    place[i] = (at & taken) | (was & ~taken);
  }
}

TARGET static void LOOPS(compare)(const float *x, ptrdiff_t step, int32_t first, float *largest,
                                  int32_t *place, size_t n) {
  if (step == 1)
    LOOPS(compare_in_steps)(x, 1, first, largest, place, n);
  else if (step == 2)
    LOOPS(compare_in_steps)(x, 2, first, largest, place, n);
  else
    LOOPS(compare_in_steps)(x, step, first, largest, place, n);
}

static const SelectionLoops LOOPS(selection_loops) = {LOOPS(relu), LOOPS(compare)};

#undef LOOPS
#undef TARGET
