/* Takes back what recurrent_variants.h and recurrent_loops.h define for an instruction set. */
#undef WIDE
#undef AT
#undef READ
#undef ALL
#undef WHERE
#undef LOOPS
#undef TARGET
#undef WIDTH
#undef HIGH
#undef MULTIPLY_ADD
