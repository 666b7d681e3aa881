/* Runs the loops of bench/limit.c, which is compiled with it, at many sizes and on two threads, and checks
 * every byte that they write: limits NAME, where NAME is a target. Exits with the line that fails. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int limit_level(const char* name);
int limit_start(int threads);
void limit_stop(void);
double limit_run(int level, int loop, int threads, char* y, const char* a, const char* b, const char* c,
                 size_t bytes, int64_t repeats, int consume);

enum { MOST = 1 << 16, BESIDE = 64, LOOPS = 8 };
static _Alignas(64) char x[3][MOST], y[MOST + 2 * BESIDE];

#define CHECK(holds)                                                     \
  do {                                                                   \
    if (!(holds)) {                                                      \
      fprintf(stderr, "limits.c, line %d: %s\n", __LINE__, #holds);      \
      exit(1);                                                           \
    }                                                                    \
  } while (0)

/* What a loop writes: copy, scale (float32), combine two and three; each with its streaming twin. */
static void expect(int loop, char* wanted, size_t bytes) {
  memcpy(wanted, x[0], bytes);
  if (loop / 2 == 1)
    for (size_t k = 0; k + 4 <= bytes; k += 4) {
      float number;
      memcpy(&number, wanted + k, 4);
      number *= 0.5f;
      memcpy(wanted + k, &number, 4);
    }
  for (int other = 1; other < loop / 2; ++other)
    for (size_t k = 0; k < bytes; ++k) wanted[k] = (char)(wanted[k] ^ x[other][k]);
}

static void check(int level, int loop, int threads, size_t bytes) {
  static char wanted[MOST];
  memset(y, 0x5A, sizeof(y));
  expect(loop, wanted, bytes);
  const char* third = loop / 2 == 3 ? x[2] : NULL;
  const char* second = loop / 2 >= 2 ? x[1] : NULL;
  CHECK(limit_run(level, loop, threads, y + BESIDE, x[0], second, third, bytes, 2, 1) >= 0);
  CHECK(memcmp(y + BESIDE, wanted, bytes) == 0);
  for (size_t k = 0; k < BESIDE; ++k) CHECK(y[k] == 0x5A && y[BESIDE + bytes + k] == 0x5A);
}

int main(int count, char** arguments) {
  int level = count == 2 ? limit_level(arguments[1]) : -1;
  CHECK(level >= 0 && limit_level("none") < 0);
  for (int k = 0; k < 3; ++k)
    for (size_t at = 0; at < MOST; at += 4) {
      float number = (float)((int)(at % 1000) - 500 + 7 * k);
      memcpy(x[k] + at, &number, 4);
    }
  for (int threads = 1; threads <= 2; ++threads) {
    CHECK(limit_start(threads) == threads);
    for (int loop = 0; loop < LOOPS; ++loop)
      for (size_t bytes = 4; bytes <= MOST; bytes = bytes < 600 ? bytes + 4 : 3 * bytes)
        check(level, loop, threads, bytes);
    limit_stop();
  }
  return 0;
}
