/* A small pool of threads, one per process, shared by every operator.
 *
 * Why not an existing one: libgomp hangs a child forked after use and waits in a barrier for
 * threads that the system has not scheduled; TVM's pool lives in libtvm_runtime, which nobody ships.
 * Here the caller computes chunks itself until none is left and waits only for
 * those that a worker has begun, so that a busy machine costs nothing; a pool in use by another
 * thread is not waited for; a forked child starts its own workers; idle workers spin for
 * SPIN_ROUNDS and then sleep; and a job is not shared if whoever reads its output next would pay more
 * for that than it gains.
 */
#ifndef RELU_OPS_POOL_H_
#define RELU_OPS_POOL_H_

#include <stdint.h>

#include "include/relu_ops.h"

/* How much of the pool a job may use. */
typedef struct {
  int threads;
  int64_t bytes;      /* that the job moves */
  int64_t wake_bytes; /* from how many on it pays to wake sleeping workers */
} PoolUse;

/* Runs task(argument, chunk, chunks) for every chunk, at most MOST_CHUNKS. The caller takes the
 * first chunks, each worker the same ones in every call. */
#define MOST_CHUNKS 65535
void relu_ops_parallel(relu_ops_task task, void* argument, int64_t chunks, PoolUse use);

#endif
