/* A small pool of threads, one per process, shared by every operator's library.
 *
 * Why not an existing one: libgomp hangs a child forked after use and waits in a barrier for
 * threads that the system has not scheduled; TVM's pool lives in libtvm_runtime, which a bundle
 * does not bring. Here the caller computes chunks itself until none is left and waits only for
 * those that a worker has begun, so that a busy machine costs nothing; a pool in use by another
 * thread is not waited for; a forked child starts its own workers; idle workers spin for
 * SPIN_ROUNDS and then sleep.
 */
#ifndef RELU_OPS_POOL_H_
#define RELU_OPS_POOL_H_

#include <stdint.h>

typedef void (*PoolTask)(void* argument, int64_t chunk, int64_t chunks);

/* Runs task(argument, chunk, chunks) for every chunk, on at most `threads` threads. */
void relu_ops_parallel(PoolTask task, void* argument, int64_t chunks, int threads);

#endif
