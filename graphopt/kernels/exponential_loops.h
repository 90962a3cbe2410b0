/* An exponential, for the loops of an instruction set that include it: with LOOPS(name), TARGET and
 * MULTIPLY_ADD(a, b, c), for floats that are a VECTOR, integers of their size that are BITS, and
 * WHERE(mask, a, b). */

#define EACH(number) ((number) - (VECTOR){0})

/* exp(x) for x <= 0, and 0 within 2e-38 for x below -87; something else for NaN. */
TARGET ALWAYS_INLINE void LOOPS(exponential)(const VECTOR *x, VECTOR *result) {
  static const float series[] = {1.382942059e-03f, 8.374771520e-03f, 4.166835803e-02f,
                                 1.666642083e-01f, 4.999999149e-01f, 1.000000036e+00f,
                                 1.000000001e+00f};
  const VECTOR low = EACH(-87.0f), magic = EACH(12582912.0f); /* 1.5 2^23 */
  /* power log(2) is power (-high - more). */
  const VECTOR to_power = EACH(1.442695041f), high = EACH(-0.693359375f);
  const VECTOR more = EACH(2.12194440e-4f), y = WHERE(*x < low, low, *x);
  const VECTOR shifted = MULTIPLY_ADD(y, to_power, magic), power = shifted - magic;
  const VECTOR rest = MULTIPLY_ADD(power, more, MULTIPLY_ADD(power, high, y));
  VECTOR sum = EACH(series[0]);
  UNROLL
  for (size_t i = 1; i < sizeof series / sizeof *series; i++)
    sum = MULTIPLY_ADD(sum, rest, EACH(series[i]));
  *result = (VECTOR)((BITS)sum + ((BITS)shifted << 23));
}

#undef EACH
#undef VECTOR
#undef BITS
