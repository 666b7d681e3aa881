/* The bounds that compiler and runtime share: what an image may hold. python.c hands them to Python, so
 * that a graph beyond them is refused when it is imported. */
#ifndef RELU_OPS_BOUNDS_H_
#define RELU_OPS_BOUNDS_H_

/* Name, value, of what. A plan takes 144 bytes an operand, a call's arrays on the stack 100. */
#define RELU_OPS_LIMITS(F)                                      \
  F(OPERATORS, 4096, "operators of an image")                   \
  F(INPUTS, 512, "inputs of an operator")                       \
  F(OUTPUTS, 512, "outputs of an operator")                     \
  F(OPERANDS, 1024, "inputs, outputs and array constants that a kernel reads or writes") \
  F(KERNELS, 16, "kernels of an operator")                      \
  F(SYMBOLS, 8192, "names of dimensions of an operator")        \
  F(TERMS, 1024, "inputs and constants that a shape depends on") \
  F(REQUIREMENTS, 8192, "shapes of an operator that must fit into others") \
  F(FEATURES, 64, "processor features that an image requires")  \
  F(TEXT, 65535, "bytes of a name")                             \
  F(RANK, 16, "dimensions of an array")                         \
  F(DECLARED_RANK, 8, "dimensions that a model may declare")    \
  F(THREADS, 256, "threads of a call")                          \
  F(READ, 67108864, "bytes of the tables and names of an image, counted as often as they are used")

#define RELU_OPS_LIMIT_OF(name, value, what) RELU_OPS_MOST_##name = (value),
enum { RELU_OPS_LIMITS(RELU_OPS_LIMIT_OF) };
#undef RELU_OPS_LIMIT_OF

#endif
