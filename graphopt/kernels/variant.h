/* What an update is made of: graphopt.update.core.Variant, whose names and order of inputs these
 * are.
 */
#ifndef GRAPHOPT_VARIANT_H
#define GRAPHOPT_VARIANT_H

#include <stdbool.h>

enum Momentum { NO_MOMENTUM, MOMENTUM, NESTEROV };
enum WeightDecay { NO_WEIGHT_DECAY, WEIGHT_DECAY, DECOUPLED_WEIGHT_DECAY };

typedef struct {
  bool centered, epsilon_outside, rate_outside, unscale, mask, chunked;
  enum Momentum momentum;
  enum WeightDecay weight_decay;
} Variant;

enum { VARIANTS = 480 };

#endif
